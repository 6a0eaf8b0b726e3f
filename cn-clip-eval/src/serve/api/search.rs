//! `POST /v1/search`: texts or pictures to pictures.

use axum::{Json, extract::State};
use cn_clip_data::Id;
use serde::{Deserialize, Serialize};

use super::{Shared, Upload};
use crate::serve::{
    app::App,
    encoder::Embedding,
    error::ApiError,
    index::Query,
    payload::{Content, Payload, json},
};

/// Hits unless told otherwise.
const HITS: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    text: Option<String>,
    texts: Option<Vec<String>>,
    image: Option<String>,
    images: Option<Vec<String>>,
    id: Option<Id>,
    k: Option<usize>,
}

/// The best pictures of each query, best first.
#[derive(Serialize)]
pub struct Found {
    results: Vec<Vec<Hit>>,
}

#[derive(Serialize)]
struct Hit {
    id: Id,
    score: f64,
}

pub async fn search(State(app): Shared, payload: Payload) -> Result<Json<Found>, ApiError> {
    payload.only(&["k"])?;
    let mut hits = payload.number("k")?;
    let embeddings = match &payload.content {
        Content::Picture(file) => {
            check_hits(&app, hits)?;
            app.embed_images(vec![Upload::File(file.clone())]).await?
        }
        Content::Json(body) => {
            let request: Request = json(body)?;
            hits = request.k.or(hits);
            check_hits(&app, hits)?;
            embed(&app, request).await?
        }
    };
    let hits = hits.unwrap_or(HITS);
    let query = |embedding| Query { embedding, hits };
    let found = app.searcher.submit(0, embeddings.into_iter().map(query).collect()).await?;
    let hit = |(row, score)| Hit { id: app.index.id(row).clone(), score };
    let results = found
        .into_iter()
        .map(|list| list.into_iter().map(|found| hit((found.index, found.score))).collect());
    Ok(Json(Found { results: results.collect() }))
}

fn check_hits(app: &App, hits: Option<usize>) -> Result<(), ApiError> {
    let most = app.limits.hits;
    match hits {
        Some(0) => Err(ApiError::invalid("bad_k", "k is 0; ask for at least 1")),
        Some(hits) if hits > most => {
            Err(ApiError::invalid("bad_k", format!("k is {hits}; ask for at most {most}")))
        }
        _ => Ok(()),
    }
}

async fn embed(app: &App, request: Request) -> Result<Vec<Embedding>, ApiError> {
    let Request { text, texts, image, images, id, .. } = request;
    match (text, texts, image, images, id) {
        (Some(text), None, None, None, None) => app.embed_texts(&[text]).await,
        (None, Some(texts), None, None, None) => {
            some(&texts, "texts")?;
            app.embed_texts(&texts).await
        }
        (None, None, Some(image), None, None) => {
            app.embed_images(vec![Upload::Base64(image)]).await
        }
        (None, None, None, Some(images), None) => {
            some(&images, "images")?;
            app.embed_images(Upload::base64(images)).await
        }
        (None, None, None, None, Some(id)) => {
            let row = app.index.row(&id.to_string()).ok_or_else(|| unknown(&id))?;
            Ok(vec![app.index.feature(row).to_vec()])
        }
        _ => Err(ApiError::invalid(
            "bad_request",
            "send exactly one of `text`, `texts`, `image`, `images` and `id`",
        )),
    }
}

fn some<T>(list: &[T], name: &str) -> Result<(), ApiError> {
    match list.is_empty() {
        true => Err(ApiError::invalid("empty", format!("`{name}` is empty; send at least one"))),
        false => Ok(()),
    }
}

pub(super) fn unknown(id: &Id) -> ApiError {
    let message = format!("the index has no picture {id}");
    ApiError::new(axum::http::StatusCode::NOT_FOUND, "unknown_id", message)
}
