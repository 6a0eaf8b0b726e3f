//! A server with one file that behaves as the Hugging Face hub does, or worse.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What the server does.
#[derive(Default)]
pub struct Behaviour {
    /// The file.
    pub body: Vec<u8>,
    /// Its checksum as the server tells it.
    pub etag: String,
    /// Bytes after which each answer with the content is cut, first answer first; those that follow
    /// are whole.
    pub cuts: Vec<usize>,
    /// Answers everything with this status.
    pub status: Option<&'static str>,
}

/// The server, on a port of this machine.
pub struct Server {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (own, log) = (endpoint.clone(), requests.clone());
        // Ends with the process.
        thread::spawn(move || {
            let mut cuts = behaviour.cuts.clone().into_iter();
            for stream in listener.incoming().flatten() {
                answer(stream, &behaviour, &own, &mut cuts, &log);
            }
        });
        Self { endpoint, requests }
    }

    /// First bytes asked for in requests of the content.
    pub fn content_requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    behaviour: &Behaviour,
    endpoint: &str,
    cuts: &mut impl Iterator<Item = usize>,
    log: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_string();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let range = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        name.eq_ignore_ascii_case("range").then(|| (first.to_string(), last.to_string()))
    });
    let Behaviour { body, etag, status, .. } = behaviour;
    if let Some(status) = status {
        let _ =
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    if path != "/content" {
        assert!(path.ends_with("/resolve/main/clip_cn_vit-b-16.pt"), "{path}");
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {endpoint}/content\r\nx-linked-etag: \"{etag}\"\r\n\
             x-repo-commit: 0123456789abcdef\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        return;
    }
    let (first, last) = range.unwrap();
    let start: usize = first.parse().unwrap();
    let end = last.parse().map_or(body.len(), |last: usize| last + 1);
    let content = &body[start..end];
    let mut sent = content.len();
    if last.is_empty() {
        log.lock().unwrap().push(first);
        sent = cuts.next().map_or(sent, |cut| cut.min(sent));
    }
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        end - 1,
        body.len(),
        content.len()
    );
    let _ = stream.write_all(&content[..sent]);
}
