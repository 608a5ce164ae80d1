//! Child processes that never outlive the tests, however the tests end.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// Ends whatever is still alive once its input closes, which the kernel does for us even when the tests abort.
/// A destructor can't promise that, and `PR_SET_PDEATHSIG` follows the spawning *thread*: libtest has one a test.
const REAPING: &str = r#"
    alive=" "
    while read -r operation pid; do
        case $operation in
            +) alive="$alive$pid " ;;
            -) alive="${alive%%" $pid "*} ${alive#*" $pid "}" ;;
        esac
    done
    for pid in $alive; do kill -9 "$pid" 2>/dev/null; done
    rm -rf -- "$@"
"#;

struct Reaper {
    child: Child,
    scratch: PathBuf,
    outside: PathBuf,
}

impl Reaper {
    /// Puts a process under the reaper's care (`+`), or takes it out (`-`).
    fn tell(&mut self, operation: char, pid: u32) {
        let stdin = self.child.stdin.as_mut().expect("piped at its start");
        writeln!(stdin, "{operation} {pid}").expect("the reaper outlives us");
    }
}

static REAPER: LazyLock<Mutex<Reaper>> = LazyLock::new(|| {
    use std::os::unix::process::CommandExt;

    let scratch = profile().with_file_name("tmp").join(format!("run-{}", std::process::id()));
    let outside = std::env::temp_dir().join(format!("gateway-tests-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    let child = Command::new("sh")
        .args(["-c", REAPING, "reaper"])
        .args([&scratch, &outside])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // Ctrl-C is for the tests; the reaper still has work to do then.
        .spawn()
        .unwrap();
    Mutex::new(Reaper { child, scratch, outside })
});

/// `target/<profile>`: test binaries lie in its `deps`.
fn profile() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    binary.ancestors().nth(2).expect("a binary that Cargo has built").to_owned()
}

/// `GATEWAY_BIN`, or the gateway that Cargo has built beside this test.
pub fn gateway_binary() -> PathBuf {
    let binary = std::env::var_os("GATEWAY_BIN").map_or_else(|| profile().join("gateway"), PathBuf::from);
    assert!(binary.is_file(), "{} is not there: cargo build -p gateway", binary.display());
    binary
}

/// A directory of this run, gone when the run is over.
pub fn scratch(name: &str) -> PathBuf {
    let directory = REAPER.lock().unwrap().scratch.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// The same, where every user of the machine may go: PostgreSQL doesn't run as root, and this checkout may be root's alone.
pub fn scratch_outside(name: &str) -> PathBuf {
    let directory = REAPER.lock().unwrap().outside.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A running child; killed when dropped, reaped when the test binary dies.
pub struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = Pid::from_child(&child);
        REAPER.lock().unwrap().tell('+', child.id());
        Self { child, pid }
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes that this one has started.
    pub fn children(&self) -> Vec<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// SIGKILL, and waits until the kernel has closed everything the process held.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The exit status and the time it took to come.
    pub async fn exit(&mut self, within: Duration) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        loop {
            if let Some(status) = self.try_wait() {
                return (status, asked.elapsed());
            }
            assert!(asked.elapsed() < within, "process {} still runs after {within:?}", self.id());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Processor time that all its threads have used, in steps of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The second field is the program's name, in parentheses; utime and stime are fields 14 and 15.
        let fields: Vec<_> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if let Ok(mut reaper) = REAPER.lock() {
            reaper.tell('-', self.child.id());
        }
    }
}
