//! All sockets of a run, served by a thread of their own; whoever wants something of them asks that thread.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::thread::{Pid, gettid};

use crate::driver::Driver;
use crate::process;
use crate::watch::Watch;

type Order = Box<dyn FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<()> + Send>;

/// A handle to the thread; it ends with the last handle.
#[derive(Clone)]
pub struct Sockets {
    orders: Sender<Order>,
    thread: Pid,
}

impl Sockets {
    /// How long an order may wait behind silent sockets.
    const PATIENCE: Duration = Duration::from_millis(5);

    /// Serves what `driver` has, for `watch`, from now on.
    pub fn serve(driver: Driver, watch: Watch) -> anyhow::Result<Self> {
        let (orders, ordered) = channel();
        let (tell, told) = sync_channel(1);
        thread::Builder::new().name("sockets".to_owned()).spawn(move || {
            tell.send(gettid()).expect("the spawner waits");
            if let Err(error) = run(driver, watch, &ordered) {
                // Whoever asks next learns that nobody is there; here is why.
                eprintln!("the sockets' thread ended: {error:#}");
            }
        })?;
        Ok(Self { orders, thread: told.recv().context("starting the sockets' thread")? })
    }

    /// Has it done between two turns, without waiting for it.
    pub fn order(&self, order: impl FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<()> + Send + 'static) {
        // Without the thread the run is over, and its next question says so.
        let _ = self.orders.send(Box::new(order));
    }

    /// Has it done and waits for what it gives.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Driver, &mut Watch) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, answered) = sync_channel(1);
        self.order(move |driver, watch| {
            // The asker waits, unless the whole process is going.
            let _ = answer.send(question(driver, watch));
            Ok(())
        });
        answered.recv().context("the sockets' thread is gone")?
    }

    /// What the thread has used of the processor.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        process::thread_cpu_time(self.thread)
    }
}

fn run(mut driver: Driver, mut watch: Watch, orders: &Receiver<Order>) -> anyhow::Result<()> {
    use std::sync::mpsc::TryRecvError;
    loop {
        match orders.try_recv() {
            Ok(order) => order(&mut driver, &mut watch)?,
            Err(TryRecvError::Empty) => driver.turn(Sockets::PATIENCE, &mut watch).context("serving the sockets")?,
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}
