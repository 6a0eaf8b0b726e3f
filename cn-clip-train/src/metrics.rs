//! Numbers of a run for other programs: `metrics.jsonl` and TensorBoard event files.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{TrainConfig, TrainError, tensorboard::EventFile};

/// Name of the file in the directory of a run.
pub const METRICS: &str = "metrics.jsonl";

/// Writes numbers; on ranks other than 0, and without a directory, nowhere.
pub struct Metrics {
    files: Option<(PathBuf, File, EventFile)>,
}

impl Metrics {
    /// Opens the files of a run that begins after `step` steps. Lines of later steps, left by a
    /// run that is now continued from an earlier checkpoint, are removed.
    pub fn open(config: &TrainConfig, rank: usize, step: u64) -> Result<Self, TrainError> {
        let Some(directory) = config.directory().filter(|_| rank == 0) else {
            return Ok(Self { files: None });
        };
        let path = directory.join(METRICS);
        let failed = || TrainError::io(&path);
        if let Ok(old) = File::open(&path) {
            let mut kept = String::new();
            for line in BufReader::new(old).lines() {
                let line = line.map_err(failed())?;
                let value: Option<Value> = serde_json::from_str(&line).ok();
                let at = value.and_then(|value| value.get("step")?.as_u64());
                if at.is_some_and(|at| at <= step) && step > 0 {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
            let partial = directory.join(format!(".{METRICS}.partial"));
            fs::write(&partial, kept).map_err(TrainError::io(&partial))?;
            fs::rename(&partial, &path).map_err(failed())?;
        }
        let file = File::options().create(true).append(true).open(&path).map_err(failed())?;
        let events = EventFile::create(&directory)?;
        Ok(Self { files: Some((path, file, events)) })
    }

    /// Writes numbers of a kind (`train`, `valid`); what is not finite is left out.
    pub fn write(
        &mut self,
        kind: &str,
        step: u64,
        epoch: u64,
        numbers: &[(&str, f64)],
    ) -> Result<(), TrainError> {
        let Some((path, file, events)) = &mut self.files else { return Ok(()) };
        let mut line = Map::new();
        line.insert("kind".to_string(), kind.into());
        line.insert("step".to_string(), step.into());
        line.insert("epoch".to_string(), epoch.into());
        line.insert("time".to_string(), Timestamp::now().to_string().into());
        let finite = numbers.iter().filter(|(_, value)| value.is_finite());
        let finite: Vec<(&str, f64)> = finite.copied().collect();
        line.extend(finite.iter().map(|(name, value)| (name.to_string(), (*value).into())));
        let line = format!("{}\n", Value::Object(line));
        file.write_all(line.as_bytes()).map_err(TrainError::io(&*path))?;
        events.scalars(kind, step, &finite)
    }
}

/// Memory that this process holds now, in MiB, where the system tells.
pub fn memory_mib() -> Option<f64> {
    status_mib("VmRSS:")
}

/// Most memory that this process has held, in MiB, where the system tells.
pub fn peak_memory_mib() -> Option<f64> {
    status_mib("VmHWM:")
}

fn status_mib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continued_run_drops_the_lines_it_writes_again() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            TrainConfig { logs: Some(directory.path().to_path_buf()), ..TrainConfig::default() };
        let run = config.directory().unwrap();
        fs::create_dir(&run).unwrap();
        let steps = || -> Vec<(u64, f64)> {
            let text = fs::read_to_string(run.join(METRICS)).unwrap();
            let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            values.map(|v| (v["step"].as_u64().unwrap(), v["loss"].as_f64().unwrap())).collect()
        };
        let write = |from: u64, to: u64, loss: f64| {
            let mut metrics = Metrics::open(&config, 0, from).unwrap();
            for step in from + 1..=to {
                metrics.write("train", step, 1, &[("loss", loss), ("other", f64::NAN)]).unwrap();
            }
        };
        write(0, 3, 2.0);
        write(2, 4, 1.0);
        assert_eq!(steps(), [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]);
        write(0, 1, 5.0);
        assert_eq!(steps(), [(1, 5.0)]);
        // Other ranks write nothing.
        Metrics::open(&config, 1, 0).unwrap().write("train", 1, 1, &[("loss", 0.0)]).unwrap();
        assert_eq!(steps(), [(1, 5.0)]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_known() {
        let (now, peak) = (memory_mib().unwrap(), peak_memory_mib().unwrap());
        assert!(now > 1.0 && peak >= now * 0.5);
    }
}
