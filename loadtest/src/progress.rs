//! What a person sees while a run goes on: a bar with live figures, or a line now and then where no terminal is.

use std::cell::Cell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The bar of one run; it goes with it.
pub struct Progress {
    what: String,
    bar: ProgressBar,
    /// When the next line is due where there is no bar.
    next_line: Cell<f64>,
}

impl Progress {
    /// Between two lines, in seconds.
    const EVERY: f64 = 10.0;

    pub fn new(what: &str, duration: Duration) -> Self {
        let bar = ProgressBar::new(duration.as_millis() as u64);
        let style =
            ProgressStyle::with_template("{prefix} {bar:30} {msg}").expect("the template is constant and valid");
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        let progress = Self { what: what.to_owned(), bar, next_line: Cell::new(Self::EVERY) };
        if progress.bar.is_hidden() {
            eprintln!("{what} for {duration:?}");
        }
        progress
    }

    /// So many seconds are over; `figures` are the newest.
    pub fn show(&self, seconds: f64, figures: &str) {
        self.bar.set_position((seconds * 1000.0) as u64);
        self.bar.set_message(figures.to_owned());
        if self.bar.is_hidden() && seconds >= self.next_line.get() {
            eprintln!("{} {seconds:.0} s: {figures}", self.what);
            self.next_line.set(seconds + Self::EVERY);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
