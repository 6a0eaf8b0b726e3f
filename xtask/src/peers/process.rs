//! A contender in a process of its own that waits for work.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, bail};
use cn_clip_model::Precision;
use serde::{Deserialize, Serialize};

use super::{
    Setting,
    cases::{Contender, Work},
    own, script,
};

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub case: Work,
    /// File for the outputs, 32-bit floats.
    pub output: Option<String>,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Seconds of the work.
    pub seconds: f64,
    /// Most memory it has held.
    pub peak_mib: f64,
}

/// The process.
pub struct Worker {
    child: Child,
    /// Its end tells the worker to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one.
    pub fn start(setting: &Setting, contender: Contender) -> anyhow::Result<Self> {
        let mut command = command(setting, contender)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a process without output")?;
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// Does it once.
    pub fn run(&mut self, work: &Work, output: Option<&Path>) -> anyhow::Result<Answer> {
        let output = output.map(|path| path.display().to_string());
        let mut line = serde_json::to_string(&Request { case: work.clone(), output })?;
        line.push('\n');
        let input = self.input.as_mut().context("a process without input")?;
        input.write_all(line.as_bytes()).context("telling a contender what to do")?;
        input.flush().context("telling a contender what to do")?;
        line.clear();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a contender ended: {}", self.child.wait()?);
        }
        serde_json::from_str(&line)
            .with_context(|| format!("reading what a contender says: {line}"))
    }

    /// The outputs of some runs.
    pub fn outputs(
        &mut self,
        work: &Work,
        contender: Contender,
        setting: &Setting,
        runs: usize,
    ) -> anyhow::Result<Vec<f32>> {
        let path = setting.directory.join(format!("{contender}.f32"));
        let mut values = Vec::new();
        for _ in 0..runs {
            self.run(work, Some(&path))?;
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            values.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Ok(values)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.input.take());
        // Nothing is left to be told if it cannot be waited for.
        let _ = self.child.wait();
    }
}

/// A worker, to be completed.
pub fn command(setting: &Setting, contender: Contender) -> anyhow::Result<Command> {
    let mut command = match contender {
        Contender::Ours | Contender::OursInt16 => {
            let mut command = Command::new(own()?);
            command.arg("peers-worker");
            let precision = if contender.is_reduced() { Precision::Int16 } else { Precision::Fp32 };
            command.arg(format!("--precision={precision}"));
            command
        }
        _ => {
            let mut command = script(&setting.python, "worker.py");
            command.arg(format!("--contender={contender}"));
            command.arg(format!("--threads={}", setting.threads));
            command
        }
    };
    command.arg("--directory").arg(&setting.directory);
    Ok(command)
}
