use rand::Rng;

/// A random part of a picture of random area and aspect ratio, as torchvision and timm draw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Least and largest area as a fraction of the picture.
    pub area: (f64, f64),
    /// Least and largest width divided by height.
    pub aspect: (f64, f64),
}

/// A part of a picture in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

const TRIES: usize = 10;

impl Default for RandomResizedCrop {
    /// The reference's: area 0.9 to 1, aspect 3/4 to 4/3.
    fn default() -> Self {
        Self { area: (0.9, 1.0), aspect: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

impl RandomResizedCrop {
    /// Draws a part of a picture of `width` x `height` pixels: ten tries, else the largest part
    /// in the middle whose aspect ratio is allowed.
    pub fn draw(&self, width: usize, height: usize, rng: &mut impl Rng) -> Crop {
        let mut between = |low: f64, high: f64| low + (high - low) * rng.random::<f64>();
        let drawn = (0..TRIES).find_map(|_| {
            let area = between(self.area.0, self.area.1) * (width * height) as f64;
            let aspect = between(self.aspect.0.ln(), self.aspect.1.ln()).exp();
            let crop_width = (area * aspect).sqrt().round_ties_even() as usize;
            let crop_height = (area / aspect).sqrt().round_ties_even() as usize;
            let fits = (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height);
            fits.then_some((crop_width, crop_height))
        });
        match drawn {
            Some((crop_width, crop_height)) => Crop {
                left: rng.random_range(0..=width - crop_width),
                top: rng.random_range(0..=height - crop_height),
                width: crop_width,
                height: crop_height,
            },
            None => self.central(width, height),
        }
    }

    fn central(&self, width: usize, height: usize) -> Crop {
        let ratio = width as f64 / height as f64;
        let whole = |length: f64, limit: usize| (length.round_ties_even() as usize).clamp(1, limit);
        let (crop_width, crop_height) = if ratio < self.aspect.0 {
            (width, whole(width as f64 / self.aspect.0, height))
        } else if ratio > self.aspect.1 {
            (whole(height as f64 * self.aspect.1, width), height)
        } else {
            (width, height)
        };
        Crop {
            left: (width - crop_width) / 2,
            top: (height - crop_height) / 2,
            width: crop_width,
            height: crop_height,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn crops_have_the_area_and_aspect_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let crop = RandomResizedCrop::default();
        let (mut left, mut top) = (0, 0);
        for _ in 0..1000 {
            let Crop { left: l, top: t, width, height } = crop.draw(640, 480, &mut rng);
            assert!(l + width <= 640 && t + height <= 480);
            let share = (width * height) as f64 / (640.0 * 480.0);
            assert!((0.89..=1.0).contains(&share), "{share}");
            left = left.max(l);
            top = top.max(t);
        }
        assert!(left > 20 && top > 20);
    }

    #[test]
    fn long_pictures_give_their_middle() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let crop = RandomResizedCrop::default();
        let wide = Crop { left: 433, top: 0, width: 133, height: 100 };
        assert_eq!(crop.draw(1000, 100, &mut rng), wide);
        let tall = Crop { left: 0, top: 433, width: 100, height: 133 };
        assert_eq!(crop.draw(100, 1000, &mut rng), tall);
        for (width, height) in [(1, 1), (1, 2), (2, 1), (1, 1000), (1000, 1)] {
            let crop = crop.draw(width, height, &mut rng);
            assert!(crop.width > 0 && crop.height > 0);
            assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
        }
    }
}
