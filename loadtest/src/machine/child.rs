//! Processes that a run starts. They end with the run, also when the run is killed.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::machine::process;

/// A running child; killed when dropped.
pub struct Kept(pub Child);

impl Kept {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // An error means that the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that starts `program` through the hidden subcommand `exec`, on one core if given.
pub fn command(core: Option<usize>, program: &OsStr) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("exec");
    if let Some(core) = core {
        command.args(["--core", &core.to_string()]);
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Replaces this process by `program`, which is killed when its parent ends, and runs on one core if given.
///
/// This is a process of its own because code between fork and exec would be unsafe code. The core is set before the
/// program starts because threads that already run keep their cores.
pub fn exec(core: Option<usize>, program: &[OsString]) -> anyhow::Result<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to be killed with the parent")?;
    if let Some(core) = core {
        process::pin([core])?;
    }
    let (program, arguments) = program.split_first().context("no program to run")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("starting {}", program.display()))
}
