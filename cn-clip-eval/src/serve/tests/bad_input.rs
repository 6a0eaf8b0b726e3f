//! What cannot be done is refused with a status, a code and a message, and the server goes on.

use std::io::Cursor;

use image::{GrayImage, ImageFormat};
use serde_json::json;

use super::*;
use crate::serve::ServeError;

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    GrayImage::new(width, height).write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

const JSON: &str = "application/json";

fn limits() -> Limits {
    Limits { body: 1 << 21, images: 2, texts: 6, text_length: 20, hits: 9, ..Limits::default() }
}

/// Expects a refusal, and that the server still answers.
async fn refused(app: &Arc<App>, answer: Answer, status: u16, code: &str) -> String {
    let json = answer.json();
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{json}");
    let health = get(app, "/healthz").await;
    assert_eq!(health.status, StatusCode::OK);
    json["error"]["message"].as_str().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_what_they_should_be() {
    let app = app(limits(), Batching::default());
    let megabyte = json!({ "text": "长".repeat(1 << 19) }).to_string();
    let cases: [(&str, &str, &[u8], u16, &str); 22] = [
        ("/v1/embed/text", JSON, b"", 400, "bad_json"),
        ("/v1/embed/text", JSON, b"{\"text\": \"a\"", 400, "bad_json"),
        ("/v1/embed/text", JSON, b"{\"text\": \"\xff\xfe\"}", 400, "not_utf8"),
        ("/v1/embed/text", JSON, b"[]", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"[\"a\", null]", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"{}", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"{\"text\": \"a\", \"texts\": [\"b\"]}", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"{\"text\": 5}", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"{\"txet\": \"a\"}", 422, "bad_request"),
        ("/v1/embed/text", JSON, b"{\"texts\": []}", 422, "empty"),
        ("/v1/embed/text", JSON, b"{\"text\": \" \\n\"}", 422, "empty_text"),
        ("/v1/embed/text", JSON, megabyte.as_bytes(), 422, "text_too_long"),
        ("/v1/embed/text", "text/plain", b"a", 415, "unsupported_media_type"),
        ("/v1/embed/text", "image/png", b"a", 422, "bad_request"),
        ("/v1/embed/text?k=3", JSON, b"{\"text\": \"a\"}", 400, "bad_query"),
        ("/v1/embed/image", JSON, b"{\"image\": \"***\"}", 422, "bad_base64"),
        ("/v1/embed/image", JSON, b"{\"image\": \"\"}", 422, "bad_picture"),
        ("/v1/embed/image", "image/png", b"", 422, "bad_picture"),
        ("/v1/embed/image", "image/png", b"<svg/>", 422, "bad_picture"),
        ("/v1/search", JSON, b"{\"k\": 3}", 422, "bad_request"),
        ("/v1/search", JSON, b"{\"text\": \"a\", \"k\": -1}", 422, "bad_request"),
        ("/v1/search?k=many", "image/png", b"a", 400, "bad_query"),
    ];
    for (path, media, body, status, code) in cases {
        refused(&app, post(&app, path, media, body.to_vec()).await, status, code).await;
    }
    let deep = "[".repeat(100_000);
    refused(&app, post(&app, "/v1/search", JSON, deep).await, 422, "bad_request").await;
    let large = vec![b' '; (1 << 21) + 1];
    refused(&app, post(&app, "/v1/search", JSON, large).await, 413, "body_too_large").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_and_out_of_range() {
    let app = app(limits(), Batching::default());
    let small = base64(&png(4, 4));
    let label = |count: usize| (0..count).map(|n| format!("l{n}")).collect::<Vec<_>>();
    for (path, body, code) in [
        ("/v1/embed/text", json!({ "texts": vec!["a"; 7] }), "too_many_texts"),
        ("/v1/embed/text", json!({ "text": "字".repeat(21) }), "text_too_long"),
        ("/v1/embed/image", json!({ "images": vec![&small; 3] }), "too_many_images"),
        ("/v1/search", json!({ "text": "a", "k": 0 }), "bad_k"),
        ("/v1/search", json!({ "text": "a", "k": 10 }), "bad_k"),
        ("/v1/search", json!({ "texts": [] }), "empty"),
        ("/v1/search", json!({ "images": [] }), "empty"),
        ("/v1/search", json!({ "text": "a", "id": 7020 }), "bad_request"),
        ("/v1/classify", json!({ "image": small, "labels": [] }), "no_labels"),
        ("/v1/classify", json!({ "image": small }), "bad_request"),
        ("/v1/classify", json!({ "labels": ["a"] }), "bad_request"),
        ("/v1/classify", json!({ "image": small, "labels": label(7) }), "too_many_texts"),
        ("/v1/classify", json!({ "image": small, "labels": ["a", "a"] }), "duplicate_label"),
        ("/v1/classify", json!({ "image": small, "labels": ["a", ""] }), "empty_text"),
        (
            "/v1/classify",
            json!({ "image": small, "labels": ["a"], "templates": ["b"] }),
            "bad_template",
        ),
        (
            "/v1/classify",
            json!({ "image": small, "labels": label(2), "template_set": "openai" }),
            "too_many_texts",
        ),
        (
            "/v1/classify",
            json!({ "image": small, "labels": label(2), "template_set": "none" }),
            "bad_template",
        ),
        ("/v1/classify", json!({ "image": "AAAA", "labels": label(2) }), "bad_picture"),
    ] {
        refused(&app, post_json(&app, path, &body).await, 422, code).await;
    }
    assert_eq!(
        post_json(&app, "/v1/embed/text", &json!({ "text": "字".repeat(20) })).await.status,
        StatusCode::OK
    );
    let unknown = post_json(&app, "/v1/search", &json!({ "id": "../7020" })).await;
    refused(&app, unknown, 404, "unknown_id").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_are_corrupt_or_bombs() {
    let app = plain();
    let upload = async |file: Vec<u8>| post(&app, "/v1/search", "image/png", file).await;
    let whole = picture(7020);
    let cut = whole[..whole.len() / 2].to_vec();
    let message = refused(&app, upload(cut).await, 422, "bad_picture").await;
    assert!(message.contains("damaged or cut off"), "{message}");
    let wide = refused(&app, upload(png(10_000, 1)).await, 422, "picture_too_large").await;
    assert!(wide.contains("10000 x 1") && wide.contains("8192 on a side"), "{wide}");
    // 100 MB of pixels in a few kilobytes, refused by its header: the rest is not even there.
    let mut bomb = png(8000, 64);
    bomb[20..24].copy_from_slice(&8000u32.to_be_bytes());
    let crc = crc32fast::hash(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    bomb.truncate(64);
    let message = refused(&app, upload(bomb).await, 422, "picture_too_large").await;
    assert!(message.contains("8000 x 8000"), "{message}");
    let body = json!({ "images": [base64(&png(4, 4)), base64(&png(10_000, 1))] });
    let message = post_json(&app, "/v1/embed/image", &body).await;
    let message = refused(&app, message, 422, "picture_too_large").await;
    assert!(message.starts_with("picture 1: "), "{message}");
    // Every single byte of a picture changed: an answer each, and no harm.
    let step = (whole.len() / 40).max(1);
    for at in (0..whole.len()).step_by(step) {
        let mut file = whole.clone();
        file[at] ^= 0xff;
        let status = upload(file).await.status;
        assert!([StatusCode::OK, StatusCode::UNPROCESSABLE_ENTITY].contains(&status), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn places_and_methods_that_are_not_there() {
    let app = plain();
    refused(&app, get(&app, "/v2/search").await, 404, "not_found").await;
    refused(&app, get(&app, "/v1/search").await, 405, "method_not_allowed").await;
    for id in ["5", "..%2f..%2fetc%2fpasswd", "../7020", "7020/"] {
        refused(&app, get(&app, &format!("/v1/images/{id}")).await, 404, "unknown_id").await;
    }
    refused(&app, get(&app, "/v1/images/%ff").await, 400, "bad_path").await;
    for query in ["size=15", "size=2049", "size=a", "width=20"] {
        let answer = get(&app, &format!("/v1/images/7020?{query}")).await;
        refused(&app, answer, 400, "bad_query").await;
    }
    let gated = gated(Limits::default(), Batching::default());
    let answer = get(&gated.app, "/v1/images/7020").await;
    let message = refused(&gated.app, answer, 404, "no_pictures").await;
    assert!(message.contains("--images"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_says_so() {
    let limits = Limits { requests: 3, texts: 2, images: 2, ..Limits::default() };
    let batching = Batching { size: 1, queue: 2, ..Batching::default() };
    let gated = gated(limits, batching);
    let embed = |count: usize| {
        let app = gated.app.clone();
        let body = json!({ "texts": vec!["a"; count] });
        tokio::spawn(async move { post_json(&app, "/v1/embed/text", &body).await })
    };
    let running = embed(1);
    gated.began.recv().unwrap();
    let queued = embed(2);
    wait_for_metric(&gated.app, "cn_clip_waiting{lane=\"text\"} 2");
    let refusal = embed(1).await.unwrap();
    assert_eq!(refusal.headers[header::RETRY_AFTER], "1");
    assert!(refused(&gated.app, refusal, 503, "busy").await.contains("queue is full"));
    // The other lane has room of its own; then the number of requests is exhausted.
    let app = gated.app.clone();
    let image =
        tokio::spawn(async move { post(&app, "/v1/embed/image", "image/png", png(4, 4)).await });
    wait_for_metric(&gated.app, "cn_clip_waiting{lane=\"image\"} 1");
    let refusal = embed(1).await.unwrap();
    assert!(refused(&gated.app, refusal, 503, "busy").await.contains("too many requests"));
    (0..4).for_each(|_| gated.leave.send(()).unwrap());
    for answer in [running, queued, image] {
        assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_together_are_bounded() {
    let limits = Limits { body: 1 << 20, bodies: 1 << 20, ..Limits::default() };
    let gated = gated(limits, Batching::default());
    let app = gated.app.clone();
    let mut padded = json!({ "text": "a" }).to_string();
    padded.push_str(&" ".repeat(700 << 10));
    let body = padded.clone();
    let running = tokio::spawn(async move { post(&app, "/v1/embed/text", JSON, body).await });
    gated.began.recv().unwrap();
    let answer = post(&gated.app, "/v1/embed/text", JSON, padded.clone()).await;
    assert!(refused(&gated.app, answer, 503, "busy").await.contains("large requests"));
    gated.leave.send(()).unwrap();
    assert_eq!(running.await.unwrap().status, StatusCode::OK);
    gated.leave.send(()).unwrap();
    let again = post(&gated.app, "/v1/embed/text", JSON, padded).await;
    assert_eq!(again.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_given_up() {
    let limits = Limits { time: Duration::from_millis(50), ..Limits::default() };
    let gated = gated(limits, Batching { size: 1, ..Batching::default() });
    let first = post_json(&gated.app, "/v1/embed/text", &json!({ "text": "a" })).await;
    refused(&gated.app, first, 504, "timeout").await;
    let second = post_json(&gated.app, "/v1/embed/text", &json!({ "text": "b" })).await;
    refused(&gated.app, second, 504, "timeout").await;
    // The second was never computed.
    gated.leave.send(()).unwrap();
    wait_for_metric(&gated.app, "cn_clip_abandoned_total{lane=\"text\"} 1");
    assert_eq!(gated.began.try_iter().collect::<Vec<_>>(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_are_all_answered() {
    let batching = Batching { queue: 300, ..Batching::default() };
    let app = app(Limits { texts: 300, ..Limits::default() }, batching);
    let requests = (0..1000).map(|n| {
        let app = app.clone();
        tokio::spawn(async move {
            post_json(&app, "/v1/search", &json!({ "text": format!("第{n}张图片") })).await
        })
    });
    let (mut done, mut busy) = (0, 0);
    for request in requests.collect::<Vec<_>>() {
        let answer = request.await.unwrap();
        match answer.status {
            StatusCode::OK => done += 1,
            StatusCode::SERVICE_UNAVAILABLE => busy += 1,
            other => panic!("{other}: {}", answer.json()),
        }
    }
    assert!(done >= 300 && done + busy == 1000, "{done} done, {busy} busy");
    let answer = post_json(&app, "/v1/search", &json!({ "text": "猫" })).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[test]
fn features_of_another_model_are_refused() {
    let limits = Limits::default();
    let preparation = Preparation { context_length: 24, resolution: 32, limit: limits.picture };
    let compute: Compute<Input, Embedding> = Box::new(|_, _| Vec::new());
    let device = Device::default();
    let app = App::with_compute(
        compute,
        512,
        preparation,
        device,
        index(),
        None,
        limits,
        Batching::default(),
    );
    let error = app.err().unwrap();
    assert!(matches!(error, ServeError::Dimension { features: 16, model: 512 }), "{error}");
}
