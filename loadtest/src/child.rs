//! Processes that a run starts, and that end with it whatever happens to it.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::process;

/// A running child; killed when dropped.
pub struct Kept(pub Child);

impl Kept {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself; all that matters is that it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs through this program's hidden `exec`, on one core if asked for.
pub fn command(core: Option<usize>, program: &OsStr) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("exec");
    if let Some(core) = core {
        command.args(["--core", &core.to_string()]);
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Becomes `program`, bound to its parent's life and to a core.
///
/// A process in between, rather than code between fork and exec, because that would be unsafe code; and before
/// the program starts, because a thread that already runs keeps the cores it has.
pub fn exec(core: Option<usize>, program: &[OsString]) -> anyhow::Result<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("binding to the parent's life")?;
    if let Some(core) = core {
        process::pin([core])?;
    }
    let (program, arguments) = program.split_first().context("no program to run")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("starting {}", program.display()))
}
