//! Resources of processes: their use from Linux' /proc, and this process' own limits and cores.

use std::fs;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// User and system time of all threads, including those that have ended.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    processor_time(&read(pid, "stat")?)
}

/// User and system time of one thread of this process.
pub fn thread_cpu_time(thread: Pid) -> anyhow::Result<Duration> {
    let file = format!("task/{}/stat", thread.as_raw_nonzero());
    processor_time(&read(std::process::id(), &file)?)
}

fn processor_time(stat: &str) -> anyhow::Result<Duration> {
    // The command's name may contain spaces and parentheses; the fields after its closing parenthesis don't.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("no /proc stat line")?;
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Resident bytes. `smaps_rollup` is exact; `status`, for processes whose `smaps_rollup` is not readable, lags behind.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let (text, key) = match read(pid, "smaps_rollup") {
        Ok(text) => (text, "Rss:"),
        Err(_) => (read(pid, "status")?, "VmRSS:"),
    };
    let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key} line"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Open file descriptors.
pub fn open_files(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("files of process {pid}"))?.count())
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("{file} of process {pid}"))
}

/// Raises this process' limit of open files to the hard limit, and returns it.
pub fn raise_file_limit() -> anyhow::Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of open files")?;
    Ok(limit.maximum.map_or(usize::MAX, |files| files as usize))
}

/// Binds the calling thread, and the threads and processes that it starts, to these cores.
pub fn pin(cores: impl IntoIterator<Item = usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cores.into_iter().for_each(|core| set.set(core));
    sched_setaffinity(None, &set).context("pinning to a core")
}

/// The cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
