//! Clients on real connections: slow ones, those that go, many at once, and the end of the server.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
};

use serde_json::json;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

use super::*;
use crate::serve::connection::serve;

struct Server {
    runtime: Runtime,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

fn start(app: &Arc<App>) -> Server {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let wait = async {
        let _ = stopped.await;
    };
    let done = runtime.spawn(serve(app.clone(), listener, wait));
    Server { runtime, address, stop, done }
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        // A test that would hang fails.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may reset a connection whose request it does not want to read.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn is_up(&self) {
        let answer =
            self.exchange(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

fn embed(text: &str) -> Vec<u8> {
    let body = json!({ "text": text }).to_string();
    let head = format!(
        "POST /v1/embed/text HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

fn impatient() -> Limits {
    Limits { client_time: Duration::from_millis(200), ..Limits::default() }
}

#[test]
fn slow_heads_and_idle_connections_are_closed() {
    let app = gated(impatient(), Batching::default()).app;
    let server = start(&app);
    for part in ["", "POST /v1/embed/text HTTP/1.1\r\nHos"] {
        let answer = server.exchange(part.as_bytes());
        assert!(!answer.contains("200"), "{answer}");
    }
    // After an answer too.
    let answer = server.exchange(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    wait_for_metric(&app, "cn_clip_connections 0");
}

#[test]
fn slow_bodies_are_answered_with_408() {
    let app = gated(impatient(), Batching::default()).app;
    let server = start(&app);
    let request = embed("a text that does not arrive as a whole");
    let answer = server.exchange(&request[..request.len() - 10]);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    // One byte at a time, each in time, the whole not.
    let mut stream = server.connect();
    for byte in request {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    server.is_up();
}

#[test]
fn clients_that_do_not_take_their_answers_are_let_go() {
    let app = gated(impatient(), Batching::default()).app;
    let server = start(&app);
    let mut stream = server.connect();
    // Tens of megabytes of answers, which nobody reads.
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1500);
    let _ = stream.write_all(requests.as_bytes());
    wait_for_metric(&app, "cn_clip_connections 0");
    server.is_up();
}

#[test]
fn the_work_of_a_client_that_goes_is_dropped() {
    let gated = gated(Limits::default(), Batching { size: 1, ..Batching::default() });
    let server = start(&gated.app);
    let mut stays = server.connect();
    stays.write_all(&embed("stays")).unwrap();
    assert_eq!(gated.began.recv().unwrap(), 1);
    let mut goes = server.connect();
    goes.write_all(&embed("goes")).unwrap();
    wait_for_metric(&gated.app, "cn_clip_waiting{lane=\"text\"} 1");
    goes.shutdown(Shutdown::Both).unwrap();
    drop(goes);
    wait_for_metric(&gated.app, "cn_clip_running 1");
    gated.leave.send(()).unwrap();
    let mut answer = String::new();
    stays.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    wait_for_metric(&gated.app, "cn_clip_abandoned_total{lane=\"text\"} 1");
    assert_eq!(gated.began.try_iter().count(), 0);
}

#[test]
fn what_is_no_request_is_refused() {
    let app = gated(Limits { body: 1000, ..Limits::default() }, Batching::default()).app;
    let server = start(&app);
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], b"hello\r\n\r\n"]
    {
        let answer = server.exchange(garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = server.exchange(head.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // Announced too large: refused before anything of it is sent.
    let announced =
        b"POST /v1/embed/text HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
        Content-Length: 99999999999\r\nConnection: close\r\n\r\n";
    let answer = server.exchange(announced);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Not announced.
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let head = "POST /v1/embed/text HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let answer = server.exchange(format!("{head}{chunk}").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    server.is_up();
}

#[test]
fn many_connections_at_once_are_all_served() {
    let app = plain();
    let server = Arc::new(start(&app));
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let server = server.clone();
            thread::spawn(move || server.exchange(&embed(&format!("第{n}次"))))
        })
        .collect();
    for client in clients {
        let answer = client.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn more_connections_than_allowed_wait() {
    let app = gated(Limits { connections: 1, ..Limits::default() }, Batching::default()).app;
    let server = start(&app);
    let first = server.connect();
    wait_for_metric(&app, "cn_clip_connections 1");
    let mut second = server.connect();
    second.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    drop(first);
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn at_the_end_what_runs_is_finished() {
    let gated = gated(Limits::default(), Batching::default());
    let server = start(&gated.app);
    let idle = server.connect();
    let mut running = server.connect();
    running.write_all(&embed("a")).unwrap();
    gated.began.recv().unwrap();
    server.stop.send(()).unwrap();
    // Nothing new is accepted; whoever got into the system's queue is reset.
    while TcpStream::connect(server.address).is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!server.done.is_finished());
    gated.leave.send(()).unwrap();
    let mut answer = String::new();
    running.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.runtime.block_on(server.done).unwrap();
    drop(idle);
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let limits = Limits { time: Duration::from_millis(300), ..Limits::default() };
    let gated = gated(limits, Batching::default());
    let server = start(&gated.app);
    let mut slow = server.connect();
    let request = embed("a text that does not arrive as a whole");
    slow.write_all(&request[..request.len() - 10]).unwrap();
    wait_for_metric(&gated.app, "cn_clip_connections 1");
    server.stop.send(()).unwrap();
    server.runtime.block_on(server.done).unwrap();
}
