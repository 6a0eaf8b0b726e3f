//! The page, its description for programs, and what monitoring asks for.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{Html, IntoResponse},
};
use serde::Serialize;

use super::Shared;
use crate::serve::{error::ApiError, metrics::CONTENT_TYPE};

const PAGE: &str = include_str!("../../../assets/serve/index.html");
const OPENAPI: &str = include_str!("../../../assets/serve/openapi.json");

/// Nothing from elsewhere, nothing to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// What the page and monitoring need to know.
#[derive(Serialize)]
pub struct Health {
    status: &'static str,
    version: &'static str,
    pictures: usize,
    dim: usize,
    index: &'static str,
    thumbnails: bool,
    limits: HealthLimits,
}

#[derive(Serialize)]
struct HealthLimits {
    body_bytes: usize,
    images: usize,
    texts: usize,
    text_length: usize,
    k: usize,
}

pub async fn health(State(app): Shared) -> Json<Health> {
    let limits = &app.limits;
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        pictures: app.index.len(),
        dim: app.index.dim(),
        index: app.index.kind().name(),
        thumbnails: app.pictures.is_some(),
        limits: HealthLimits {
            body_bytes: limits.body,
            images: limits.images,
            texts: limits.texts,
            text_length: limits.text_length,
            k: limits.hits,
        },
    })
}

pub async fn metrics(State(app): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.render())
}

pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

pub async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))
}

pub async fn not_found(uri: Uri) -> ApiError {
    let message = format!("there is nothing at {}; see /openapi.json", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

pub async fn method_not_allowed(uri: Uri) -> ApiError {
    let message = format!("{} does not take this method; see /openapi.json", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
