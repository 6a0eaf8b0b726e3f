//! Handlers of the routes.

pub mod classify;
pub mod embed;
pub mod images;
pub mod search;
pub mod system;

use std::sync::Arc;

use axum::body::Bytes;
use cn_clip_data::image::{ImageError, decode_base64};
use futures_util::future::try_join_all;

use super::{
    app::App,
    encoder::{Embedding, IMAGE, Input, TEXT},
    error::ApiError,
};

/// A picture of a request.
enum Upload {
    /// A file.
    File(Bytes),
    /// A file in base64.
    Base64(String),
}

/// The one or the many of a request; exactly one of the two must be there, and not empty.
fn one_or_many<T>(
    one: Option<T>,
    many: Option<Vec<T>>,
    names: [&str; 2],
) -> Result<Vec<T>, ApiError> {
    match (one, many) {
        (Some(one), None) => Ok(vec![one]),
        (None, Some(many)) if many.is_empty() => {
            Err(ApiError::invalid("empty", format!("`{}` is empty; send at least one", names[1])))
        }
        (None, Some(many)) => Ok(many),
        _ => {
            let message = format!("send either `{}` or `{}`", names[0], names[1]);
            Err(ApiError::invalid("bad_request", message))
        }
    }
}

impl App {
    /// Features of texts.
    async fn embed_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Embedding>, ApiError> {
        self.check_texts(texts)?;
        // At most a few thousand short texts: a few milliseconds.
        let inputs = texts.iter().map(|text| self.preparation.text(text.as_ref())).collect();
        Ok(self.encoder.submit(TEXT, inputs).await?)
    }

    fn check_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<(), ApiError> {
        let limits = &self.limits;
        if texts.len() > limits.texts {
            let message = format!(
                "{} texts are more than {}; send fewer at a time (for zero-shot, labels times \
                 templates count)",
                texts.len(),
                limits.texts
            );
            return Err(ApiError::invalid("too_many_texts", message));
        }
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_ref();
            if text.trim().is_empty() {
                let message = format!("text {index} is empty; send at least one character");
                return Err(ApiError::invalid("empty_text", message));
            }
            // Bytes first: counting a megabyte of characters is needless.
            let most = limits.text_length;
            if text.len() > most && text.chars().nth(most).is_some() {
                let message = format!("text {index} has more than {most} characters; shorten it");
                return Err(ApiError::invalid("text_too_long", message));
            }
        }
        Ok(())
    }

    /// Features of pictures, decoded on as many threads as there are cores.
    async fn embed_images(&self, uploads: Vec<Upload>) -> Result<Vec<Embedding>, ApiError> {
        let most = self.limits.images;
        if uploads.len() > most {
            let message = format!("{} pictures are more than {most}; send fewer", uploads.len());
            return Err(ApiError::invalid("too_many_images", message));
        }
        let decoded = uploads.into_iter().enumerate().map(|(index, upload)| async move {
            let preparation = self.preparation;
            let input = self.blocking(move || preparation.image(&upload.file()?)).await?;
            input.map_err(|error| picture_error(index, &error))
        });
        let inputs: Vec<Input> = try_join_all(decoded).await?;
        Ok(self.encoder.submit(IMAGE, inputs).await?)
    }

    /// Runs what takes a while on a thread for that, at most as many at a time as there are cores.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.decoders.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::busy("the server is shutting down"))?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|error| ApiError::internal(format!("the work failed: {error}")))
    }
}

impl Upload {
    fn file(self) -> Result<Bytes, ImageError> {
        match self {
            Self::File(bytes) => Ok(bytes),
            Self::Base64(text) => {
                // Browsers give data URLs.
                let data = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
                let text = data.map_or(text.as_str(), |(_, data)| data);
                decode_base64(text.as_bytes()).map(Bytes::from)
            }
        }
    }

    /// Pictures in base64.
    fn base64(texts: Vec<String>) -> Vec<Self> {
        texts.into_iter().map(Self::Base64).collect()
    }
}

fn picture_error(index: usize, error: &ImageError) -> ApiError {
    let code = match error {
        ImageError::TooLarge { .. } => "picture_too_large",
        ImageError::Base64 { .. } => "bad_base64",
        _ => "bad_picture",
    };
    ApiError::invalid(code, format!("picture {index}: {error}"))
}

/// What handlers are given.
type Shared = axum::extract::State<Arc<App>>;
