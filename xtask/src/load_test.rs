//! Many clients at once on a server of this machine, with and without batching.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use burn::module::Module;
use clap::{Args, ValueEnum};
use cn_clip_data::{Id, tokenizer::CONTEXT_LENGTH};
use cn_clip_eval::{
    features::Features,
    serve::{self, App, Batching, Index, IndexKind, Limits, Served},
};
use cn_clip_model::{
    Clip, ClipConfig, DeviceSpec,
    checkpoint::{self, Checkpoint},
};

/// A picture for the clients to search by.
const PICTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/emoji/zeroshot/test/000/0000.jpg");

/// Flags of `cargo xtask load-test`.
#[derive(Debug, Args)]
pub struct LoadTestArgs {
    /// Clients, each with one request at a time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Seconds of each of the two runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What clients search by
    #[arg(long, value_enum, default_value = "mixed")]
    by: By,
    /// Image tower
    #[arg(long, default_value = "assets/demo/vision.json")]
    vision_model: String,
    /// Text tower
    #[arg(long, default_value = "assets/demo/text.json")]
    text_model: String,
    /// Weights; random ones take the same time
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Pictures of the index, with features drawn at random
    #[arg(long, default_value_t = 10_000)]
    pictures: usize,
    /// Texts or pictures that the batching server computes at once
    #[arg(long, default_value_t = Batching::default().size)]
    max_batch: usize,
    /// Device
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Be the server, with batches of `--max-batch`
    #[arg(long, hide = true)]
    server: bool,
}

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// Texts, each another
    Text,
    /// A picture
    Image,
    /// A picture every fifth time
    Mixed,
}

/// Runs both servers one after the other and compares them.
pub fn run(args: &LoadTestArgs) -> anyhow::Result<()> {
    if args.server {
        return serve(args);
    }
    if args.clients == 0 || args.pictures == 0 || args.max_batch == 0 {
        bail!("--clients, --pictures and --max-batch must be at least 1");
    }
    println!(
        "{} clients, {} s, search by {:?} among {} pictures, {} + {}, {}, {} threads",
        args.clients,
        args.seconds,
        args.by,
        args.pictures,
        args.vision_model,
        args.text_model,
        args.device,
        thread::available_parallelism().map_or(0, usize::from)
    );
    println!(
        "{:<14} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "server", "answers", "errors", "per second", "p50 ms", "p99 ms", "max ms"
    );
    let alone = measure(args, 1)?;
    let batched = measure(args, args.max_batch)?;
    println!("gain of batching: {:.2} times the throughput", batched / alone);
    Ok(())
}

/// Answers per second of a server.
fn measure(args: &LoadTestArgs, max_batch: usize) -> anyhow::Result<f64> {
    let server = Server::start(max_batch)?;
    let picture = fs::read(PICTURE).with_context(|| format!("reading {PICTURE}"))?;
    let began = Instant::now();
    let until = began + Duration::from_secs(args.seconds);
    let seen = thread::scope(|scope| {
        let clients: Vec<_> = (0..args.clients)
            .map(|client| {
                let (url, picture) = (server.url.as_str(), picture.as_slice());
                scope.spawn(move || requests(url, client, args.by, picture, until))
            })
            .collect();
        clients.into_iter().filter_map(|client| client.join().ok()).collect::<Vec<_>>()
    });
    let elapsed = began.elapsed().as_secs_f64();
    let mut times: Vec<f64> = seen.iter().flat_map(|seen| &seen.times).copied().collect();
    times.sort_by(f64::total_cmp);
    let mut errors: BTreeMap<&str, usize> = BTreeMap::new();
    for error in seen.iter().flat_map(|seen| &seen.errors) {
        *errors.entry(error).or_default() += 1;
    }
    let at = |share: f64| {
        let index = (share * times.len() as f64) as usize;
        1000.0 * times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    let rate = times.len() as f64 / elapsed;
    println!(
        "{:<14} {:>10} {:>8} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
        format!("batch {max_batch}"),
        times.len(),
        errors.values().sum::<usize>(),
        rate,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    for (error, count) in errors {
        println!("  {count} times {error}");
    }
    Ok(rate)
}

/// Seconds of the answers of a client, and its errors.
#[derive(Default)]
struct Seen {
    times: Vec<f64>,
    errors: Vec<String>,
}

fn requests(url: &str, client: usize, by: By, picture: &[u8], until: Instant) -> Seen {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(120))).build().into();
    let search = format!("{url}v1/search?k=10");
    let mut seen = Seen::default();
    for number in 0.. {
        let began = Instant::now();
        if began >= until {
            break;
        }
        let picture_now = match by {
            By::Text => false,
            By::Image => true,
            By::Mixed => (client + number).is_multiple_of(5),
        };
        let result = if picture_now {
            agent.post(&search).content_type("image/jpeg").send(picture)
        } else {
            let text = format!("第{client}位顾客的第{number}次查询：红色的苹果和绿色的树");
            let body = serde_json::json!({ "text": text }).to_string();
            agent.post(&search).content_type("application/json").send(body)
        };
        let answer = result.and_then(|mut answer| answer.body_mut().read_to_string());
        match answer {
            Ok(_) => seen.times.push(began.elapsed().as_secs_f64()),
            Err(error) => seen.errors.push(error.to_string()),
        }
    }
    seen
}

/// This program again, as a server.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(max_batch: usize) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(std::env::args().skip(1))
            .args(["--server".to_string(), format!("--max-batch={max_batch}")])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let output = child.stdout.take().context("the server has no output")?;
        let mut server = Self { child, url: String::new() };
        BufReader::new(output).read_line(&mut server.url).context("the server's address")?;
        server.url.truncate(server.url.trim_end().len());
        if server.url.is_empty() {
            bail!("the server did not start");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(args: &LoadTestArgs) -> anyhow::Result<()> {
    let config = ClipConfig::load(&args.vision_model, &args.text_model)?;
    let device = args.device.open()?;
    let model = Clip::init(&config, &device, 1);
    let model = match &args.checkpoint {
        Some(path) => checkpoint::load(model, &Checkpoint::open(path)?)?,
        None => model,
    };
    let dim = config.vision.embed_dim;
    let ids = (0..args.pictures as i64).map(Id::Int).collect();
    let features = Features::new(ids, dim, noise(args.pictures, dim))?;
    let index = Index::new(features, IndexKind::Exact, device)?;
    let context_length = CONTEXT_LENGTH.min(config.text.max_positions);
    let served = Served { model: model.valid(), config, context_length, index, pictures: None };
    let wait = if args.max_batch == 1 { Duration::ZERO } else { Batching::default().wait };
    let batching = Batching { size: args.max_batch, wait, ..Batching::default() };
    let app = App::start(served, Limits::default(), batching)?;
    serve::run(app, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |address| {
        println!("http://{address}/");
        Ok(())
    })
}

/// Unit vectors of a fixed sequence.
fn noise(rows: usize, dim: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut values: Vec<f32> = (0..rows * dim)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    for row in values.chunks_exact_mut(dim) {
        let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        row.iter_mut().for_each(|value| *value /= norm);
    }
    values
}
