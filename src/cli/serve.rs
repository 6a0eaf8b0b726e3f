//! `cn-clip serve`: a search server with a page, over a model and the features of pictures.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use cn_clip_data::{image::SizeLimit, tokenizer::CONTEXT_LENGTH};
use cn_clip_eval::{
    features::{Features, Modality},
    serve::{self, App, Batching, Index, IndexKind, Limits, Pictures, ServeError, Served},
};

use super::{
    device::DeviceArg,
    encoder::{self, PrecisionArg},
    model::{self, TowerArgs},
    note, print,
};

/// Flags of `cn-clip serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Weights
    #[arg(long, alias = "resume", value_name = "FILE")]
    checkpoint: PathBuf,
    /// Features of the pictures that are searched, as extract-features writes them
    #[arg(long, alias = "image_feats", value_name = "FILE")]
    image_feats: PathBuf,
    /// The pictures, to be shown: an LMDB, a <split>_imgs.tsv or a folder
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,
    /// exact looks at every picture; hnsw searches a graph, which large collections need
    #[arg(long, value_enum, default_value = "exact")]
    index: IndexArg,
    /// Address to listen on; others than this machine's own need 0.0.0.0 or ::
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Tokens per text, [CLS] and [SEP] included [default: 52, or all that the text tower has]
    #[arg(long, alias = "context_length", value_name = "N")]
    context_length: Option<usize>,
    #[command(flatten)]
    precision: PrecisionArg,
    #[command(flatten)]
    batching: BatchingArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// How pictures are found.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum IndexArg {
    Exact,
    Hnsw,
}

impl IndexArg {
    fn kind(self) -> anyhow::Result<IndexKind> {
        match self {
            Self::Exact => Ok(IndexKind::Exact),
            #[cfg(feature = "hnsw")]
            Self::Hnsw => Ok(IndexKind::Hnsw),
            #[cfg(not(feature = "hnsw"))]
            Self::Hnsw => anyhow::bail!(
                "--index hnsw is not in this build: compile with `--features hnsw`, which needs a \
                 C++ compiler, or leave it out"
            ),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Batching of concurrent requests")]
struct BatchingArgs {
    /// Texts or pictures computed at once
    #[arg(long, alias = "max_batch", value_name = "N", default_value = "32")]
    max_batch: NonZeroUsize,
    /// Milliseconds that the first of a batch waits for more
    #[arg(long, alias = "max_wait", value_name = "MS", default_value_t = 2)]
    max_wait: u64,
    /// Texts or pictures that may wait; more are refused with 503
    #[arg(long, alias = "max_queue", value_name = "N", default_value = "2048")]
    max_queue: NonZeroUsize,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of requests")]
struct LimitArgs {
    /// MiB of a request's body
    #[arg(long, alias = "max_body", value_name = "MIB", default_value = "16")]
    max_body: NonZeroUsize,
    /// Pixels on a side of a picture
    #[arg(long, alias = "max_image_side", value_name = "N", default_value = "8192")]
    max_image_side: NonZeroUsize,
    /// Pixels of a picture
    #[arg(long, alias = "max_image_pixels", value_name = "N", default_value = "33554432")]
    max_image_pixels: NonZeroUsize,
    /// Pictures of a request
    #[arg(long, alias = "max_images", value_name = "N", default_value = "32")]
    max_images: NonZeroUsize,
    /// Texts of a request; for zero-shot, labels times templates
    #[arg(long, alias = "max_texts", value_name = "N", default_value = "1024")]
    max_texts: NonZeroUsize,
    /// Characters of a text
    #[arg(long, alias = "max_text_length", value_name = "N", default_value = "4096")]
    max_text_length: NonZeroUsize,
    /// Hits of a search
    #[arg(long, alias = "max_hits", value_name = "N", default_value = "1000")]
    max_hits: NonZeroUsize,
    /// Requests at the same time; more are refused with 503
    #[arg(long, alias = "max_requests", value_name = "N", default_value = "1024")]
    max_requests: NonZeroUsize,
    /// Connections at the same time; more wait
    #[arg(long, alias = "max_connections", value_name = "N", default_value = "4096")]
    max_connections: NonZeroUsize,
    /// Seconds until a request is answered with 504; also for what runs at shutdown
    #[arg(long, value_name = "S", default_value = "60")]
    timeout: NonZeroUsize,
    /// Seconds for a client to send a request, or to take in a piece of an answer
    #[arg(long, alias = "client_timeout", value_name = "S", default_value = "30")]
    client_timeout: NonZeroUsize,
}

impl BatchingArgs {
    fn batching(&self) -> Batching {
        Batching {
            size: self.max_batch.get(),
            wait: Duration::from_millis(self.max_wait),
            queue: self.max_queue.get(),
        }
    }
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        let seconds = |count: NonZeroUsize| Duration::from_secs(count.get() as u64);
        Limits {
            body: self.max_body.get().saturating_mul(1 << 20),
            picture: SizeLimit {
                pixels: self.max_image_pixels.get() as u64,
                side: self.max_image_side.get() as u64,
            },
            images: self.max_images.get(),
            texts: self.max_texts.get(),
            text_length: self.max_text_length.get(),
            hits: self.max_hits.get(),
            requests: self.max_requests.get(),
            connections: self.max_connections.get(),
            time: seconds(self.timeout),
            client_time: seconds(self.client_timeout),
            ..Limits::default()
        }
    }
}

/// Serves until a signal.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let kind = args.index.kind()?;
    let (limits, batching) = (args.limits.limits(), args.batching.batching());
    limits.check(&batching)?;
    let config = args.towers.config()?;
    let positions = config.text.max_positions;
    let context_length = args.context_length.unwrap_or(CONTEXT_LENGTH.min(positions));
    encoder::context_length(context_length, &config)?;
    let pictures = args.images.as_deref().map(Pictures::open).transpose()?;
    let device = args.device.open()?;
    let features = Features::read(&args.image_feats, Modality::Image)?;
    let expected = config.vision.embed_dim;
    if features.dim() != expected {
        return Err(ServeError::Dimension { features: features.dim(), model: expected }.into());
    }
    let index = Index::new(features, kind, device.clone())?;
    #[cfg(feature = "hnsw")]
    report_recall(&index)?;
    let model = args.precision.apply(model::load(&config, &args.checkpoint, &device)?)?;
    let count = index.len();
    let app =
        App::start(Served { model, config, context_length, index, pictures }, limits, batching)?;
    if !args.host.is_loopback() {
        note(&format!(
            "{} is reachable from other machines: whoever reaches it can search; put a proxy with \
             encryption and authentication in front (docs/serving.md)",
            args.host
        ));
    }
    serve::run(app, SocketAddr::new(args.host, args.port), |address| {
        note(&format!("searching {count} pictures; end it with Ctrl-C"));
        print(&format!("http://{address}/\n"))
    })
}

/// Tells how much of exact search the graph finds.
#[cfg(feature = "hnsw")]
fn report_recall(index: &Index) -> anyhow::Result<()> {
    /// Pictures searched for.
    const SAMPLES: usize = 200;
    if index.kind() == IndexKind::Hnsw {
        let recall = index.recall(10, SAMPLES)?;
        note(&format!("HNSW finds {:.1} % of the best 10 that exact search finds", 100.0 * recall));
    }
    Ok(())
}
