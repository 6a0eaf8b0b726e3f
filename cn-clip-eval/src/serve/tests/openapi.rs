//! The description says what the server does.

use serde_json::{Map, Value, json};

use super::*;

/// Whether `value` is what `schema` says: types, keys, and nothing that it does not name.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').unwrap();
        return check(document, document.pointer(pointer).unwrap(), value, place);
    }
    if let Some(constant) = schema.get("const") {
        assert_eq!(constant, value, "{place}");
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{place}: {value}");
    }
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    assert!(right, "{place} is {value}, not {}", schema["type"]);
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{place}[]"));
    }
    let (none, empty) = (Map::new(), Vec::new());
    let properties = schema["properties"].as_object().unwrap_or(&none);
    for key in schema["required"].as_array().unwrap_or(&empty) {
        assert!(value.get(key.as_str().unwrap()).is_some(), "{place} has no {key}");
    }
    if let (Some(object), false) = (value.as_object(), properties.is_empty()) {
        for (key, value) in object {
            let schema = properties.get(key).unwrap_or_else(|| panic!("{place}.{key} is unknown"));
            check(document, schema, value, &format!("{place}.{key}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_errors_have_the_described_form() {
    let app = plain();
    let document = get(&app, "/openapi.json").await.json();
    let image = base64(&picture(7020));
    for (path, body) in [
        ("/v1/embed/text", json!({ "texts": ["猫", "狗"] })),
        ("/v1/embed/image", json!({ "image": image })),
        ("/v1/search", json!({ "text": "猫" })),
        ("/v1/classify", json!({ "image": image, "labels": ["猫"], "templates": ["{}的照片"] })),
    ] {
        let post_of = &document["paths"][path]["post"];
        let json = |holder: &Value| holder["content"]["application/json"]["schema"].clone();
        check(&document, &json(&post_of["requestBody"]), &body, path);
        let answer = post_json(&app, path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.json());
        check(&document, &json(&post_of["responses"]["200"]), &answer.json(), path);
        let answer = post(&app, path, "application/json", "{").await;
        let status = answer.status.as_str();
        check(&document, &json(&post_of["responses"][status]), &answer.json(), path);
        let answer = post_json(&app, path, &json!({})).await;
        let status = answer.status.as_str();
        check(&document, &json(&post_of["responses"][status]), &answer.json(), path);
    }
    let health = &document["paths"]["/healthz"]["get"]["responses"]["200"];
    let schema = &health["content"]["application/json"]["schema"];
    check(&document, schema, &get(&app, "/healthz").await.json(), "/healthz");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_place_is_there() {
    let app = plain();
    let document = get(&app, "/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "7020");
        for method in methods.as_object().unwrap().keys() {
            let request = Request::builder().uri(&path).method(method.to_uppercase().as_str());
            let answer = send(&app, request.body(Body::empty()).unwrap()).await;
            let expected = if method == "get" { 200 } else { 415 };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
}
