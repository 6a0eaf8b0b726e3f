//! Progress of an extraction, with the time left where the size of the input is known.

use std::time::{Duration, Instant};

use cn_clip_eval::extract::input::Size;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    start: Instant,
    rows: usize,
}

impl Progress {
    /// A bar for an input of a size.
    pub fn new(size: Size, what: &'static str) -> Self {
        let (bar, style) = match size {
            Size::Entries(total) | Size::Bytes(total) => {
                (ProgressBar::new(total), "{bar:30} {percent:>3} % | {msg} | {eta} left")
            }
            Size::Unknown => (ProgressBar::new_spinner(), "{spinner} {msg} | {elapsed}"),
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, what, start: Instant::now(), rows: 0 }
    }

    /// Part of the input was done by an earlier run.
    pub fn pass_over(&mut self, cost: u64) {
        self.bar.inc(cost);
        // Nothing of the time left is known yet.
        self.bar.reset_eta();
        self.start = Instant::now();
    }

    /// Features were written.
    pub fn add(&mut self, rows: usize, cost: u64) {
        self.rows += rows;
        let rate = self.rows as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
        self.bar.set_message(format!("{} {}, {rate:.1} a second", self.rows, self.what));
        self.bar.inc(cost);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
