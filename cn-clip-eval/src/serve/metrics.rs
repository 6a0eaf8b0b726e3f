//! Counters for Prometheus, in the OpenMetrics text format.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Content type of [`Metrics::render`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    path: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    path: String,
    status: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Lane {
    lane: &'static str,
}

/// What the server counts.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answer, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    /// Requests that run.
    pub running: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Pictures of the index.
    pub pictures: Gauge,
    batches: Family<Lane, Histogram, fn() -> Histogram>,
    compute: Family<Lane, Histogram, fn() -> Histogram>,
    waiting: Family<Lane, Gauge>,
    abandoned: Family<Lane, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to half a minute.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let sizes: fn() -> Histogram = || Histogram::new(exponential_buckets(1.0, 2.0, 9));
        let mut metrics = Self {
            registry: Registry::with_prefix("cn_clip"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            running: Gauge::default(),
            connections: Gauge::default(),
            pictures: Gauge::default(),
            batches: Family::new_with_constructor(sizes),
            compute: Family::new_with_constructor(seconds),
            waiting: Family::default(),
            abandoned: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Answers by route and status", metrics.requests.clone());
        registry.register("request_seconds", "Time to answer by route", metrics.seconds.clone());
        registry.register("running", "Requests that run", metrics.running.clone());
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register("pictures", "Pictures of the index", metrics.pictures.clone());
        registry.register("batch_size", "Inputs computed at once", metrics.batches.clone());
        registry.register("compute_seconds", "Time of a batch", metrics.compute.clone());
        registry.register("waiting", "Inputs in the queue", metrics.waiting.clone());
        registry.register(
            "abandoned",
            "Inputs not computed because their client had gone",
            metrics.abandoned.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, path: &str, status: u16, time: Duration) {
        let path = path.to_string();
        self.seconds.get_or_create(&Route { path: path.clone() }).observe(time.as_secs_f64());
        self.requests.get_or_create(&Answer { path, status: status.into() }).inc();
    }

    /// The counters of a lane of a batcher.
    pub fn lane(&self, name: &'static str) -> BatchMetrics {
        let lane = Lane { lane: name };
        BatchMetrics {
            sizes: self.batches.get_or_create_owned(&lane),
            seconds: self.compute.get_or_create_owned(&lane),
            waiting: self.waiting.get_or_create_owned(&lane),
            abandoned: self.abandoned.get_or_create_owned(&lane),
        }
    }

    /// All of them as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// What a lane of a batcher counts.
pub(super) struct BatchMetrics {
    sizes: Histogram,
    seconds: Histogram,
    waiting: Gauge,
    abandoned: Counter,
}

impl BatchMetrics {
    pub fn waiting(&self, count: usize) {
        self.waiting.set(count as i64);
    }

    pub fn abandoned(&self, count: usize) {
        self.abandoned.inc_by(count as u64);
    }

    pub fn computed(&self, size: usize, time: Duration) {
        self.sizes.observe(size as f64);
        self.seconds.observe(time.as_secs_f64());
    }
}
