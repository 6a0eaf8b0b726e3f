//! `POST /v1/embed/text` and `POST /v1/embed/image`.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{Shared, Upload, one_or_many};
use crate::serve::{
    encoder::Embedding,
    error::ApiError,
    payload::{Content, Payload, json},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    text: Option<String>,
    texts: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Images {
    image: Option<String>,
    images: Option<Vec<String>>,
}

/// Normalised features, one per input, in order.
#[derive(Serialize)]
pub struct Embeddings {
    dim: usize,
    embeddings: Vec<Embedding>,
}

pub async fn text(State(app): Shared, payload: Payload) -> Result<Json<Embeddings>, ApiError> {
    payload.only(&[])?;
    let Content::Json(body) = &payload.content else {
        return Err(ApiError::invalid("bad_request", "texts come as application/json"));
    };
    let body: Texts = json(body)?;
    let texts = one_or_many(body.text, body.texts, ["text", "texts"])?;
    let embeddings = app.embed_texts(&texts).await?;
    Ok(Json(Embeddings { dim: app.index.dim(), embeddings }))
}

pub async fn image(State(app): Shared, payload: Payload) -> Result<Json<Embeddings>, ApiError> {
    payload.only(&[])?;
    let uploads = match &payload.content {
        Content::Picture(file) => vec![Upload::File(file.clone())],
        Content::Json(body) => {
            let body: Images = json(body)?;
            Upload::base64(one_or_many(body.image, body.images, ["image", "images"])?)
        }
    };
    let embeddings = app.embed_images(uploads).await?;
    Ok(Json(Embeddings { dim: app.index.dim(), embeddings }))
}
