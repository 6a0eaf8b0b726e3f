//! The machine that figures were taken on.

use std::{fs, thread};

use serde::{Deserialize, Serialize};

/// What matters of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub processor: String,
    /// Threads that can run at a time.
    pub threads: usize,
    /// Sets of vector instructions.
    pub vectors: Vec<String>,
    /// System and architecture.
    pub system: String,
    /// Processes that wanted to run during the last minute, on average.
    pub load: Option<f64>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line = info.lines().find(|line| line.starts_with(key))?;
            line.split_once(':').map(|(_, value)| value.trim())
        };
        let number = |key| value(key).unwrap_or("?");
        let name = value("model name").unwrap_or(std::env::consts::ARCH);
        let flags: Vec<&str> = value("flags").unwrap_or_default().split(' ').collect();
        let known = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"];
        let load = fs::read_to_string("/proc/loadavg").ok();
        Self {
            processor: format!(
                "{name} (family {}, model {})",
                number("cpu family"),
                number("model\t")
            ),
            threads: thread::available_parallelism().map_or(0, usize::from),
            vectors: known
                .iter()
                .filter(|flag| flags.contains(flag))
                .map(ToString::to_string)
                .collect(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load: load.and_then(|load| load.split(' ').next()?.parse().ok()),
        }
    }

    /// On one line.
    pub fn line(&self) -> String {
        let Self { processor, threads, system, .. } = self;
        let load = self.load.map_or(String::new(), |load| format!(", load {load:.1} at the start"));
        format!("{processor}, {threads} threads, {}, {system}{load}", self.vectors.join(" "))
    }
}
