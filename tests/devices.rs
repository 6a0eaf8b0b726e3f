//! `cn-clip devices` as a user runs it.

#![allow(clippy::unwrap_used)]

#[path = "support/run.rs"]
mod run;

use run::run;
use serde_json::Value;

#[test]
fn the_processor_is_listed_and_tested() {
    let output = run(["devices", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let devices: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let cpu = devices.iter().find(|device| device["device"] == "cpu").unwrap();
    assert_eq!(cpu["failure"], Value::Null);
    assert_eq!(cpu["error"], 0.0);
    assert!(cpu["pictures_per_second"].as_f64().unwrap() > 0.0);
    assert!(cpu["dtypes"].as_array().unwrap().contains(&"fp32".into()));
    if cfg!(target_os = "linux") {
        assert!(cpu["memory_bytes"].as_u64().unwrap() > 1 << 20);
    }

    let output = run(["devices"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().next().unwrap().starts_with("device"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("cpu ")), "{text}");
}

#[test]
fn a_timeout_of_no_seconds_is_misuse() {
    assert_eq!(run(["devices", "--timeout=0"]).status.code(), Some(2));
}
