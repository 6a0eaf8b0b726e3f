//! `GET /v1/images/{id}`: a picture of the index, small or as it is.

use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cn_clip_data::{DataError, Id};

use super::{Shared, search::unknown};
use crate::serve::{
    error::ApiError,
    pictures::{Thumbnail, content_type, thumbnail},
};

/// Longest side of a thumbnail in pixels, unless told otherwise.
const SIDE: usize = 320;
/// Longest side that may be asked for.
const MOST: usize = 2048;

enum Size {
    Full,
    Within(usize),
}

impl Size {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut size = Self::Within(SIDE);
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            size = match (key.as_ref(), value.as_ref(), value.parse()) {
                ("size", "full", _) => Self::Full,
                ("size", _, Ok(side)) if (16..=MOST).contains(&side) => Self::Within(side),
                _ => {
                    let message = format!(
                        "the query {key}={value} means nothing here; there is size=full or size=N \
                         with N from 16 to {MOST}"
                    );
                    return Err(ApiError::malformed("bad_query", message));
                }
            };
        }
        Ok(size)
    }
}

pub async fn image(
    State(app): Shared,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::malformed("bad_path", error.body_text()))?;
    let size = Size::parse(query.as_deref().unwrap_or_default())?;
    let Some(pictures) = app.pictures.clone() else {
        let message = "the server has no picture files; start it with --images";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_pictures", message));
    };
    // Only what the index holds is ever looked for.
    let row = app.index.row(&id).ok_or_else(|| unknown(&Id::Text(id)))?;
    let id = app.index.id(row).clone();
    let limit = app.limits.picture;
    let _slot = app.slot()?;
    let made = app.blocking(move || {
        let file = pictures.file(&id).map_err(|error| missing(&error))?;
        match size {
            Size::Full => Ok(Thumbnail { content_type: content_type(&file), file }),
            Size::Within(side) => thumbnail(file, side, limit).map_err(|error| {
                ApiError::internal(format!("picture {id} of the server cannot be shown: {error}"))
            }),
        }
    });
    let thumbnail = made.await??;
    let mut response = thumbnail.file.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(thumbnail.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    Ok(response)
}

fn missing(error: &DataError) -> ApiError {
    match error {
        DataError::MissingImage { id, .. } => {
            let message = format!("the server has no file of picture {id}");
            ApiError::new(StatusCode::NOT_FOUND, "no_file", message)
        }
        other => ApiError::internal(other.to_string()),
    }
}
