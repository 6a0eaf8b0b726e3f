//! Figures as a table, as JSON and as a page with a chart.

use std::{fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, bail};
use serde::Serialize;

use super::{
    Setting,
    cases::{Case, Contender},
    median,
};
use crate::machine::Machine;

/// Over the lines of the table.
pub const HEAD: &str = "case                    contender     median s      per s    peak MiB   \
                        error   ours / it";

/// What we want beside the best peer.
const GOAL: f64 = 1.2;

/// Times of a contender.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// Who.
    pub contender: Contender,
    /// Of each measurement.
    pub seconds: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Most memory.
    pub peak_mib: f64,
    /// Greatest difference from our output, beside its largest value.
    pub error: f32,
}

impl Timing {
    /// Without measurements.
    pub fn new(contender: Contender, error: f32) -> Self {
        Self { contender, seconds: Vec::new(), median: f64::NAN, peak_mib: 0.0, error }
    }

    /// With one more.
    pub fn add(&mut self, seconds: f64, peak_mib: f64) {
        self.seconds.push(seconds);
        self.median = median(&self.seconds);
        self.peak_mib = self.peak_mib.max(peak_mib);
    }
}

#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    about: &'static str,
    items: usize,
    timings: Vec<Timing>,
    /// Rate of ours beside that of the fastest peer of the same precision.
    ratio: Option<f64>,
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    /// Of the peers.
    versions: String,
    cases: Vec<Entry>,
}

impl Report {
    /// Without cases.
    pub fn new(setting: &Setting) -> anyhow::Result<Self> {
        let code = "import torch, onnxruntime, PIL; print(f'PyTorch {torch.__version__}, \
                    onnxruntime {onnxruntime.__version__}, Pillow {PIL.__version__}')";
        let output = Command::new(&setting.python).args(["-c", code]).output();
        let output = output.with_context(|| setting.python.display().to_string())?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {errors}", setting.python.display());
        }
        let versions = String::from_utf8_lossy(&output.stdout).trim().to_string();
        Ok(Self { machine: Machine::here(), versions, cases: Vec::new() })
    }

    /// Machine and peers on one line.
    pub fn machine(&self) -> String {
        format!("{}; {}", self.machine.line(), self.versions)
    }

    /// Adds a case and prints it.
    pub fn add(&mut self, case: &Case, timings: Vec<Timing>) {
        let ours = timings.first().map_or(f64::NAN, |timing| timing.median);
        for timing in &timings {
            let Timing { contender, median, peak_mib, error, .. } = timing;
            println!(
                "{:<23} {:<10} {median:>11.4} {:>10.2} {peak_mib:>11.0} {error:>7.0e} {:>10.2}x",
                case.name,
                contender.name(),
                case.items as f64 / median,
                median / ours,
            );
        }
        let peers = timings
            .iter()
            .filter(|timing| timing.contender != Contender::Ours && !timing.contender.is_reduced());
        let ratio = peers.map(|timing| timing.median / ours).min_by(f64::total_cmp);
        let (name, about, items) = (case.name, case.about, case.items);
        self.cases.push(Entry { name, about, items, timings, ratio });
    }

    /// Writes `peers.json` and `peers.html`.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        for (name, text) in
            [("peers.json", serde_json::to_string_pretty(self)?), ("peers.html", self.page()?)]
        {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn page(&self) -> anyhow::Result<String> {
        let mut page = String::from(
            "<!doctype html>\n<meta charset=\"utf-8\">\n<title>cn-clip beside its peers</title>\n\
             <style>body { font: 15px sans-serif; margin: 2em auto; max-width: 60em } td, th { \
             padding: 2px 10px; text-align: right } td:first-child, th:first-child { text-align: \
             left }</style>\n<h1>cn-clip beside its peers</h1>\n",
        );
        writeln!(page, "<p>{}</p>", escape(&self.machine()))?;
        page.push_str(
            "<p>Medians; same weights and inputs, one program after the other in turn. Outputs \
             agree with ours to the error shown, beside the largest value.</p>\n",
        );
        page.push_str(&self.chart()?);
        page.push_str(
            "<table>\n<tr><th>case<th>contender<th>seconds<th>per second<th>peak MiB<th>error\
             <th>our rate / its\n",
        );
        for entry in &self.cases {
            let ours = entry.timings.first().map_or(f64::NAN, |timing| timing.median);
            for timing in &entry.timings {
                writeln!(
                    page,
                    "<tr><td>{}<td>{}<td>{:.4}<td>{:.2}<td>{:.0}<td>{:.0e}<td>{:.2}",
                    escape(entry.about),
                    timing.contender,
                    timing.median,
                    entry.items as f64 / timing.median,
                    timing.peak_mib,
                    timing.error,
                    timing.median / ours
                )?;
            }
        }
        page.push_str("</table>\n");
        Ok(page)
    }

    /// Bars of the rates beside the fastest peer of the same precision.
    fn chart(&self) -> anyhow::Result<String> {
        const LEFT: f64 = 300.0;
        const WIDTH: f64 = 860.0;
        const BAR: f64 = 13.0;
        let best = |entry: &Entry| {
            let ours = entry.timings.first().map_or(f64::NAN, |timing| timing.median);
            entry.ratio.unwrap_or(1.0) * ours
        };
        let rates: Vec<Vec<f64>> = self
            .cases
            .iter()
            .map(|entry| entry.timings.iter().map(|timing| best(entry) / timing.median).collect())
            .collect();
        let longest = rates.iter().flatten().copied().fold(2.0, f64::max).min(4.0);
        let scale = (WIDTH - LEFT - 50.0) / longest;
        let mut bars = String::new();
        let mut y = 10.0;
        for (entry, rates) in self.cases.iter().zip(&rates) {
            let middle = y + BAR * rates.len() as f64 / 2.0 + 4.0;
            writeln!(bars, "<text x=\"0\" y=\"{middle}\">{}</text>", escape(entry.about))?;
            for (timing, rate) in entry.timings.iter().zip(rates) {
                let color = match timing.contender {
                    Contender::Ours => "#c33",
                    Contender::Torch => "#777",
                    Contender::Onnx => "#58a",
                    Contender::TorchBf16 => "#bbb",
                    Contender::OursInt16 => "#e99",
                };
                let (width, end) = (rate.min(longest) * scale, LEFT + rate.min(longest) * scale);
                writeln!(
                    bars,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{:.0}\" \
                     fill=\"{color}\"/><text x=\"{:.1}\" y=\"{:.0}\">{} {rate:.2}</text>",
                    BAR - 2.0,
                    end + 4.0,
                    y + BAR - 3.0,
                    timing.contender
                )?;
                y += BAR;
            }
            y += BAR;
        }
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {y}\" font-size=\"11\" \
             font-family=\"sans-serif\">\n",
            WIDTH + 40.0
        );
        for (rate, dash) in [(1.0, "none"), (GOAL, "4 3")] {
            let x = LEFT + rate * scale;
            writeln!(
                svg,
                "<path d=\"M{x:.1} 0V{y}\" stroke=\"#ccc\" stroke-dasharray=\"{dash}\"/>"
            )?;
        }
        Ok(svg + &bars + "</svg>\n")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::cases;

    #[test]
    fn ratio_is_to_the_best_peer_of_the_same_precision() {
        let case = cases::all(&[Contender::TorchBf16]).remove(1);
        let timing = |(contender, seconds): (&Contender, f64)| {
            let mut timing = Timing::new(*contender, 0.0);
            for seconds in [seconds, seconds + 1.0, seconds - 0.5] {
                timing.add(seconds, seconds);
            }
            timing
        };
        let timings = case.contenders.iter().zip([2.0, 5.0, 3.0, 1.0]).map(timing).collect();
        let machine = Machine::here();
        let mut report = Report { machine, versions: "<1>".to_string(), cases: Vec::new() };
        report.add(&case, timings);
        assert_eq!(report.cases[0].ratio, Some(1.5));
        assert_eq!(report.cases[0].timings[0].peak_mib, 3.0);
        let page = report.page().unwrap();
        assert!(page.contains("&lt;1>") && page.contains("ours 1.50") && page.contains("<svg"));
        assert!(page.contains("torch-bf16 3.00"));
    }
}
