//! Whole programs, from start to end.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::{
    PAUSE, Setting,
    cases::{Case, Contender, Program},
    compare,
    inputs::captions,
    process,
    report::Timing,
};
use crate::{memory::watch, release};

/// Runs the contenders in turn; the first outputs are compared.
pub fn run(
    setting: &Setting,
    program: Program,
    case: &Case,
    alternations: usize,
) -> anyhow::Result<Vec<Timing>> {
    let mut timings: Vec<Timing> =
        case.contenders.iter().map(|contender| Timing::new(*contender, 0.0)).collect();
    for round in 0..alternations {
        let mut outputs = vec![Vec::new(); timings.len()];
        for turn in 0..timings.len() {
            let index = (turn + round) % timings.len();
            let contender = case.contenders[index];
            thread::sleep(PAUSE);
            let mut command = command(setting, program, contender)?;
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let start = Instant::now();
            let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
            let peak_mib = watch(&mut child)?;
            let output = child.wait_with_output()?;
            let seconds = start.elapsed().as_secs_f64();
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                bail!("{command:?} failed: {}\n{errors}", output.status);
            }
            timings[index].add(seconds, peak_mib);
            outputs[index] = match program {
                Program::Start => probabilities(&String::from_utf8_lossy(&output.stdout))?,
                Program::Extract => {
                    features(&setting.directory.join(format!("{contender}.jsonl")))?
                }
            };
        }
        if round == 0 {
            for (timing, error) in timings.iter_mut().zip(compare(case, &outputs)?) {
                timing.error = error;
            }
        }
    }
    Ok(timings)
}

fn command(setting: &Setting, program: Program, contender: Contender) -> anyhow::Result<Command> {
    if contender != Contender::Ours {
        let mut command = process::command(setting, contender)?;
        command.arg(match program {
            Program::Extract => "--once=extract",
            Program::Start => "--once=start",
        });
        return Ok(command);
    }
    let directory = &setting.directory;
    let mut command = Command::new(release::program()?);
    match program {
        Program::Extract => {
            command.args(["extract-features", "--extract-image-feats"]);
            command.arg("--image-data").arg(directory.join("lmdb/pictures/imgs"));
            command.arg("--image-feat-output-path").arg(directory.join("ours.jsonl"));
            command.arg("--resume").arg(directory.join("weights.pt"));
        }
        Program::Start => {
            command.arg("similarity").arg(directory.join("pictures/0000.jpg"));
            for text in captions()?.iter().take(2) {
                command.arg("--text").arg(text);
            }
            command.arg("--checkpoint").arg(directory.join("weights.pt"));
        }
    }
    Ok(command)
}

/// The two numbers, of a JSON list or the first words of indented lines.
fn probabilities(text: &str) -> anyhow::Result<Vec<f32>> {
    if text.starts_with('[') {
        return Ok(serde_json::from_str(text)?);
    }
    let lines = text.lines().filter(|line| line.starts_with(' '));
    let values = lines.map(|line| line.split_whitespace().next().unwrap_or_default().parse());
    let values: Vec<f32> = values.collect::<Result<_, _>>().context("reading similarities")?;
    ensure!(values.len() == 2, "not two similarities: {text}");
    Ok(values)
}

/// All features of a file, by their ids.
fn features(path: &Path) -> anyhow::Result<Vec<f32>> {
    #[derive(Deserialize)]
    struct Line {
        image_id: u64,
        feature: Vec<f32>,
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(serde_json::from_str::<Line>);
    let rows: BTreeMap<u64, Vec<f32>> = lines
        .map(|line| line.map(|line| (line.image_id, line.feature)))
        .collect::<Result<_, _>>()
        .with_context(|| path.display().to_string())?;
    Ok(rows.into_values().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarities_of_both_programs() {
        assert_eq!(probabilities("[0.25, 0.75]\n").unwrap(), [0.25, 0.75]);
        assert_eq!(probabilities("a.jpg\n  0.25  一\n  0.75  二\n").unwrap(), [0.25, 0.75]);
        assert!(probabilities("a.jpg\n  0.25  一\n").is_err());
        assert!(probabilities("a.jpg\n  x  一\n").is_err());
    }

    #[test]
    fn features_in_order_of_ids() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("features.jsonl");
        let line = |id: u64, value: f32| format!("{{\"image_id\":{id},\"feature\":[{value}]}}\n");
        fs::write(&path, line(10, 3.0) + &line(9, 2.0) + &line(1, 1.0)).unwrap();
        assert_eq!(features(&path).unwrap(), [1.0, 2.0, 3.0]);
    }
}
