//! Confidence intervals of recall, by the bootstrap.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::RecallReport;

/// How intervals are drawn: percentiles of the figures of samples of the queries, each as many as
/// there are, drawn with replacement (Efron 1979).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Percent of the intervals that should hold the true figure, above 0 and below 100.
    pub level: f64,
    /// Samples drawn, at least 1.
    pub samples: usize,
    /// The same seed draws the same samples.
    pub seed: u64,
}

/// Lower and upper end.
pub type Interval = [f64; 2];

/// Intervals of the figures of a [`RecallReport`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Intervals {
    /// Recall at 1, percent.
    pub r1: Interval,
    /// Recall at 5.
    pub r5: Interval,
    /// Recall at 10.
    pub r10: Interval,
    /// Mean of the three.
    pub mean_recall: Interval,
    /// Median rank.
    pub median_rank: Interval,
}

impl Bootstrap {
    /// Intervals from the ranks (from 1) of the best true candidates, one per query, at least one.
    pub fn intervals(&self, ranks: &[usize]) -> Intervals {
        let reports: Vec<RecallReport> = (0..self.samples.max(1) as u64)
            .into_par_iter()
            .map(|sample| {
                let mut random = ChaCha8Rng::seed_from_u64(self.seed);
                random.set_stream(sample);
                let draw = |_| ranks[random.random_range(0..ranks.len())];
                RecallReport::new(&(0..ranks.len()).map(draw).collect::<Vec<_>>())
            })
            .collect();
        let interval = |figure: fn(&RecallReport) -> f64| {
            let mut values: Vec<f64> = reports.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            self.percentiles(&values)
        };
        Intervals {
            r1: interval(|report| report.r1),
            r5: interval(|report| report.r5),
            r10: interval(|report| report.r10),
            mean_recall: interval(|report| report.mean_recall),
            median_rank: interval(|report| report.median_rank),
        }
    }

    /// The ends of the middle `level` percent of sorted values.
    fn percentiles(&self, values: &[f64]) -> Interval {
        let tail = (1.0 - self.level / 100.0) / 2.0;
        let last = values.len() - 1;
        let at = |share: f64| values[((share * last as f64).round() as usize).min(last)];
        [at(tail), at(1.0 - tail)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { level: 95.0, samples: 2000, seed: 7 };

    /// 400 queries, 100 of them found first.
    fn ranks() -> Vec<usize> {
        (0..400).map(|query| if query % 4 == 0 { 1 } else { 7 }).collect()
    }

    #[test]
    fn intervals_are_those_of_the_binomial() {
        let found = BOOTSTRAP.intervals(&ranks());
        // A quarter of 400: standard deviation sqrt(.25 * .75 / 400), 2.165 %.
        let expected = [25.0 - 1.96 * 2.165, 25.0 + 1.96 * 2.165];
        for (found, expected) in found.r1.iter().zip(expected) {
            assert!((found - expected).abs() < 0.6, "{found} {expected}");
        }
        assert_eq!((found.r5, found.r10), (found.r1, [100.0, 100.0]));
        assert_eq!(found.median_rank, [7.0, 7.0]);
        let wider = Bootstrap { level: 99.0, ..BOOTSTRAP }.intervals(&ranks());
        assert!(wider.r1[0] < found.r1[0] && wider.r1[1] > found.r1[1]);
    }

    #[test]
    fn seeds_decide_the_samples() {
        let found = BOOTSTRAP.intervals(&ranks());
        assert_eq!(BOOTSTRAP.intervals(&ranks()), found);
        let others = (8..12).map(|seed| Bootstrap { seed, ..BOOTSTRAP }.intervals(&ranks()));
        assert!(others.into_iter().any(|other| other != found));
    }

    #[test]
    fn one_query_has_no_spread() {
        let found = BOOTSTRAP.intervals(&[3]);
        assert_eq!((found.r1, found.r5, found.median_rank), ([0.0; 2], [100.0; 2], [3.0; 2]));
    }
}
