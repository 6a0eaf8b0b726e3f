//! Bodies of requests: read within the limits, as JSON or as a picture file.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{app::App, error::ApiError, limits::Limits};

/// Bytes that one permit of the budget stands for.
pub(super) const BUDGET_UNIT: usize = 1024;

/// The body of a request.
pub(super) struct Payload {
    pub content: Content,
    /// Pairs of the query string.
    pub query: Vec<(String, String)>,
    /// Holds the body's share of the memory for bodies, and a place among the requests that run.
    _permits: [OwnedSemaphorePermit; 2],
}

/// What a body holds.
pub(super) enum Content {
    /// `application/json`.
    Json(Bytes),
    /// `image/*` or `application/octet-stream`: a picture file.
    Picture(Bytes),
}

#[derive(Clone, Copy)]
enum Kind {
    Json,
    Picture,
}

impl FromRequest<Arc<App>> for Payload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let kind = kind(request.headers())?;
        let query = request.uri().query().unwrap_or_default();
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let (bytes, budget) = read(request.into_body(), &app.limits, &app.bodies).await?;
        let content = match kind {
            Kind::Json => Content::Json(bytes),
            Kind::Picture => Content::Picture(bytes),
        };
        // Only now: those whose bodies are slow take nobody's place.
        Ok(Self { content, query, _permits: [budget, app.slot()?] })
    }
}

fn kind(headers: &HeaderMap) -> Result<Kind, ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let media = media.to_ascii_lowercase();
    match media.as_str() {
        "application/json" => Ok(Kind::Json),
        "application/octet-stream" => Ok(Kind::Picture),
        media if media.starts_with("image/") => Ok(Kind::Picture),
        other => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "the Content-Type is {other:?}; send application/json, or a picture file as \
                 image/* or application/octet-stream"
            ),
        )),
    }
}

/// Reads a body; memory is taken as bytes arrive, never as announced.
async fn read(
    mut body: Body,
    limits: &Limits,
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {} bytes; send less at a time", limits.body),
        )
    };
    if body.size_hint().lower() > limits.body as u64 {
        return Err(too_large());
    }
    let deadline = Instant::now() + limits.client_time;
    let mut permit = reserve(budget, 1)?;
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
            let seconds = limits.client_time.as_secs_f64();
            let message = format!("the body did not arrive within {seconds} s; send it faster");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            ApiError::malformed("broken_body", format!("the body cannot be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limits.body {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
        let needed = bytes.len().div_ceil(BUDGET_UNIT);
        if needed > permit.num_permits() {
            permit.merge(reserve(budget, needed - permit.num_permits())?);
        }
    }
    Ok((bytes.into(), permit))
}

fn reserve(budget: &Arc<Semaphore>, units: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    budget.clone().try_acquire_many_owned(units).map_err(|_| {
        ApiError::busy("too many large requests at once; try again after the time in Retry-After")
    })
}

impl Payload {
    /// The values of a key of the query string.
    pub fn values(&self, key: &str) -> Vec<String> {
        let of_key = self.query.iter().filter(|(name, _)| name == key);
        of_key.map(|(_, value)| value.clone()).collect()
    }

    /// A number of the query string.
    pub fn number(&self, key: &str) -> Result<Option<usize>, ApiError> {
        let Some((_, value)) = self.query.iter().find(|(name, _)| name == key) else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| {
            ApiError::malformed("bad_query", format!("{key}={value} is not a whole number"))
        })
    }

    /// Keys of the query string that mean nothing here are errors, as in JSON.
    pub fn only(&self, keys: &[&str]) -> Result<(), ApiError> {
        match self.query.iter().find(|(name, _)| !keys.contains(&name.as_str())) {
            Some((name, _)) => {
                let known = keys.join(", ");
                let message = format!("the query has an unknown key {name:?}; known: {known}");
                Err(ApiError::malformed("bad_query", message))
            }
            None => Ok(()),
        }
    }
}

/// Parses a JSON body.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let message = format!("the body is not UTF-8 from byte {at} on; encode it as UTF-8");
        ApiError::malformed("not_utf8", message)
    })?;
    let parsed = serde_json::from_str(text).map_err(|error| {
        let message = format!("the body is not the JSON that is expected: {error}");
        match error.classify() {
            serde_json::error::Category::Data => ApiError::invalid("bad_request", message),
            _ => ApiError::malformed("bad_json", message),
        }
    })?;
    // The parser would also take a list of the values, whose order nobody knows.
    match text.trim_start().starts_with('{') {
        true => Ok(parsed),
        false => Err(ApiError::invalid("bad_request", "the body must be a JSON object")),
    }
}
