//! The state of the server and its routes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use burn::tensor::Device;
use cn_clip_model::{Clip, ClipConfig};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    Batching, Index, Limits, Pictures, ServeError, api,
    batcher::{Batcher, Compute},
    encoder::{Embedding, IMAGE, Input, Preparation, TEXT, encode},
    error::ApiError,
    index::{Query, search},
    metrics::Metrics,
    payload::BUDGET_UNIT,
};
use crate::knn::Neighbour;

/// A model and the pictures it searches.
pub struct Served {
    /// The model, for inference.
    pub model: Clip,
    /// Its configuration.
    pub config: ClipConfig,
    /// Tokens of a text, `[CLS]` and `[SEP]` included.
    pub context_length: usize,
    /// What is searched.
    pub index: Index,
    /// Their files, to be shown.
    pub pictures: Option<Pictures>,
}

/// Everything that requests share.
pub struct App {
    pub(super) encoder: Batcher<Input, Embedding>,
    pub(super) searcher: Batcher<Query, Vec<Neighbour>>,
    pub(super) preparation: Preparation,
    pub(super) device: Device,
    pub(super) index: Arc<Index>,
    pub(super) pictures: Option<Arc<Pictures>>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    /// Pictures decoded at the same time.
    pub(super) decoders: Arc<Semaphore>,
    /// Memory for bodies, in units of [`BUDGET_UNIT`] bytes.
    pub(super) bodies: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

impl App {
    /// Starts the threads that compute.
    ///
    /// # Errors
    /// [`ServeError::Dimension`] if features and model do not fit, [`ServeError::Limit`] for limits
    /// that make no sense.
    pub fn start(served: Served, limits: Limits, batching: Batching) -> Result<Self, ServeError> {
        let preparation = Preparation {
            context_length: served.context_length,
            resolution: served.config.vision.image_resolution,
            limit: limits.picture,
        };
        let device = served.model.device();
        let mut compute = encode(served.model, preparation);
        let dim = served.config.vision.embed_dim;
        warm_up(&mut compute, preparation)?;
        let (index, pictures) = (served.index, served.pictures);
        Self::with_compute(compute, dim, preparation, device, index, pictures, limits, batching)
    }

    #[allow(clippy::too_many_arguments)] // The parts of `Served`, of which tests replace one.
    pub(super) fn with_compute(
        compute: Compute<Input, Embedding>,
        dim: usize,
        preparation: Preparation,
        device: Device,
        index: Index,
        pictures: Option<Pictures>,
        limits: Limits,
        batching: Batching,
    ) -> Result<Self, ServeError> {
        limits.check(&batching)?;
        if index.dim() != dim {
            return Err(ServeError::Dimension { features: index.dim(), model: dim });
        }
        let metrics = Metrics::default();
        metrics.pictures.set(index.len() as i64);
        let index = Arc::new(index);
        let lanes = vec![metrics.lane("text"), metrics.lane("image")];
        let encoder = Batcher::start("encoder", batching, lanes, compute)?;
        let lanes = vec![metrics.lane("search")];
        let searcher = Batcher::start("search", batching, lanes, search(index.clone()))?;
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            encoder,
            searcher,
            preparation,
            device,
            index,
            pictures: pictures.map(Arc::new),
            metrics,
            decoders: semaphore(cores),
            bodies: semaphore(limits.bodies.max(limits.body).div_ceil(BUDGET_UNIT) + 1),
            requests: semaphore(limits.requests),
            limits,
        })
    }

    /// A place among the requests that run.
    pub(super) fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.requests.clone().try_acquire_owned().map_err(|_| {
            ApiError::busy("too many requests at once; try again after the time in Retry-After")
        })
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        let limited = Router::new()
            .route("/v1/embed/text", post(api::embed::text))
            .route("/v1/embed/image", post(api::embed::image))
            .route("/v1/search", post(api::search::search))
            .route("/v1/classify", post(api::classify::classify))
            .route("/v1/images/{*id}", get(api::images::image))
            .layer(from_fn_with_state(self.clone(), limit));
        Router::new()
            .route("/", get(api::system::page))
            .route("/healthz", get(api::system::health))
            .route("/metrics", get(api::system::metrics))
            .route("/openapi.json", get(api::system::openapi))
            .merge(limited)
            .fallback(api::system::not_found)
            .method_not_allowed_fallback(api::system::method_not_allowed)
            .layer(from_fn_with_state(self.clone(), observe))
            .with_state(self)
    }
}

/// Computes once, so that no client waits for kernels to be compiled, and weights that give NaN are
/// told of at once.
fn warm_up(
    compute: &mut Compute<Input, Embedding>,
    preparation: Preparation,
) -> Result<(), ServeError> {
    let side = preparation.resolution;
    let inputs =
        [(TEXT, preparation.text("猫")), (IMAGE, Input::Image(vec![0.0; 3 * side * side]))];
    for (lane, input) in inputs {
        for result in compute(lane, vec![input]) {
            result.map_err(ServeError::Model)?;
        }
    }
    Ok(())
}

/// Bounds the time of requests.
async fn limit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let time = app.limits.time;
    match timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => too_slow(time).into_response(),
    }
}

fn too_slow(time: Duration) -> ApiError {
    let message = format!(
        "no answer within {} s: the server is busy or the request too large; send less at a time \
         or try later",
        time.as_secs_f64()
    );
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
}

/// Counts requests and sets the headers that all answers have.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let running = Running::new(&app.metrics);
    let mut response = next.run(request).await;
    drop(running);
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    app.metrics.answered(route, response.status().as_u16(), began.elapsed());
    secure(response.headers_mut());
    response
}

fn secure(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// A request that runs, until dropped: also when its client goes.
struct Running<'a>(&'a Metrics);

impl<'a> Running<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.running.inc();
        Self(metrics)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.dec();
    }
}
