use crate::image::RgbPicture;

/// Colour of what lies outside a picture: CLIP's mean, rounded.
pub const FILL: [u8; 3] = [123, 117, 104];

/// A change of an RGB picture, byte for byte as Pillow's `ImageOps`, `ImageEnhance` and
/// `Image.transform` (bicubic, [`FILL`] outside) make it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// Takes the pixel at `x` from `x + factor * y`.
    ShearX(f64),
    /// Takes the pixel at `y` from `y + factor * x`.
    ShearY(f64),
    /// Rotates counter-clockwise about the centre, in degrees.
    Rotate(f64),
    /// Stretches every channel to the full range.
    AutoContrast,
    /// Flattens the histogram of every channel.
    Equalize,
    /// Negates the picture.
    Invert,
    /// Negates bytes of at least this value.
    Solarize(u8),
    /// Keeps this many high bits of every byte.
    Posterize(u8),
    /// Saturation; 0 is gray, 1 changes nothing.
    Color(f32),
    /// Contrast; 0 is plain gray, 1 changes nothing.
    Contrast(f32),
    /// Brightness; 0 is black, 1 changes nothing.
    Brightness(f32),
    /// Sharpness; 0 is smoothed, 1 changes nothing.
    Sharpness(f32),
}

impl Operation {
    /// The changed picture.
    pub fn apply(self, picture: RgbPicture) -> RgbPicture {
        match self {
            Self::ShearX(factor) => transform(&picture, [1.0, factor, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(factor) => transform(&picture, [1.0, 0.0, 0.0, factor, 1.0, 0.0]),
            Self::Rotate(degrees) => transform(&picture, rotation(&picture, degrees)),
            Self::AutoContrast => with_tables(picture, stretch),
            Self::Equalize => with_tables(picture, flatten),
            Self::Invert => with_bytes(picture, |byte| 255 - byte),
            Self::Solarize(threshold) => {
                with_bytes(picture, |byte| if byte < threshold { byte } else { 255 - byte })
            }
            Self::Posterize(bits) => {
                let mask = !(0xffu16 >> bits.min(8)) as u8;
                with_bytes(picture, |byte| byte & mask)
            }
            Self::Color(factor) => {
                let gray = gray(&picture).flat_map(|level| [level; 3]).collect();
                blend(gray, picture, factor)
            }
            Self::Contrast(factor) => {
                let sum: u64 = gray(&picture).map(u64::from).sum();
                let mean = sum as f64 / (picture.width * picture.height) as f64;
                let plain = vec![(mean + 0.5) as u8; picture.pixels.len()];
                blend(plain, picture, factor)
            }
            Self::Brightness(factor) => blend(vec![0; picture.pixels.len()], picture, factor),
            Self::Sharpness(factor) => blend(smooth(&picture), picture, factor),
        }
    }
}

fn with_bytes(mut picture: RgbPicture, change: impl Fn(u8) -> u8) -> RgbPicture {
    picture.pixels.iter_mut().for_each(|byte| *byte = change(*byte));
    picture
}

type Table = [u8; 256];

/// Maps every channel by a table made from its histogram.
fn with_tables(
    mut picture: RgbPicture,
    table: impl Fn(&[usize; 256]) -> Option<Table>,
) -> RgbPicture {
    let mut histograms = [[0; 256]; 3];
    for pixel in picture.pixels.chunks_exact(3) {
        for (histogram, &byte) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(byte)] += 1;
        }
    }
    for (channel, histogram) in histograms.iter().enumerate() {
        if let Some(table) = table(histogram) {
            for byte in picture.pixels.iter_mut().skip(channel).step_by(3) {
                *byte = table[usize::from(*byte)];
            }
        }
    }
    picture
}

fn stretch(histogram: &[usize; 256]) -> Option<Table> {
    let low = histogram.iter().position(|&count| count > 0)?;
    let high = histogram.iter().rposition(|&count| count > 0)?;
    if low == high {
        return None;
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    Some(std::array::from_fn(|byte| (byte as f64 * scale + offset) as u8))
}

fn flatten(histogram: &[usize; 256]) -> Option<Table> {
    let last = histogram.iter().rev().find(|&&count| count > 0)?;
    let step = (histogram.iter().sum::<usize>() - last) / 255;
    if step == 0 {
        return None;
    }
    let mut sum = step / 2;
    Some(std::array::from_fn(|byte| {
        let level = (sum / step).min(255) as u8;
        sum += histogram[byte];
        level
    }))
}

/// Gray levels (ITU-R BT.601, 16-bit weights).
fn gray(picture: &RgbPicture) -> impl Iterator<Item = u8> {
    picture.pixels.chunks_exact(3).map(|pixel| {
        let [red, green, blue] = [0, 1, 2].map(|channel| u32::from(pixel[channel]));
        ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
    })
}

/// Goes from `base` to the picture by `factor`; beyond 1, past it.
fn blend(base: Vec<u8>, mut picture: RgbPicture, factor: f32) -> RgbPicture {
    for (byte, base) in picture.pixels.iter_mut().zip(base) {
        let difference = i32::from(*byte) - i32::from(base);
        *byte = (f32::from(base) + factor * difference as f32) as u8;
    }
    picture
}

/// Mean of the 3 x 3 neighbourhood, the centre counting five times; the border stays.
fn smooth(picture: &RgbPicture) -> Vec<u8> {
    let mut out = picture.pixels.clone();
    let stride = 3 * picture.width;
    if picture.width < 3 || picture.height < 3 {
        return out;
    }
    let (side, centre) = (1.0 / 13.0, 5.0 / 13.0);
    let row_sum = |at: usize, middle: f32| {
        let sample = |at: usize| f32::from(picture.pixels[at]);
        sample(at - 3) * side + sample(at) * middle + sample(at + 3) * side
    };
    for y in 1..picture.height - 1 {
        let inner = y * stride + 3..(y + 1) * stride - 3;
        for (at, byte) in inner.clone().zip(&mut out[inner]) {
            let below = 0.5 + row_sum(at + stride, side);
            *byte = (below + row_sum(at, centre) + row_sum(at - stride, side)) as u8;
        }
    }
    out
}

/// The map from output to input positions for a rotation about the centre.
fn rotation(picture: &RgbPicture, degrees: f64) -> [f64; 6] {
    let (sin, cos) = (-degrees.rem_euclid(360.0).to_radians()).sin_cos();
    let (sin, cos) = (round_15(sin), round_15(cos));
    let (x, y) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
    [cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y]
}

/// Rounds to 15 decimals, as Pillow does with sines and cosines.
fn round_15(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}

/// Resamples with the cubic of Pillow's `Image.transform`: no antialiasing, double precision.
fn transform(picture: &RgbPicture, map: [f64; 6]) -> RgbPicture {
    let (width, height) = (picture.width, picture.height);
    let inside = |position: f64, length: usize| position >= 0.0 && position < length as f64;
    let mut pixels = Vec::with_capacity(picture.pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
            let u = map[0] * x + map[1] * y + map[2];
            let v = map[3] * x + map[4] * y + map[5];
            let outside = !inside(u, width) || !inside(v, height);
            pixels.extend(if outside { FILL } else { bicubic(picture, u - 0.5, v - 0.5) });
        }
    }
    RgbPicture { width, height, pixels }
}

fn bicubic(picture: &RgbPicture, u: f64, v: f64) -> [u8; 3] {
    let clip = |position: i64, length: usize| position.clamp(0, length as i64 - 1) as usize;
    let (left, top) = (u.floor() as i64, v.floor() as i64);
    let (across, down) = (u - left as f64, v - top as f64);
    let columns = [-1, 0, 1, 2].map(|step| 3 * clip(left + step, picture.width));
    let rows = [-1, 0, 1, 2].map(|step| 3 * picture.width * clip(top + step, picture.height));
    [0, 1, 2].map(|channel| {
        let sample = |at: usize| f64::from(picture.pixels[at + channel]);
        let lines = rows.map(|row| cubic(columns.map(|column| sample(row + column)), across));
        cubic(lines, down).clamp(0.0, 255.0) as u8
    })
}

/// The cubic through samples at -1, 0, 1 and 2 (a = -1), at `t` from 0 to 1.
fn cubic([a, b, c, d]: [f64; 4], t: f64) -> f64 {
    let (linear, square, cube) = (c - a, 2.0 * (a - b) + c - d, b - a - c + d);
    b + t * (linear + t * (square + t * cube))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::SafeTensors;

    use super::*;
    use crate::image::Picture;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/preprocess");

    #[test]
    fn every_operation_is_that_of_pillow() {
        let file = fs::read(format!("{FIXTURES}/augment_input.png")).unwrap();
        let input = Picture::decode(&file).unwrap().into_rgb();
        let data = fs::read(format!("{FIXTURES}/augment_ops.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&data).unwrap();
        let json = fs::read_to_string(format!("{FIXTURES}/augment_ops.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["fill_rgb"], serde_json::json!(FILL));
        let operations = json["ops"].as_object().unwrap();
        assert_eq!(operations.len(), 15);
        for (name, arguments) in operations {
            let value = arguments[0].as_f64().unwrap_or_default();
            let operation = match name.as_str() {
                "ShearX" => Operation::ShearX(value),
                "ShearY" => Operation::ShearY(value),
                "Rotate" | "RotateNeg" => Operation::Rotate(value),
                "AutoContrast" => Operation::AutoContrast,
                "Equalize" => Operation::Equalize,
                "Invert" => Operation::Invert,
                "Solarize" => Operation::Solarize(value as u8),
                "Posterize4" | "Posterize6" => Operation::Posterize(value as u8),
                "Color" | "ColorZero" => Operation::Color(value as f32),
                "Contrast" => Operation::Contrast(value as f32),
                "Brightness" => Operation::Brightness(value as f32),
                "Sharpness" => Operation::Sharpness(value as f32),
                other => panic!("no operation for {other}"),
            };
            let output = operation.apply(input.clone());
            let expected = tensors.tensor(name).unwrap();
            let different =
                output.pixels.iter().zip(expected.data()).filter(|(a, b)| a != b).count();
            assert_eq!(different, 0, "{name}: bytes that differ");
            assert_eq!(output.pixels.len(), expected.data().len(), "{name}");
        }
    }

    #[test]
    fn plain_and_tiny_pictures_pass_through_every_operation() {
        let operations = [
            Operation::ShearX(0.3),
            Operation::ShearY(-0.3),
            Operation::Rotate(27.0),
            Operation::AutoContrast,
            Operation::Equalize,
            Operation::Invert,
            Operation::Solarize(0),
            Operation::Posterize(8),
            Operation::Posterize(0),
            Operation::Color(1.9),
            Operation::Contrast(0.1),
            Operation::Brightness(1.9),
            Operation::Sharpness(1.9),
        ];
        for (width, height) in [(1, 1), (1, 3), (3, 2), (3, 3)] {
            let picture = RgbPicture { width, height, pixels: vec![200; 3 * width * height] };
            for operation in operations {
                let output = operation.apply(picture.clone());
                assert_eq!((output.width, output.height), (width, height));
                assert_eq!(output.pixels.len(), 3 * width * height);
            }
        }
    }
}
