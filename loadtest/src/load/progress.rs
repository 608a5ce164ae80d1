//! Shows the progress of a run: a bar with live figures in a terminal, otherwise a line every ten seconds.

use std::cell::Cell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The bar of one run; removed when dropped.
pub struct Progress {
    what: String,
    bar: ProgressBar,
    /// When the next line is due, without a terminal.
    next_line: Cell<f64>,
}

impl Progress {
    /// Seconds between two lines.
    const INTERVAL: f64 = 10.0;

    pub fn new(what: &str, duration: Duration) -> Self {
        let bar = ProgressBar::new(duration.as_millis() as u64);
        let style =
            ProgressStyle::with_template("{prefix} {bar:30} {msg}").expect("the template is constant and valid");
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        let progress = Self { what: what.to_owned(), bar, next_line: Cell::new(Self::INTERVAL) };
        if progress.bar.is_hidden() {
            eprintln!("{what} for {duration:?}");
        }
        progress
    }

    /// Shows that this many seconds are over, with the newest figures.
    pub fn show(&self, seconds: f64, figures: &str) {
        self.bar.set_position((seconds * 1000.0) as u64);
        self.bar.set_message(figures.to_owned());
        if self.bar.is_hidden() && seconds >= self.next_line.get() {
            eprintln!("{} {seconds:.0} s: {figures}", self.what);
            self.next_line.set(seconds + Self::INTERVAL);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
