//! Which classes are taken for which, as numbers and as a picture.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// Up to so many classes have their names beside the picture.
const NAMED: usize = 60;
/// Up to so many have numbers in the cells.
const NUMBERED: usize = 25;
/// Shades of a cell.
const SHADES: usize = 16;

/// Pictures by true class and by the class ranked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// By true and predicted class; absent where none.
    counts: BTreeMap<(usize, usize), usize>,
}

impl Confusion {
    /// Of `probabilities`, `[targets.len(), classes]` row by row, given the true classes, which are
    /// below `classes`. Among equal probabilities the earlier class ranks first.
    pub fn new(probabilities: &[f32], classes: usize, targets: &[usize]) -> Self {
        let mut counts = BTreeMap::new();
        for (row, &target) in probabilities.chunks_exact(classes).zip(targets) {
            let best =
                (1..classes).fold(0, |best, next| if row[next] > row[best] { next } else { best });
            *counts.entry((target, best)).or_default() += 1;
        }
        Self { classes, counts }
    }

    /// True class, predicted class and number of pictures, where there are any, in ascending order.
    pub fn entries(&self) -> impl Iterator<Item = [usize; 3]> {
        self.counts.iter().map(|(&(target, predicted), &count)| [target, predicted, count])
    }

    /// An SVG picture: true classes are rows, predicted ones columns, and the darker a cell, the
    /// larger the share of its row. `labels` are the names of the classes.
    pub fn svg(&self, labels: &[String]) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail.
        let _ = self.draw(&mut svg, labels);
        svg
    }

    fn draw(&self, out: &mut String, labels: &[String]) -> fmt::Result {
        let classes = self.classes;
        let cell = (640.0 / classes as f64).clamp(0.8, 36.0);
        let named = classes <= NAMED;
        let longest = labels.iter().map(|label| width(label)).fold(0.0, f64::max);
        let size = (cell * 0.6).min(13.0);
        let margin = if named { (longest * size).clamp(20.0, 240.0) + 34.0 } else { 34.0 };
        let side = cell * classes as f64;
        let whole = margin + side + 10.0;
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.1} {whole:.1}" width="{whole:.0}" height="{whole:.0}" font-family="sans-serif" font-size="{size:.1}">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{middle:.1}" y="16" text-anchor="middle" font-size="13">predicted</text>
<text transform="translate(16 {middle:.1}) rotate(-90)" text-anchor="middle" font-size="13">true</text>"##,
            middle = margin + side / 2.0,
        )?;
        self.cells(out, margin, cell)?;
        writeln!(
            out,
            r##"<rect x="{margin:.1}" y="{margin:.1}" width="{side:.1}" height="{side:.1}" fill="none" stroke="#888"/>"##
        )?;
        if named {
            for (class, label) in labels.iter().take(classes).enumerate() {
                let at = margin + (class as f64 + 0.5) * cell + size * 0.35;
                let end = margin - 6.0;
                let label = escape(label);
                writeln!(
                    out,
                    r#"<text x="{end:.1}" y="{at:.1}" text-anchor="end">{label}</text>"#
                )?;
                writeln!(
                    out,
                    r#"<text transform="translate({at:.1} {end:.1}) rotate(-90)">{label}</text>"#
                )?;
            }
        }
        if classes <= NUMBERED {
            for [target, predicted, count] in self.entries() {
                let colour = if self.shade(target, count) > SHADES / 2 { "#fff" } else { "#222" };
                let x = margin + (predicted as f64 + 0.5) * cell;
                let y = margin + (target as f64 + 0.5) * cell + size * 0.35;
                writeln!(
                    out,
                    r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle" fill="{colour}">{count}</text>"#
                )?;
            }
        }
        writeln!(out, "</svg>")
    }

    /// Cells of one shade are one path, so that the file stays small with a thousand classes.
    fn cells(&self, out: &mut String, margin: f64, cell: f64) -> fmt::Result {
        let mut paths = vec![String::new(); SHADES + 1];
        for [target, predicted, count] in self.entries() {
            write!(paths[self.shade(target, count)], "M{predicted} {target}h1v1h-1z")?;
        }
        writeln!(out, r#"<g transform="translate({margin:.1} {margin:.1}) scale({cell:.4})">"#)?;
        for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let share = shade as f64 / SHADES as f64;
            let channel = |full: f64| (255.0 - (255.0 - full) * share).round() as u8;
            let (red, green, blue) = (channel(8.0), channel(48.0), channel(107.0));
            writeln!(out, r##"<path fill="#{red:02x}{green:02x}{blue:02x}" d="{path}"/>"##)?;
        }
        writeln!(out, "</g>")
    }

    /// From 1, a small share of the pictures of a class, to [`SHADES`], all of them.
    fn shade(&self, target: usize, count: usize) -> usize {
        let all: usize =
            self.counts.range((target, 0)..=(target, usize::MAX)).map(|(_, n)| n).sum();
        (count * SHADES).div_ceil(all.max(1))
    }
}

/// Width of a text in units of its size, about.
fn width(text: &str) -> f64 {
    text.chars().map(|letter| if letter.is_ascii() { 0.6 } else { 1.0 }).sum()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: usize) -> Vec<String> {
        (0..count).map(|class| format!("<类{class}>")).collect()
    }

    #[test]
    fn pictures_are_counted_by_true_and_first_class() {
        let probabilities = [0.5, 0.5, 0.0, 0.1, 0.2, 0.7, 0.2, 0.6, 0.2, 0.0, 0.3, 0.7];
        let confusion = Confusion::new(&probabilities, 3, &[1, 2, 1, 2]);
        let entries: Vec<_> = confusion.entries().collect();
        assert_eq!(entries, [[1, 0, 1], [1, 1, 1], [2, 2, 2]]);
    }

    #[test]
    fn small_pictures_have_names_and_numbers() {
        let confusion = Confusion::new(&[0.9, 0.1, 0.8, 0.2, 0.1, 0.9], 2, &[0, 1, 1]);
        let svg = confusion.svg(&labels(2));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // All of class 0 in the darkest shade, halves of class 1 in the middle one.
        assert!(svg.contains("<path fill=\"#08306b\" d=\"M0 0h1v1h-1z\"/>"), "{svg}");
        assert!(svg.contains("d=\"M0 1h1v1h-1zM1 1h1v1h-1z\"/>"), "{svg}");
        assert_eq!(svg.matches("&lt;类1&gt;").count(), 2);
        assert_eq!(svg.matches(">1</text>").count(), 3);
        assert!(!svg.contains("<类"));
    }

    #[test]
    fn large_pictures_have_cells_only() {
        let classes = 1000;
        let counts = (0..classes).map(|class| ((class, (class * 7) % classes), 50)).collect();
        let svg = Confusion { classes, counts }.svg(&labels(classes));
        assert_eq!(svg.matches("<path").count(), 1);
        assert_eq!(svg.matches("h1v1h-1z").count(), classes);
        assert_eq!(svg.matches("<text").count(), 2);
        assert!(svg.len() < 30_000);
    }
}
