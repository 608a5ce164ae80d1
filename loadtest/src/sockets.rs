//! All sockets of a run on one thread. Other threads give it work; it runs the work between two turns of the sockets.

pub mod dialler;
pub mod driver;
pub mod memo;
pub mod watch;

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::thread::{Pid, gettid};

use self::driver::Driver;
use self::watch::Watch;
use crate::machine::process;

type Work = Box<dyn FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<()> + Send>;

/// A handle to the thread, which ends when its last handle is dropped.
#[derive(Clone)]
pub struct Sockets {
    work: Sender<Work>,
    thread: Pid,
}

impl Sockets {
    /// Longest time that work waits while the sockets are silent.
    const TURN: Duration = Duration::from_millis(5);

    /// Starts the thread with the sockets of `driver`.
    pub fn serve(driver: Driver, watch: Watch) -> anyhow::Result<Self> {
        let (sender, work) = channel();
        let (send_id, id) = sync_channel(1);
        thread::Builder::new().name("sockets".to_owned()).spawn(move || {
            send_id.send(gettid()).expect("the spawner waits");
            if let Err(error) = run(driver, watch, &work) {
                // The next `ask` fails because the thread is gone; this line says why.
                eprintln!("the sockets' thread ended: {error:#}");
            }
        })?;
        Ok(Self { work: sender, thread: id.recv().context("starting the sockets' thread")? })
    }

    /// Queues work and does not wait for it.
    pub fn queue(&self, work: impl FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<()> + Send + 'static) {
        // This fails only when the thread is gone, and then the run's next `ask` fails.
        let _ = self.work.send(Box::new(work));
    }

    /// Queues work and waits for its result.
    pub fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (send_result, result) = sync_channel(1);
        self.queue(move |driver, watch| {
            // This fails only while the whole process ends.
            let _ = send_result.send(work(driver, watch));
            Ok(())
        });
        result.recv().context("the sockets' thread is gone")?
    }

    /// Processor time of the thread.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        process::thread_cpu_time(self.thread)
    }
}

fn run(mut driver: Driver, mut watch: Watch, work: &Receiver<Work>) -> anyhow::Result<()> {
    loop {
        match work.try_recv() {
            Ok(work) => work(&mut driver, &mut watch)?,
            Err(TryRecvError::Empty) => driver.turn(Sockets::TURN, &mut watch).context("serving the sockets")?,
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}
