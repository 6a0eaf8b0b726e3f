//! Training over MPI: `mpirun` starts one process for each rank.
//!
//! Needs Open MPI, and the feature `mpi`.

#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cn_clip::model::checkpoint::Checkpoint;
use golden::{norm_error, without_gradient};

/// `mpirun` with this many ranks, of one core each if there are enough.
fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"])
        .arg(ranks.to_string())
        .arg(env!("CARGO_BIN_EXE_cn-clip"));
    command
}

/// Arguments of a run with this many pairs on each rank, from weights of which none is zero.
fn arguments(directory: &Path, name: &str, batch: usize, more: &[&str]) -> Vec<String> {
    let mut args = tiny::train(directory, more);
    let replaced = ["--batch-size", "--logs", "--vision-model", "--text-model"];
    args.retain(|arg| !replaced.iter().any(|name| arg.starts_with(name)));
    let text = fs::read(golden::fixture("model/vit_tiny/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let path = directory.join("vit_tiny.json");
    fs::write(&path, config["model_config"].to_string()).unwrap();
    args.push(tiny::flag("vision-model", &path));
    args.push(tiny::flag("text-model", &path));
    args.push(tiny::flag("resume", &golden::fixture("model/vit_tiny/checkpoint_fp16.pt")));
    args.extend(["--reset-optimizer", "--reset-data-offset"].map(str::to_string));
    // Adam divides a gradient by its own size. Where the terms of a sum over samples cancel, what is
    // left is rounding, which the order of the sum decides: epsilon is above it here.
    args.push("--eps=1e-5".to_string());
    args.push(format!("--batch-size={batch}"));
    args.push(format!("--name={name}"));
    args.push(tiny::flag("logs", &directory.join("logs")));
    args
}

fn weights(directory: &Path, name: &str) -> Vec<(String, Vec<f32>)> {
    let path = directory.join("logs").join(name).join("checkpoints/epoch_latest.pt");
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |(key, tensor): &(String, _)| {
        let tensor: &cn_clip::model::checkpoint::LazyTensor = tensor;
        (key.clone(), tensor.read().unwrap())
    };
    checkpoint.state_dict.iter().map(read).collect()
}

#[test]
fn ranks_end_with_the_weights_of_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let steps = ["--max-steps=20"];
    let checkpointed = [&steps[..], &["--grad-checkpointing"]].concat();
    let accumulated = [&checkpointed[..], &["--accum-freq=2"]].concat();
    run::succeed(arguments(directory, "one", 4, &steps));
    // An epoch is filled up to whole batches: two of them to a step make another run.
    run::succeed(arguments(
        directory,
        "one-accumulated",
        4,
        &[&steps[..], &["--accum-freq=2"]].concat(),
    ));
    for (ranks, name, one, more) in [
        (2, "two", "one", &checkpointed),
        (4, "four", "one", &steps.to_vec()),
        (2, "two-accumulated", "one-accumulated", &accumulated),
        (4, "four-accumulated", "one-accumulated", &accumulated),
    ] {
        let expected = weights(directory, one);
        let output = mpirun(ranks).args(arguments(directory, name, 4 / ranks, more)).output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains(&format!("world_size: {ranks}")), "{errors}");
        let global = if one == "one" { 4 } else { 8 };
        assert!(errors.contains(&format!("Global Batch Size: {global}")), "{errors}");
        for ((key, ours), (_, one)) in weights(directory, name).iter().zip(&expected) {
            let random = without_gradient(key, one.len());
            let rest = |values: &[f32]| [&values[..random.start], &values[random.end..]].concat();
            let error = norm_error(&rest(ours), &rest(one));
            assert!(rest(one).is_empty() || error < 1e-5, "{ranks} ranks, {key}: {error:e}");
        }
    }
}

/// Children of a process, as the system lists them.
fn children(parent: u32) -> Vec<u32> {
    let output = Command::new("pgrep").args(["-P", &parent.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Whether a process is there and not only waits to be forgotten.
fn is_running(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains("zombie"))
}

#[test]
fn a_killed_rank_ends_all_and_leaves_the_last_checkpoint_whole() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let more = ["--max-steps=1000000", "--save-step-frequency=3", "--keep-checkpoints=2"];
    let mut child = mpirun(2)
        .args(arguments(directory, "killed", 2, &more))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let latest = directory.join("logs/killed/checkpoints/epoch_latest.pt");
    let began = Instant::now();
    while !latest.is_file() {
        assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint");
        thread::sleep(Duration::from_millis(50));
    }
    let ranks = children(child.id());
    assert_eq!(ranks.len(), 2);
    let killed = Instant::now();
    assert!(Command::new("kill").args(["-9", &ranks[1].to_string()]).status().unwrap().success());
    let output = child.wait().map(|status| (status, killed.elapsed())).unwrap();
    assert!(!output.0.success());
    assert!(output.1 < Duration::from_secs(30), "{:?}", output.1);
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut errors).unwrap();
    assert!(errors.contains("rank 1") && errors.contains("signal 9"), "{errors}");
    while ranks.iter().any(|rank| is_running(*rank)) {
        assert!(killed.elapsed() < Duration::from_secs(30), "a rank still runs");
        thread::sleep(Duration::from_millis(50));
    }
    let checkpoint = Checkpoint::open(&latest).unwrap();
    assert!(checkpoint.progress.step >= 3 && checkpoint.optimizer.is_some());
    let folder = fs::read_dir(latest.parent().unwrap()).unwrap();
    let numbered = folder.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with("epoch") && name != "epoch_latest.pt"
    });
    assert!(numbered.count() <= 3, "two are kept, one may be new");
}

#[test]
fn an_error_on_one_rank_ends_all_with_its_message() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // Too many pairs for the data set when there are two ranks.
    let began = Instant::now();
    let output = mpirun(2).args(arguments(directory, "large", 8, &[])).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(errors.contains("failed: a step takes 16 pairs"), "{errors}");
    assert!(errors.contains("times ranks"), "{errors}");
}
