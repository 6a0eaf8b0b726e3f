//! Lines on two logarithmic axes, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;
const COLORS: [&str; 5] = ["#c33", "#36a", "#393", "#a63", "#639"];

/// A line: its name and its points.
pub type Line = (String, Vec<(f64, f64)>);

/// Draws lines; points that are not positive are left out.
pub fn log_log(
    title: &str,
    x_name: &str,
    y_name: &str,
    lines: &[Line],
) -> Result<String, std::fmt::Error> {
    let positive = |point: &(f64, f64)| point.0 > 0.0 && point.1 > 0.0;
    let points: Vec<(f64, f64)> =
        lines.iter().flat_map(|(_, points)| points).copied().filter(positive).collect();
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0))
    };
    let (x_low, x_high) = range(&mut points.iter().map(|point| point.0));
    let (y_low, y_high) = range(&mut points.iter().map(|point| point.1));
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x_of = |x: f64| LEFT + (x.log10() - x_low) / (x_high - x_low) * width;
    let y_of = |y: f64| TOP + (y_high - y.log10()) / (y_high - y_low) * height;
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}\
         </text>\n<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{x_name}</text>\n<text \
         transform=\"translate(12 {:.0}) rotate(-90)\" text-anchor=\"middle\">{y_name}</text>",
        LEFT + width / 2.0,
        HEIGHT - 6.0,
        TOP + height / 2.0
    )?;
    for decade in decades(x_low, x_high) {
        let x = x_of(decade);
        writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP}v{height}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.0}\" \
             text-anchor=\"middle\">{}</text>",
            TOP + height + 14.0,
            label(decade)
        )?;
    }
    for decade in decades(y_low, y_high) {
        let y = y_of(decade);
        writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}h{width}\" stroke=\"#ddd\"/><text x=\"{:.0}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            LEFT - 4.0,
            y + 4.0,
            label(decade)
        )?;
    }
    for (index, ((name, points), color)) in lines.iter().zip(COLORS.iter().cycle()).enumerate() {
        let mut path = String::new();
        for (x, y) in points.iter().copied().filter(positive) {
            write!(path, "{:.1},{:.1} ", x_of(x), y_of(y))?;
            writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{color}\"/>",
                x_of(x),
                y_of(y)
            )?;
        }
        let y = TOP + 12.0 + 16.0 * index as f64;
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/><text x=\"{:.0}\" \
             y=\"{y:.0}\" fill=\"{color}\">{name}</text>",
            path.trim_end(),
            LEFT + width + 8.0
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn decades(low: f64, high: f64) -> impl Iterator<Item = f64> {
    (low as i32..=high as i32).map(|power| 10f64.powi(power))
}

fn label(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_on_their_decades() {
        let lines = [("a".to_string(), vec![(1.0, 0.1), (1000.0, 10.0), (5.0, 0.0)])];
        let svg = log_log("t", "x", "y", &lines).unwrap();
        let right = WIDTH - RIGHT;
        let line = format!("points=\"{LEFT:.1},{:.1} {right:.1},{TOP:.1}\"", HEIGHT - BOTTOM);
        assert!(svg.contains(&line), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains(">1k<") && svg.contains(">0.1<"));
    }
}
