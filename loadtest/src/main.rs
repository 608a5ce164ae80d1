//! `loadtest`, which needs Linux; elsewhere it says so.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    loadtest::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("loadtest measures with epoll and /proc: run it on Linux");
    ExitCode::from(2)
}
