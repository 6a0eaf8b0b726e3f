//! `cn-clip devices`: what this build can compute on here, each with a short self-test.

mod self_test;

use std::{
    env, fs,
    io::Read,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_model::DeviceSpec;
use serde::{Deserialize, Serialize};

use super::print;

/// Flags of `cn-clip devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Seconds after which a device that does not answer is given up; the first use of a graphics
    /// processor compiles its kernels
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Test this device only, in this process
    #[arg(long, value_name = "DEVICE", hide = true)]
    self_test: Option<DeviceSpec>,
}

/// A device and how it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Report {
    /// What `--device` takes.
    device: String,
    name: Option<String>,
    memory_bytes: Option<u64>,
    dtypes: Vec<String>,
    /// Pictures per second of a small ViT in fp32.
    pictures_per_second: Option<f64>,
    /// Seconds of its first pass, in which kernels may be compiled.
    first_pass_seconds: Option<f64>,
    /// Largest difference of features from those of the processor, by the largest feature.
    error: Option<f64>,
    /// Why there is no result.
    failure: Option<String>,
}

/// Lists the devices.
pub fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    if let Some(spec) = args.self_test {
        let report = self_test::run(spec)?;
        return print(&format!("{}\n", serde_json::to_string(&report)?));
    }
    let limit = Duration::from_secs(args.timeout);
    let reports: Vec<Report> =
        DeviceSpec::available().into_iter().map(|spec| report(spec, limit)).collect();
    match args.json {
        true => print(&format!("{}\n", serde_json::to_string_pretty(&reports)?)),
        false => print(&table(&reports)),
    }
}

/// Tests a device in a process of its own: a driver may end that, or hang.
fn report(spec: DeviceSpec, limit: Duration) -> Report {
    let tested = || -> anyhow::Result<Report> {
        let mut command = Command::new(env::current_exe().context("finding this program")?);
        command.args(["devices", "--self-test", &spec.to_string()]).env("RUST_BACKTRACE", "0");
        Ok(serde_json::from_slice(&answer(command, limit)?)?)
    };
    let mut report = tested().unwrap_or_else(|error| Report::failed(spec, &error));
    if spec.is_host() {
        report.name = report.name.or_else(|| proc_field("/proc/cpuinfo", "model name"));
        let kibibytes = proc_field("/proc/meminfo", "MemTotal");
        let kibibytes = kibibytes.and_then(|text| text.trim_end_matches(" kB").parse().ok());
        report.memory_bytes = report.memory_bytes.or(kibibytes.map(|count: u64| count * 1024));
    }
    report
}

/// Standard output of a program that must succeed in time.
fn answer(mut command: Command, limit: Duration) -> anyhow::Result<Vec<u8>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting the self-test")?;
    let output = child.stdout.take().map(collect);
    let messages = child.stderr.take().map(collect);
    let status = wait(&mut child, limit)?;
    let joined = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    match status {
        None => bail!("no answer in {} s", limit.as_secs()),
        Some(status) if !status.success() => {
            let messages = joined(messages);
            let reason = reason(&String::from_utf8_lossy(&messages));
            bail!("{}", reason.unwrap_or_else(|| status.to_string()))
        }
        Some(_) => Ok(joined(output)),
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is all there is to show.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// The status of a process that ended in time; any other is ended.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("waiting for the self-test")? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill().context("ending the self-test")?;
            child.wait().context("ending the self-test")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The error, or the message of a panic, among what a process wrote.
fn reason(messages: &str) -> Option<String> {
    let mut lines = messages.lines();
    if let Some(error) = messages.lines().find_map(|line| line.strip_prefix("error: ")) {
        return Some(error.to_string());
    }
    if lines.any(|line| line.contains("panicked at")) {
        return lines.next().map(|line| format!("panicked: {line}"));
    }
    messages.lines().rfind(|line| !line.trim().is_empty()).map(str::to_string)
}

/// A field of a file of the form `key: value`, where the system has such.
fn proc_field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix(':'))?;
    Some(value.trim().to_string())
}

fn table(reports: &[Report]) -> String {
    let heading = ["device", "name", "memory", "dtypes", "pictures/s", "first pass", "error"];
    let mut rows = vec![heading.map(str::to_string).to_vec()];
    rows.extend(reports.iter().map(Report::row));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..heading.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (row, report) in rows.iter().zip(std::iter::once(None).chain(reports.iter().map(Some))) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if let Some(failure) = report.and_then(|report| report.failure.as_deref()) {
            text.push_str(&format!("  failed: {failure}\n"));
        }
    }
    text
}

impl Report {
    fn failed(spec: DeviceSpec, error: &anyhow::Error) -> Self {
        Self {
            device: spec.to_string(),
            name: None,
            memory_bytes: None,
            dtypes: Vec::new(),
            pictures_per_second: None,
            first_pass_seconds: None,
            error: None,
            failure: Some(format!("{error:#}")),
        }
    }

    fn row(&self) -> Vec<String> {
        let unknown = || "unknown".to_string();
        let gibibytes = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_string());
        vec![
            self.device.clone(),
            self.name.clone().unwrap_or_else(unknown),
            self.memory_bytes.map_or_else(unknown, gibibytes),
            if self.dtypes.is_empty() { "-".to_string() } else { self.dtypes.join(" ") },
            or_dash(self.pictures_per_second.map(|rate| format!("{rate:.1}"))),
            or_dash(self.first_pass_seconds.map(|seconds| format!("{seconds:.2} s"))),
            or_dash(self.error.map(|error| format!("{error:.1e}"))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    #[cfg(unix)]
    fn a_device_that_panics_dies_or_hangs_is_a_reason() {
        let limit = Duration::from_secs(20);
        assert_eq!(answer(shell("echo yes"), limit).unwrap(), b"yes\n");
        for (script, expected) in [
            (
                "echo \"thread 'main' panicked at a.rs:1:2:\nno kernel\nnote: run\" >&2; exit 101",
                "panicked: no kernel",
            ),
            (
                "echo 'warning: x' >&2; echo 'error: device `cuda`: none' >&2; exit 1",
                "device `cuda`: none",
            ),
            ("echo 'libcuda.so: not found\n' >&2; exit 127", "libcuda.so: not found"),
            ("kill -SEGV $$", "signal: 11 (SIGSEGV)"),
        ] {
            let error = answer(shell(script), limit).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = answer(shell("exec sleep 100"), Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "no answer in 0 s");
    }

    #[test]
    fn failures_are_listed_beside_the_others() {
        let good = Report {
            device: "cpu".into(),
            name: Some("A processor".into()),
            memory_bytes: Some(3 << 29),
            dtypes: vec!["fp32".into(), "bf16".into()],
            pictures_per_second: Some(12.34),
            first_pass_seconds: Some(0.5),
            error: Some(1.5e-7),
            failure: None,
        };
        let bad = Report::failed("cuda:0".parse().unwrap(), &anyhow::anyhow!("no answer in 9 s"));
        let text = table(&[good, bad]);
        let lines: Vec<&str> = text.lines().collect();
        let columns = |line: &str| line.split("  ").filter(|cell| !cell.is_empty()).count();
        assert_eq!((lines.len(), columns(lines[0]), columns(lines[1])), (4, 7, 7));
        for part in ["A processor", "1.5 GiB", "fp32 bf16", "12.3", "0.50 s", "1.5e-7"] {
            assert!(lines[1].contains(part), "{part} in {}", lines[1]);
        }
        assert!(lines[2].starts_with("cuda:0") && lines[2].contains("unknown"));
        assert_eq!(lines[3], "  failed: no answer in 9 s");
    }
}
