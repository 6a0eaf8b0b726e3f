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
    rank: usize,
    file: Option<(PathBuf, File)>,
    params: Option<PathBuf>,
    bar: ProgressBar,
}

impl RunLog {
    /// Opens the log of a run; without a directory lines go to standard error alone. Ranks other
    /// than 0 keep none.
    pub fn open(config: &TrainConfig, rank: usize) -> Result<Self, TrainError> {
        let console = config.console && rank == 0;
        let bar = match config.progress && rank == 0 {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let Some(directory) = config.directory().filter(|_| rank == 0) else {
            return Ok(Self { console, rank, file: None, params: None, bar });
        };
        fs::create_dir_all(&directory).map_err(TrainError::io(&directory))?;
        let time = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let path = directory.join(format!("out_{time}.log"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(TrainError::io(&path))?;
        let params = Some(directory.join(format!("params_{time}.txt")));
        Ok(Self { console, rank, file: Some((path, file)), params, bar })
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
        let line = format!("{time} | {level} | Rank {} | {message}", self.rank);
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

    /// What the Python program says of towers that are not trained, or not as a whole.
    pub fn towers(&self, config: &TrainConfig) {
        for (frozen, blocks, name) in [
            (config.freeze_vision, config.unlocked_vision_blocks, "visual"),
            (config.freeze_text, config.unlocked_text_blocks, "text"),
        ] {
            match blocks {
                _ if !frozen => {}
                0 => self.info(&format!("The {name} encoder is freezed during training.")),
                blocks => self.info(&format!(
                    "The {name} encoder is freezed during training but for its last {blocks} blocks."
                )),
            }
        }
        if config.grad_checkpointing {
            self.info("Grad-checkpointing activated.");
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
