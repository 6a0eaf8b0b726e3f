//! Errors: those that keep the server from starting, and those that a request is answered with.

use std::{net::SocketAddr, path::PathBuf};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cn_clip_data::DataError;
use serde::Serialize;
use thiserror::Error;

use super::batcher::BatchError;
use crate::{ScoreError, features::FeatureError};

/// Why the server cannot start or go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A limit that makes no sense.
    #[error("{0}")]
    Limit(String),
    /// Features of another model.
    #[error(
        "the picture features have {features} values and the model gives {model}; extract them \
         with the model that is served"
    )]
    Dimension {
        /// Values of a feature.
        features: usize,
        /// Values that the model gives.
        model: usize,
    },
    /// The feature file.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// The pictures to show.
    #[error(transparent)]
    Pictures(#[from] DataError),
    /// A path that holds no pictures.
    #[error("{path}: {reason}")]
    NoPictures {
        /// The path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The model does not work.
    #[error("the model cannot be served: {0}; is the checkpoint whole, and of these towers?")]
    Model(String),
    /// The index cannot be searched.
    #[error(transparent)]
    Search(#[from] ScoreError),
    /// The approximate index cannot be built.
    #[error("the HNSW index cannot be built: {0}")]
    Index(String),
    /// The address cannot be listened to.
    #[error("cannot listen on {address}: {source}; choose another --port or --host")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system refuses a thread, a signal handler or a timer.
    #[error("the server cannot run: {0}")]
    System(#[from] std::io::Error),
}

/// The answer to a request that is refused or fails:
/// `{"error": {"code": "too_many_texts", "message": "…"}}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    code: &'a str,
    message: &'a str,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 400: not what the protocol asks for.
    pub fn malformed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 422: well formed, but cannot be done.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 503: the same request may succeed later.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() && self.status != StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!("{} {}: {}", self.status, self.code, self.message);
        }
        let body = Body { error: Inner { code: self.code, message: &self.message } };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Full => {
                Self::busy("the queue is full; try again after the time in Retry-After")
            }
            BatchError::Stopped => Self::busy("the server is shutting down"),
            BatchError::Failed(reason) => Self::internal(reason),
        }
    }
}
