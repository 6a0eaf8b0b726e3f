//! Curves as SVG.

use std::fmt;

use super::Escaped;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Points drawn of a curve at most; of longer ones neighbours are averaged.
const MOST_POINTS: usize = 360;
/// Kinds of lines of the style sheet.
const KINDS: usize = 6;
/// Decimals of a label at most; smaller numbers have an exponent.
const MOST_DIGITS: usize = 3;

/// Values over training steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Step and value; values that are not finite are left out.
    pub points: Vec<(u64, f32)>,
}

impl Curve {
    fn drawn(&self) -> Vec<(f64, f64)> {
        let finite: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter(|(_, value)| value.is_finite())
            .map(|&(step, value)| (step as f64, f64::from(value)))
            .collect();
        let size = finite.len().div_ceil(MOST_POINTS).max(1);
        let mean = |part: &[(f64, f64)]| {
            let (x, y) = part.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
            (x / part.len() as f64, y / part.len() as f64)
        };
        finite.chunks(size).map(mean).collect()
    }
}

/// Writes a plot with axes, grid and legend. Nothing, if no curve has a point.
pub fn plot(f: &mut fmt::Formatter<'_>, axis: &str, curves: &[Curve]) -> fmt::Result {
    let drawn: Vec<Vec<(f64, f64)>> = curves.iter().map(Curve::drawn).collect();
    let all = || drawn.iter().flatten();
    let Some(&first) = all().next() else { return Ok(()) };
    let (end, low, high) = all().fold((first.0, first.1, first.1), |(end, low, high), &(x, y)| {
        (end.max(x), low.min(y), high.max(y))
    });
    let horizontal = Ticks::new(0.0, end.max(1.0));
    let vertical = Ticks::new(low.min(0.0), high.max(low + 1e-6));
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * horizontal.place(step);
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * vertical.place(value);
    f.write_str("<figure>\n")?;
    legend(f, axis, curves)?;
    writeln!(
        f,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over steps\">",
        Escaped(axis)
    )?;
    for tick in vertical.values() {
        let (right, height) = (WIDTH - RIGHT, y(tick));
        writeln!(
            f,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{height:.1}\" \
             y2=\"{height:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            height + 4.0,
            vertical.label(tick)
        )?;
    }
    for tick in horizontal.values() {
        writeln!(
            f,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            HEIGHT - BOTTOM + 18.0,
            horizontal.label(tick)
        )?;
    }
    let bottom = HEIGHT - BOTTOM;
    writeln!(
        f,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">steps</text>",
        WIDTH - RIGHT,
        WIDTH - RIGHT,
        HEIGHT - 6.0
    )?;
    for (index, points) in drawn.iter().enumerate() {
        write!(f, "<polyline class=\"curve{}\" points=\"", index % KINDS)?;
        points.iter().try_for_each(|&(a, b)| write!(f, "{:.1},{:.1} ", x(a), y(b)))?;
        f.write_str("\"/>\n")?;
    }
    f.write_str("</svg>\n</figure>\n")
}

/// What is drawn, each curve with its last value.
fn legend(f: &mut fmt::Formatter<'_>, axis: &str, curves: &[Curve]) -> fmt::Result {
    write!(f, "<figcaption><b>{}</b>", Escaped(axis))?;
    for (index, curve) in curves.iter().enumerate() {
        write!(
            f,
            " <span class=\"key\"><svg viewBox=\"0 0 24 8\" aria-hidden=\"true\"><polyline \
             class=\"curve{}\" points=\"0,4 24,4\"/></svg> {}",
            index % KINDS,
            Escaped(&curve.name)
        )?;
        if let Some((_, last)) = curve.drawn().last() {
            match last.abs() {
                size if size > 0.0 && size < 0.005 => write!(f, " ({last:.1e} at the end)")?,
                _ => write!(f, " ({last:.2} at the end)")?,
            }
        }
        f.write_str("</span>")?;
    }
    f.write_str("</figcaption>\n")
}

/// Round values along an axis.
struct Ticks {
    step: f64,
    low: f64,
    high: f64,
}

impl Ticks {
    fn new(low: f64, high: f64) -> Self {
        let span = high - low;
        let rough = span / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self { step, low: (low / step).floor() * step, high }
    }

    /// From 0 at the low end to 1 at the high end.
    fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step + 1e-9).floor() as usize;
        let (low, step) = (self.low, self.step);
        (0..=count).map(move |index| low + index as f64 * step)
    }

    fn label(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        if digits <= MOST_DIGITS || value.abs() < self.step / 2.0 {
            let digits = if digits <= MOST_DIGITS { digits } else { 0 };
            return format!("{value:.digits$}");
        }
        // Down to the digit of the step.
        let exponent = |value: f64| (value.abs() * (1.0 + 1e-9)).log10().floor();
        let finer = (exponent(value) - exponent(self.step)).max(0.0) as usize;
        format!("{value:.finer$e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plot(Vec<Curve>);

    impl fmt::Display for Plot {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            plot(f, "loss", &self.0)
        }
    }

    fn curve(points: &[(u64, f32)]) -> Curve {
        Curve { name: "train".to_string(), points: points.to_vec() }
    }

    #[test]
    fn points_are_where_their_values_put_them() {
        let svg = Plot(vec![curve(&[(0, 0.0), (50, 5.0), (100, 10.0)])]).to_string();
        // The plot reaches from 48 to 708 and from 256 up to 12.
        assert!(svg.contains("points=\"48.0,256.0 378.0,134.0 708.0,12.0 \""), "{svg}");
        assert!(svg.contains(">10</text>") && svg.contains(">100</text>"), "{svg}");
        assert!(svg.contains("train (10.00 at the end)"), "{svg}");
    }

    #[test]
    fn every_curve_has_a_line_of_its_own() {
        let style = include_str!("../../assets/report.css");
        let svg = Plot(vec![curve(&[(0, 1.0), (9, 3e-6)]); KINDS]).to_string();
        for kind in 0..KINDS {
            assert_eq!(svg.matches(&format!("class=\"curve{kind}\"")).count(), 2, "{svg}");
            assert!(style.contains(&format!(".curve{kind} {{ stroke: var(")), "{kind}");
        }
        assert!(svg.contains("train (3.0e-6 at the end)"), "{svg}");
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let svg = Plot(vec![curve(&[(1, f32::NAN), (2, 1.0), (3, f32::INFINITY)])]).to_string();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(Plot(vec![curve(&[(1, f32::NAN)])]).to_string(), "");
        assert_eq!(Plot(vec![]).to_string(), "");
    }

    #[test]
    fn flat_and_negative_curves_have_an_axis() {
        for points in [[(0, 0.0), (9, 0.0)], [(0, -3.0), (9, -1.0)], [(5, 7.0), (5, 7.0)]] {
            let svg = Plot(vec![curve(&points)]).to_string();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn long_curves_are_averaged() {
        let points: Vec<(u64, f32)> = (0..10_000).map(|step| (step, (step % 2) as f32)).collect();
        let drawn = curve(&points).drawn();
        assert!(drawn.len() <= MOST_POINTS);
        assert!(drawn.iter().all(|(_, value)| (value - 0.5).abs() < 1e-9));
    }

    #[test]
    fn ticks_are_round() {
        let ticks = Ticks::new(0.0, 4.7);
        assert_eq!(
            ticks.values().map(|v| ticks.label(v)).collect::<Vec<_>>(),
            ["0", "1", "2", "3", "4"]
        );
        let ticks = Ticks::new(0.0, 0.9);
        assert_eq!(ticks.label(0.2), "0.2");
        // Learning rates.
        let labels = |high: f64| {
            let ticks = Ticks::new(0.0, high);
            ticks.values().map(|value| ticks.label(value)).collect::<Vec<_>>()
        };
        assert_eq!(labels(5e-5), ["0", "1e-5", "2e-5", "3e-5", "4e-5", "5e-5"]);
        assert_eq!(labels(1e-3), ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1.0e-3"]);
    }
}
