//! The server as its clients see it.

mod api;
mod bad_input;
mod openapi;
mod sockets;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use burn::{module::Module, tensor::Device};
use cn_clip_data::{Id, lmdb::LmdbImages};
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{self, Checkpoint},
};
use serde_json::Value;
use tower::ServiceExt;

use super::{
    App, Batching, Index, IndexKind, Limits, Pictures, Served,
    batcher::Compute,
    encoder::{Embedding, Input, Preparation},
};
use crate::features::{Features, Modality};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Features of the recorded pictures by the Python program.
pub fn features() -> Features {
    Features::read(&fixture("extract/valid_imgs.img_feat.jsonl"), Modality::Image).unwrap()
}

pub fn pictures() -> Pictures {
    Pictures::open(&fixture("dataset/lmdb/valid")).unwrap()
}

/// A recorded picture file.
pub fn picture(id: i64) -> Vec<u8> {
    let images = LmdbImages::open(fixture("dataset/lmdb/valid/imgs")).unwrap();
    images.image(&Id::Int(id)).unwrap()
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub fn index() -> Index {
    Index::new(features(), IndexKind::Exact, Device::default()).unwrap()
}

/// The recorded tiny model over the recorded pictures.
pub fn app(limits: Limits, batching: Batching) -> Arc<App> {
    let meta = fs::read_to_string(fixture("train_run/meta.json")).unwrap();
    let meta: Value = serde_json::from_str(&meta).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.json");
    fs::write(&path, meta["model_config"].to_string()).unwrap();
    let path = path.display().to_string();
    let config = ClipConfig::load(&path, &path).unwrap();
    let model = Clip::init(&config, &Device::default(), 0);
    let weights = Checkpoint::open(fixture("train_run/init_fp16.pt")).unwrap();
    let model = checkpoint::load(model, &weights).unwrap().valid();
    let (index, pictures) = (index(), Some(pictures()));
    let served = Served { model, config, context_length: 24, index, pictures };
    Arc::new(App::start(served, limits, batching).unwrap())
}

pub fn plain() -> Arc<App> {
    app(Limits::default(), Batching::default())
}

/// A server whose model waits for leave before each batch, and then gives a fixed feature.
pub struct Gated {
    pub app: Arc<App>,
    pub began: mpsc::Receiver<usize>,
    pub leave: mpsc::Sender<()>,
}

pub fn gated(limits: Limits, batching: Batching) -> Gated {
    let (told, began) = mpsc::channel();
    let (leave, granted) = mpsc::channel::<()>();
    let compute: Compute<Input, Embedding> = Box::new(move |_, inputs| {
        // The test may have ended.
        let _ = told.send(inputs.len());
        let _ = granted.recv();
        inputs.iter().map(|_| Ok(features().row(0).to_vec())).collect()
    });
    let preparation = Preparation { context_length: 24, resolution: 32, limit: limits.picture };
    let device = Device::default();
    let app = App::with_compute(compute, 16, preparation, device, index(), None, limits, batching);
    Gated { app: Arc::new(app.unwrap()), began, leave }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    /// The code of an error, whose message must say something.
    pub fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"]["message"].as_str().unwrap().len() > 10, "{json}");
        json["error"]["code"].as_str().unwrap().to_string()
    }
}

pub async fn send(app: &Arc<App>, request: Request<Body>) -> Answer {
    let response = app.clone().router().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
    Answer { status, headers, bytes }
}

pub async fn post(app: &Arc<App>, path: &str, media: &str, body: impl Into<Body>) -> Answer {
    let request = Request::post(path).header(header::CONTENT_TYPE, media);
    send(app, request.body(body.into()).unwrap()).await
}

pub async fn post_json(app: &Arc<App>, path: &str, body: &Value) -> Answer {
    post(app, path, "application/json", body.to_string()).await
}

pub async fn get(app: &Arc<App>, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Waits until the counters hold a line.
pub fn wait_for_metric(app: &App, line: &str) {
    for _ in 0..3000 {
        if app.metrics.render().lines().any(|other| other == line) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no `{line}` in\n{}", app.metrics.render());
}
