//! What is asked for is answered, with the values of the Python program.

use serde_json::{Value, json};

use super::*;

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "off by {worst}");
}

fn texts() -> (Vec<String>, Features) {
    let lines = fs::read_to_string(fixture("dataset/valid_texts.jsonl")).unwrap();
    let text = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_string()
    };
    let path = fixture("extract/valid_texts.txt_feat.jsonl");
    (lines.lines().map(text).collect(), Features::read(&path, Modality::Text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn features_of_texts_are_those_of_the_python_program() {
    let app = plain();
    let (texts, expected) = texts();
    let answer = post_json(&app, "/v1/embed/text", &json!({ "texts": texts })).await;
    assert_eq!(answer.status, StatusCode::OK);
    let found = answer.json();
    assert_eq!(found["dim"], 16);
    assert_eq!(found["embeddings"].as_array().unwrap().len(), expected.rows());
    for (row, found) in found["embeddings"].as_array().unwrap().iter().enumerate() {
        close(&floats(found), expected.row(row));
    }
    let one = post_json(&app, "/v1/embed/text", &json!({ "text": texts[0] })).await.json();
    close(&floats(&one["embeddings"][0]), expected.row(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn features_of_pictures_are_those_of_the_python_program_however_they_are_sent() {
    let app = plain();
    let expected = features();
    let files: Vec<Vec<u8>> = expected
        .ids()
        .iter()
        .map(|id| if let Id::Int(id) = id { picture(*id) } else { unreachable!() })
        .collect();
    let base64s: Vec<String> = files.iter().map(|file| base64(file)).collect();
    let answer = post_json(&app, "/v1/embed/image", &json!({ "images": base64s })).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json());
    let found = answer.json();
    for row in 0..expected.rows() {
        close(&floats(&found["embeddings"][row]), expected.row(row));
    }
    let url = format!("data:image/png;base64,{}", base64s[1]);
    let found = post_json(&app, "/v1/embed/image", &json!({ "image": url })).await.json();
    close(&floats(&found["embeddings"][0]), expected.row(1));
    for media in ["image/png", "application/octet-stream", "IMAGE/JPEG; charset=binary"] {
        let found = post(&app, "/v1/embed/image", media, files[2].clone()).await.json();
        close(&floats(&found["embeddings"][0]), expected.row(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_are_ranked_by_the_inner_product() {
    let app = plain();
    let (texts, text_features) = texts();
    let pictures = features();
    let score = |query: &[f32], row: usize| -> f32 {
        query.iter().zip(pictures.row(row)).map(|(a, b)| a * b).sum()
    };
    let ranked = |query: &[f32]| -> Vec<Id> {
        let mut rows: Vec<usize> = (0..pictures.rows()).collect();
        rows.sort_by(|&a, &b| score(query, b).total_cmp(&score(query, a)));
        rows.iter().map(|&row| pictures.ids()[row].clone()).collect()
    };
    let ids = |list: &Value| -> Vec<Id> {
        let id = |hit: &Value| serde_json::from_value(hit["id"].clone()).unwrap();
        list.as_array().unwrap().iter().map(id).collect()
    };
    let found = post_json(&app, "/v1/search", &json!({ "texts": texts, "k": 3 })).await.json();
    for (row, list) in found["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(ids(list), ranked(text_features.row(row))[..3], "{list}");
        let best = pictures.ids().iter().position(|id| *id == ids(list)[0]).unwrap();
        let difference =
            list[0]["score"].as_f64().unwrap() as f32 - score(text_features.row(row), best);
        assert!(difference.abs() < 1e-4);
    }
    // More than there are: all.
    let found = post_json(&app, "/v1/search", &json!({ "text": texts[0], "k": 500 })).await.json();
    assert_eq!(ids(&found["results"][0]), ranked(text_features.row(0)));

    // A picture finds itself: as file, in base64, and by its id.
    let Id::Int(id) = pictures.ids()[1] else { unreachable!() };
    let file = picture(id);
    let by_file = post(&app, "/v1/search?k=2", "image/png", file.clone()).await.json();
    let body = json!({ "images": [base64(&file)], "k": 2 });
    let by_base64 = post_json(&app, "/v1/search", &body).await.json();
    let by_id = post_json(&app, "/v1/search", &json!({ "id": id, "k": 2 })).await.json();
    for found in [by_file, by_base64, by_id] {
        assert_eq!(ids(&found["results"][0]), ranked(pictures.row(1))[..2], "{found}");
        assert!((found["results"][0][0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_share_a_probability_of_one() {
    let app = plain();
    let file = picture(7020);
    let labels = ["猫", "自行车", "Nike"];
    let body = json!({ "images": [base64(&file), base64(&picture(16259))], "labels": labels });
    let answer = post_json(&app, "/v1/classify", &body).await.json();
    assert_eq!(answer["labels"], json!(labels));
    assert_eq!(answer["results"].as_array().unwrap().len(), 2);
    for result in answer["results"].as_array().unwrap() {
        let probabilities = floats(&result["probabilities"]);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let best = labels.iter().position(|label| result["label"] == *label).unwrap();
        assert!(probabilities.iter().all(|&other| other <= probabilities[best]));
    }
    // The same in the query string, and the softmax of a hundred cosines of what is embedded.
    let query = "label=%E7%8C%AB&label=%E8%87%AA%E8%A1%8C%E8%BD%A6&label=Nike";
    let same = post(&app, &format!("/v1/classify?{query}"), "image/png", file.clone()).await.json();
    let found = floats(&same["results"][0]["probabilities"]);
    close(&found, &floats(&answer["results"][0]["probabilities"]));
    let texts = post_json(&app, "/v1/embed/text", &json!({ "texts": labels })).await.json();
    let image = post(&app, "/v1/embed/image", "image/png", file.clone()).await.json();
    let image = floats(&image["embeddings"][0]);
    let exps: Vec<f32> = (0..3)
        .map(|label| {
            let text = floats(&texts["embeddings"][label]);
            (100.0 * text.iter().zip(&image).map(|(a, b)| a * b).sum::<f32>()).exp()
        })
        .collect();
    let sum: f32 = exps.iter().sum();
    close(&found, &exps.iter().map(|exp| exp / sum).collect::<Vec<_>>());

    let body = json!({ "image": base64(&file), "labels": labels, "template_set": "normal" });
    let by_set = post_json(&app, "/v1/classify", &body).await.json();
    let query = format!("{query}&template=%7B%7D%E7%9A%84%E5%9B%BE%E7%89%87");
    let by_template = post(&app, &format!("/v1/classify?{query}"), "image/png", file).await.json();
    assert_eq!(by_set, by_template);
    assert_ne!(by_set["results"], same["results"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_shown_small_or_as_they_are() {
    let app = plain();
    let file = picture(7020);
    let full = get(&app, "/v1/images/7020?size=full").await;
    assert_eq!((full.status, &full.bytes), (StatusCode::OK, &file));
    assert_eq!(full.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let small = get(&app, "/v1/images/7020?size=16").await;
    assert_eq!(small.headers[header::CONTENT_TYPE], "image/jpeg");
    let picture = cn_clip_data::image::Picture::decode(&small.bytes).unwrap();
    assert_eq!(picture.width().max(picture.height()), 16);
    assert_eq!(get(&app, "/v1/images/7020").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_health_tell_what_is_served() {
    let app = plain();
    let page = get(&app, "/").await;
    assert_eq!(page.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("connect-src 'self'") && !policy.contains("http"), "{policy}");
    // Works offline: nothing is loaded from elsewhere.
    let text = String::from_utf8(page.bytes).unwrap();
    let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"));
    let health = get(&app, "/healthz").await.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["pictures"], 6);
    assert_eq!(health["thumbnails"], true);
    post_json(&app, "/v1/search", &json!({ "text": "猫" })).await;
    get(&app, "/nowhere").await;
    let metrics = get(&app, "/metrics").await;
    assert!(metrics.headers[header::CONTENT_TYPE].to_str().unwrap().contains("openmetrics"));
    let metrics = String::from_utf8(metrics.bytes).unwrap();
    for line in [
        "cn_clip_requests_total{path=\"/v1/search\",status=\"200\"} 1",
        "cn_clip_requests_total{path=\"other\",status=\"404\"} 1",
        "cn_clip_batch_size_count{lane=\"text\"} 1",
        "cn_clip_batch_size_count{lane=\"search\"} 1",
        "cn_clip_pictures 6",
    ] {
        assert!(metrics.lines().any(|other| other == line), "no {line} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_are_computed_together() {
    let gated = gated(Limits::default(), Batching { size: 8, ..Batching::default() });
    let search = |text: String| {
        let app = gated.app.clone();
        tokio::spawn(async move {
            post_json(&app, "/v1/embed/text", &json!({ "text": text })).await.status
        })
    };
    let first = search("first".to_string());
    assert_eq!(gated.began.recv().unwrap(), 1);
    let more: Vec<_> = (0..11).map(|n| search(format!("text {n}"))).collect();
    wait_for_metric(&gated.app, "cn_clip_waiting{lane=\"text\"} 11");
    (0..3).for_each(|_| gated.leave.send(()).unwrap());
    for answer in more.into_iter().chain([first]) {
        assert_eq!(answer.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(gated.began.iter().take(2).collect::<Vec<_>>(), [8, 3]);
}
