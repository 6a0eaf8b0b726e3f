//! One set of checks, the same on every device: what towers, losses, training steps, extraction and
//! search compute beside what was recorded of the Python program.

mod checks;
#[allow(clippy::unwrap_used)]
#[path = "../../../tests/support/golden.rs"]
mod golden;
mod search;
#[allow(clippy::unwrap_used)]
#[path = "../../../tests/support/steps.rs"]
mod steps;
mod tolerance;
#[allow(clippy::unwrap_used)]
#[path = "../../../tests/support/towers.rs"]
mod towers;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args;
use cn_clip_model::{DeviceSpec, Precision, device};
use serde::Serialize;

use checks::{CHECKS, Check, Place};
use golden::Errors;
use tolerance::tolerance;

/// Flags of `cargo xtask parity`.
#[derive(Debug, Args)]
pub struct ParityArgs {
    /// Device to check, one of this build
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Precisions to check, repeated or with commas [default: all that the device supports]
    #[arg(long, value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Only checks with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// Write the measured errors as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What one check has found.
#[derive(Debug, Serialize)]
struct Outcome {
    check: &'static str,
    precision: String,
    /// Measured error; none where the device failed.
    error: Option<f32>,
    /// Error that is allowed.
    tolerance: f32,
    /// Where the error is largest, or how the device failed.
    at: String,
    seconds: f64,
}

impl Outcome {
    fn holds(&self) -> bool {
        self.error.is_some_and(|error| error <= self.tolerance)
    }

    fn line(&self) -> String {
        let error = self.error.map_or("failed".to_string(), |error| format!("{error:.1e}"));
        let mark = if self.holds() { "" } else { "  <- FAILS" };
        format!(
            "{:<5} {:<32} {error:>8} {:>8.0e} {:>6.1} s  {}{mark}",
            self.precision, self.check, self.tolerance, self.seconds, self.at
        )
    }
}

/// Runs the checks; an error if one of them does not hold.
pub fn run(args: &ParityArgs) -> anyhow::Result<()> {
    let device = args.device.open()?;
    // Fp32 on the processor is what the recordings themselves are checked by in the tests.
    let reference = DeviceSpec::CPU.open()?;
    let precisions = match &args.precision[..] {
        [] => Precision::supported(&device),
        chosen => chosen.to_vec(),
    };
    if let Some(precision) = precisions.iter().find(|precision| !precision.is_supported(&device)) {
        bail!("{} does not compute in {precision}", args.device);
    }
    let (name, _) = device::identity(&device);
    println!("{}: {}", args.device, name.as_deref().unwrap_or("unnamed"));
    println!("{:<5} {:<32} {:>8} {:>8} {:>8}  largest at", "", "check", "error", "allowed", "time");
    let mut outcomes = Vec::new();
    for precision in precisions {
        let checks = CHECKS.iter().filter(|check| check.name.contains(&args.only));
        for check in checks.filter(|check| check.is_for(precision)) {
            let outcome = measure(check, args.device, &device, &reference, precision);
            println!("{}", outcome.line());
            outcomes.push(outcome);
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&outcomes)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    verdict(&outcomes)
}

fn verdict(outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed: Vec<&str> =
        outcomes.iter().filter(|outcome| !outcome.holds()).map(|outcome| outcome.check).collect();
    match (&failed[..], outcomes) {
        (_, []) => bail!("no check has such a name"),
        ([], _) => {
            println!("all {} checks hold", outcomes.len());
            Ok(())
        }
        _ => bail!("{} of {} checks fail: {}", failed.len(), outcomes.len(), failed.join(", ")),
    }
}

fn measure(
    check: &Check,
    spec: DeviceSpec,
    device: &Device,
    reference: &Device,
    precision: Precision,
) -> Outcome {
    let start = Instant::now();
    let place = Place { device, host: spec.is_host(), reference, precision };
    // Backends report what they cannot do by panics.
    let found = catch_unwind(AssertUnwindSafe(|| (check.run)(&place)));
    let (error, at) = match found {
        Ok(errors) => judge(&errors, precision),
        Err(panic) => (None, message(&*panic)),
    };
    Outcome {
        check: check.name,
        precision: precision.to_string(),
        error,
        tolerance: tolerance(check.kind, precision, spec.kind()),
        at,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// In 32 bits the largest error of a tensor; in 16, where single small tensors are mostly rounding,
/// that of all of them together.
fn judge(errors: &Errors, precision: Precision) -> (Option<f32>, String) {
    match (precision, errors.worst()) {
        (Precision::Fp32, (name, error)) => (Some(error), name.to_string()),
        (_, (_, error)) if !error.is_finite() => (Some(error), "not finite".to_string()),
        _ => (Some(errors.overall()), "all tensors together".to_string()),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
    // The cause is in the last line.
    let text: Vec<&str> = text.lines().map(str::trim).collect();
    format!("panicked: {}", text.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(checks: &[Check]) -> Vec<Outcome> {
        let device = DeviceSpec::CPU.open().unwrap();
        let measured = Precision::supported(&device).into_iter().flat_map(|precision| {
            let checks = checks.iter().filter(move |check| check.is_for(precision));
            let device = device.clone();
            checks.map(move |check| measure(check, DeviceSpec::CPU, &device, &device, precision))
        });
        measured.collect()
    }

    #[test]
    fn every_check_holds_on_the_processor() {
        let outcomes = outcomes(&CHECKS);
        for outcome in &outcomes {
            println!("{}", outcome.line());
            assert!(outcome.holds(), "{}", outcome.line());
        }
        assert!(outcomes.iter().any(|outcome| outcome.precision == "bf16"));
        assert!(verdict(&outcomes).is_ok());
    }

    #[test]
    fn wrong_results_and_panics_fail() {
        let wrong = |_: &Place<'_>| {
            let mut errors = Errors::default();
            errors.add("right", &[1.0], &[1.0]);
            errors.add("wrong", &[1.0, 2.1], &[1.0, 2.0]);
            errors
        };
        let infinite = |_: &Place<'_>| {
            let mut errors = Errors::default();
            errors.add("nan", &[f32::NAN], &[1.0]);
            errors
        };
        let forward = tolerance::Kind::Forward;
        let checks = [
            Check::new("wrong", forward, wrong),
            Check::new("nan", forward, infinite),
            Check::new("panic", forward, |_| panic!("no kernel\n  for such shapes")).fp32(),
            Check::new("empty", forward, |_| Errors::default()).fp32(),
        ];
        let outcomes = outcomes(&checks);
        assert!(outcomes.iter().all(|outcome| !outcome.holds()), "{outcomes:?}");
        assert_eq!(outcomes[0].at, "wrong");
        assert!((outcomes[0].error.unwrap() - 0.05).abs() < 1e-6);
        assert_eq!(
            (outcomes[2].error, &*outcomes[2].at),
            (None, "panicked: no kernel for such shapes")
        );
        assert!(outcomes[2].line().contains("FAILS"));
        let error = verdict(&outcomes).unwrap_err().to_string();
        assert!(error.contains("wrong, nan, panic, empty"), "{error}");
        assert!(verdict(&[]).is_err());
    }
}
