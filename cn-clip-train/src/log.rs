//! Log files in the form of the Python program: `out_<time>.log` and `params_<time>.txt`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{Timestamp, Zoned};

use crate::{TrainConfig, TrainError};

/// Writes each line to the log file and to standard error.
pub struct RunLog {
    console: bool,
    file: Option<(PathBuf, File)>,
    params: Option<PathBuf>,
    bar: ProgressBar,
}

impl RunLog {
    /// Opens the log of a run; without a directory lines go to standard error alone.
    pub fn open(config: &TrainConfig) -> Result<Self, TrainError> {
        let bar = match config.progress {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let Some(directory) = config.directory() else {
            return Ok(Self { console: config.console, file: None, params: None, bar });
        };
        fs::create_dir_all(&directory).map_err(TrainError::io(&directory))?;
        let time = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let path = directory.join(format!("out_{time}.log"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(TrainError::io(&path))?;
        let params = Some(directory.join(format!("params_{time}.txt")));
        Ok(Self { console: config.console, file: Some((path, file)), params, bar })
    }

    /// One line.
    pub fn info(&self, message: &str) {
        self.line("INFO", message);
    }

    /// One line that deserves attention.
    pub fn warning(&self, message: &str) {
        self.line("WARNING", message);
    }

    fn line(&self, level: &str, message: &str) {
        let time = Zoned::now().strftime("%Y-%m-%d,%H:%M:%S").to_string();
        let line = format!("{time} | {level} | Rank 0 | {message}");
        // The run matters more than its log: a full disk shows when a checkpoint is saved.
        if self.console {
            let _ = self.bar.suspend(|| writeln!(io::stderr(), "{line}"));
        }
        if let Some((_, file)) = &self.file {
            let mut file: &File = file;
            let _ = writeln!(file, "{line}");
        }
    }

    /// The parameters, into the log and into `params_<time>.txt`.
    pub fn params(&self, lines: &[(&'static str, String)]) -> Result<(), TrainError> {
        self.info("Params:");
        let mut text = String::new();
        for (name, value) in lines {
            self.info(&format!("  {name}: {value}"));
            text.push_str(&format!("{name}: {value}\n"));
        }
        match &self.params {
            Some(path) => fs::write(path, text).map_err(TrainError::io(path)),
            None => Ok(()),
        }
    }

    /// Starts the progress bar at `step` of `total`.
    pub fn start(&self, step: u64, total: u64) {
        let style = "{bar:30} {pos}/{len} steps | {per_sec} | {eta} left | {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
        self.bar.set_length(total);
        self.bar.set_position(step);
        self.bar.reset_eta();
    }

    /// Moves the progress bar.
    pub fn advance(&self, step: u64, loss: f32) {
        self.bar.set_position(step);
        self.bar.set_message(format!("loss {loss:.4}"));
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
