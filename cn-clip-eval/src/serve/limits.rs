//! What a request may ask for.

use std::time::Duration;

use cn_clip_data::image::SizeLimit;

use super::ServeError;

/// Limits of the server; what exceeds one is refused with a status code and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Bytes of the bodies of all requests together.
    pub bodies: usize,
    /// Size that a picture may declare.
    pub picture: SizeLimit,
    /// Pictures of a request.
    pub images: usize,
    /// Texts of a request; for zero-shot labels times templates.
    pub texts: usize,
    /// Characters of a text.
    pub text_length: usize,
    /// Hits of a search.
    pub hits: usize,
    /// Requests at the same time.
    pub requests: usize,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// Time for a request from its head to the start of its answer, and at shutdown for those that
    /// run.
    pub time: Duration,
    /// Time for a client to send the head or the body of a request, or to take in a piece of an
    /// answer.
    pub client_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 16 << 20,
            bodies: 512 << 20,
            picture: SizeLimit { pixels: 1 << 25, side: 8192 },
            images: 32,
            texts: 1024,
            text_length: 4096,
            hits: 1000,
            requests: 1024,
            connections: 4096,
            time: Duration::from_secs(60),
            client_time: Duration::from_secs(30),
        }
    }
}

/// How concurrent requests are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Texts, pictures or searches computed at once.
    pub size: usize,
    /// How long the first of a batch waits for more.
    pub wait: Duration,
    /// Texts, pictures or searches that may wait; more are refused.
    pub queue: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self { size: 32, wait: Duration::from_millis(2), queue: 2048 }
    }
}

impl Limits {
    /// Whether the limits make sense together.
    ///
    /// # Errors
    /// [`ServeError::Limit`] names one that is zero or smaller than what it must hold.
    pub fn check(&self, batching: &Batching) -> Result<(), ServeError> {
        let limit = |reason: String| Err(ServeError::Limit(reason));
        for (name, value) in [
            ("max-body", self.body),
            ("max-image-pixels", self.picture.pixels as usize),
            ("max-image-side", self.picture.side as usize),
            ("max-images", self.images),
            ("max-texts", self.texts),
            ("max-text-length", self.text_length),
            ("max-hits", self.hits),
            ("max-requests", self.requests),
            ("max-connections", self.connections),
            ("max-batch", batching.size),
            ("timeout", self.time.as_nanos() as usize),
            ("client-timeout", self.client_time.as_nanos() as usize),
        ] {
            if value == 0 {
                return limit(format!("{name} must be at least 1"));
            }
        }
        if batching.queue < self.texts.max(self.images) {
            return limit(format!(
                "max-queue ({}) must hold a whole request: at least max-texts ({}) and max-images \
                 ({})",
                batching.queue, self.texts, self.images
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_work_are_named() {
        let batching = Batching::default();
        assert!(Limits::default().check(&batching).is_ok());
        let error = Limits { body: 0, ..Limits::default() }.check(&batching).unwrap_err();
        assert_eq!(error.to_string(), "max-body must be at least 1");
        let error = Limits { texts: 4096, ..Limits::default() }.check(&batching).unwrap_err();
        assert!(error.to_string().starts_with("max-queue (2048) must hold"), "{error}");
    }
}
