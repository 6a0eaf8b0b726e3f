//! Pictures per second through the evaluation transform, on one core and on all:
//! `cargo run --release -p cn-clip-data --example preprocess_throughput -- [--resolution 224] FILE...`

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use cn_clip_data::image::{ImageTransform, Picture, PixelTransform, normalise_rgb};
use rayon::prelude::*;

const LEAST_TIME: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    let mut resolution = 224;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--resolution" => resolution = arguments.next().unwrap_or_default().parse()?,
            file => files.push(fs::read(file).map_err(|error| format!("{file}: {error}"))?),
        }
    }
    if files.is_empty() {
        return Err("name at least one picture file".into());
    }
    let transform = ImageTransform::new(resolution);
    let length = 3 * resolution * resolution;

    let mut out = vec![0.0; length];
    let one =
        rate(files.len(), || files.iter().try_for_each(|file| transform.apply(file, 0, &mut out)))?;
    let all = rate(files.len(), || {
        files
            .par_iter()
            .try_for_each_init(|| vec![0.0; length], |out, file| transform.apply(file, 0, out))
    })?;

    let (mut decode, mut resize, mut normalise) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for file in &files {
        let start = Instant::now();
        let picture = Picture::decode(file)?;
        let decoded = Instant::now();
        let rgb = transform.rgb_u8(&picture)?;
        let resized = Instant::now();
        normalise_rgb(&rgb, &mut out);
        decode += decoded - start;
        resize += resized - decoded;
        normalise += resized.elapsed();
    }
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3 / files.len() as f64;
    println!("{} pictures to {resolution} x {resolution}", files.len());
    println!("one core   {one:9.1} pictures/s");
    println!("{:2} threads {all:9.1} pictures/s", rayon::current_num_threads());
    println!(
        "decode {:.3} ms, resize {:.3} ms, normalise {:.3} ms per picture",
        milliseconds(decode),
        milliseconds(resize),
        milliseconds(normalise)
    );
    Ok(())
}

/// Pictures per second of `pass`, which handles `count` pictures, after one pass to warm up.
fn rate<E>(count: usize, mut pass: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    pass()?;
    let start = Instant::now();
    let mut passes = 0;
    while start.elapsed() < LEAST_TIME {
        pass()?;
        passes += 1;
    }
    Ok((passes * count) as f64 / start.elapsed().as_secs_f64())
}
