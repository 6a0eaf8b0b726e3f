//! `cn-clip serve` as a user runs it.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use golden::fixture;
use run::{fail, run, succeed};
use tiny::{flag, towers, weights};

/// A running server, killed when a test fails.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(program: &str, args: &[String]) -> Self {
        let mut child = Command::new(program)
            .args(args)
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let mut server = Self { child, output, address: String::new() };
        match line.trim().strip_prefix("http://").and_then(|line| line.strip_suffix('/')) {
            Some(address) => server.address = address.to_string(),
            None => panic!("{line:?} {}", server.errors()),
        }
        server
    }

    fn errors(&mut self) -> String {
        let _ = self.child.kill();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        errors
    }

    /// Sends a request; returns status and body.
    fn send(&self, head: &str, body: &str) -> (u16, serde_json::Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// Asks it to end, and expects that it does so well, with nothing more to say.
    fn stop(mut self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    }
}

fn arguments(directory: &Path, more: &[&str]) -> Vec<String> {
    let mut args = vec![
        "serve".to_string(),
        flag("checkpoint", &weights()),
        flag("image-feats", &fixture("extract/valid_imgs.img_feat.jsonl")),
    ];
    args.extend(towers(directory));
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

#[test]
fn searches_and_ends_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let images = flag("images", &fixture("dataset/valid_imgs.tsv"));
    for (signal, precision) in [("-TERM", "--precision=amp"), ("-INT", "--precision=bf16")] {
        let more = [images.as_str(), precision, "--max_batch=4", "--context-length=24"];
        let server = Server::start(env!("CARGO_BIN_EXE_cn-clip"), &arguments(dir.path(), &more));
        let (status, found) =
            server.send("POST /v1/search", r#"{"text": "草地上足球Nike", "k": 2}"#);
        assert_eq!(status, 200);
        let hits = found["results"][0].as_array().unwrap();
        assert_eq!(hits.len(), 2);
        assert!(hits[0]["score"].as_f64() >= hits[1]["score"].as_f64());
        let (status, health) = server.send("GET /healthz", "");
        assert_eq!((status, &health["thumbnails"]), (200, &serde_json::json!(true)));
        server.stop(signal);
    }
}

#[cfg(feature = "hnsw")]
#[test]
fn hnsw_finds_what_exact_search_finds() {
    let dir = tempfile::tempdir().unwrap();
    let found = ["--index=exact", "--index=hnsw"].map(|index| {
        let args = arguments(dir.path(), &[index, "--context-length=24"]);
        let server = Server::start(env!("CARGO_BIN_EXE_cn-clip"), &args);
        let query = r#"{"text": "草地上足球Nike", "k": 5}"#;
        let (status, found) = server.send("POST /v1/search", query);
        let (_, health) = server.send("GET /healthz", "");
        assert_eq!((status, health["index"].as_str()), (200, index.strip_prefix("--index=")));
        server.stop("-TERM");
        found["results"][0].clone()
    });
    let [exact, hnsw] = found.map(|results| {
        let hit = |hit: &serde_json::Value| (hit["id"].clone(), hit["score"].as_f64().unwrap());
        results.as_array().unwrap().iter().map(hit).collect::<Vec<_>>()
    });
    assert!(exact.len() > 1 && exact.len() == hnsw.len(), "{exact:?} {hnsw:?}");
    for (exact, hnsw) in exact.iter().zip(&hnsw) {
        assert_eq!(exact.0, hnsw.0);
        assert!((exact.1 - hnsw.1).abs() < 1e-6, "{exact:?} {hnsw:?}");
    }
}

#[test]
fn the_demonstration_ends_with_a_command_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a demo");
    let ran = run(["demo".to_string(), "--steps=1".to_string(), flag("output", &output)]);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(0), "{text}");
    let command = text.lines().last().unwrap().trim();
    let words = shlex::split(command).unwrap();
    assert!(command.contains("'") && words.len() > 10, "{command}");
    let server = Server::start(&words[0], &words[1..]);
    let (status, found) = server.send("POST /v1/search", r#"{"text": "苹果", "k": 3}"#);
    assert_eq!((status, found["results"][0].as_array().unwrap().len()), (200, 3));
    let (_, health) = server.send("GET /healthz", "");
    assert_eq!(health["thumbnails"], true);
    server.stop("-TERM");
}

#[test]
fn what_cannot_be_served_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let check = |more: &[&str], code: i32, expected: &str| {
        let error = fail(arguments(dir.path(), more), code);
        assert!(error.contains(expected), "{more:?}: {error}");
    };
    check(&["--context-length=1"], 1, "--context-length must be between 2 and 64");
    check(&["--max-batch=0"], 2, "--max-batch");
    check(&["--max-queue=10"], 1, "max-queue (10) must hold a whole request");
    check(&["--host=nowhere"], 2, "--host");
    check(&["--images=no/such/place"], 1, "no/such/place: does not exist");
    check(&["--image-feats=no/such/file"], 1, "no/such/file");
    check(&["--checkpoint=no/such/file.pt"], 1, "no/such/file.pt");
    #[cfg(not(feature = "hnsw"))]
    check(&["--index=hnsw"], 1, "compile with `--features hnsw`");

    let other = flag("image-feats", &fixture("eval/valid_imgs.img_feat.jsonl"));
    check(&[&other], 1, "have 64 values and the model gives 16");
    let bad = dir.path().join("bad.jsonl");
    for (text, expected) in [
        ("", "no features in this file"),
        ("{\"image_id\": 1, \"feature\": [NaN]}", "bad.jsonl:1: value 0 of the feature is NaN"),
        ("{\"image_id\": 1, \"feature\": [0, 0]}", "all values of the feature are zero"),
    ] {
        fs::write(&bad, text).unwrap();
        check(&[&flag("image-feats", &bad)], 1, expected);
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--port={}", taken.local_addr().unwrap().port());
    check(&[&port], 1, "choose another --port or --host");
}

#[test]
fn listening_to_other_machines_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let args = arguments(dir.path(), &["--host=0.0.0.0"]);
    let mut server = Server::start(env!("CARGO_BIN_EXE_cn-clip"), &args);
    let errors = server.errors();
    assert!(errors.contains("reachable from other machines"), "{errors}");
    let help = succeed(["serve", "--help"]);
    assert_eq!(help, "");
}
