//! Recall of a prediction file against annotations, with the reference's report
//! (`evaluation.py`, `evaluation_tr.py`).

mod submission;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::features::Modality;
use crate::predictions::Direction;
use crate::python_json;
use cn_clip_data::Id;
use cn_clip_data::atomic::{AtomicFile, check_not_input};

/// Number of predictions that each query must have.
pub const PREDICTIONS_PER_QUERY: usize = 10;

/// Recall in percent; serialises as the `scoreJson` of the report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// The same as `mean_recall`.
    pub score: f64,
    /// Mean of the three below.
    pub mean_recall: f64,
    /// Percent of queries with a true candidate ranked first.
    pub r1: f64,
    /// The same among the first five.
    pub r5: f64,
    /// The same among all ten.
    pub r10: f64,
}

/// Why predictions could not be scored.
///
/// Messages on the prediction file are word for word the reference's, spelling included, as tools
/// read them from the report; those on annotations are ours, where the reference shows an internal
/// error of Python.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// The annotations cannot be read.
    #[error("cannot read the reference file {path}: {source}")]
    ReferenceFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of the annotations is bad.
    #[error("{path}:{line}: the reference line is bad: {reason}")]
    ReferenceLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The annotations are empty.
    #[error("the reference file {path} is empty: there is nothing to score")]
    EmptyReference {
        /// The file.
        path: PathBuf,
    },
    /// The prediction file does not exist.
    #[error("The submission file is not found!")]
    NoSubmission,
    /// The prediction file exists but cannot be read.
    #[error("cannot read the submission file {path}: {source}")]
    SubmissionFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line is not JSON.
    #[error("Cannot parse this line into json object: {line}")]
    NotJson {
        /// The line.
        line: String,
    },
    /// A line has no id.
    #[error("There exists one line not containing {}: {line}", .query.id_key())]
    NoQuery {
        /// The asking side.
        query: Modality,
        /// The line.
        line: String,
    },
    /// An id is not a whole number.
    #[error(
        "Found an invalid {} {id}, it should be an integer (not string), please check your schema",
        .query.id_key()
    )]
    InvalidQuery {
        /// The asking side.
        query: Modality,
        /// What stands there.
        id: String,
    },
    /// A line has no predictions.
    #[error("There exists one line not containing the predicted {}: {line}", .candidate.ids_key())]
    NoPredictions {
        /// The searched side.
        candidate: Modality,
        /// The line.
        line: String,
    },
    /// Predictions are no list.
    #[error(
        "The {} field of {} {id} is not a list, please check your schema",
        .direction.candidate().ids_key(), .direction.query().id_key()
    )]
    NoList {
        /// Who asks whom.
        direction: Direction,
        /// The query.
        id: i64,
    },
    /// Too few or too many predictions.
    #[error(
        "{} {id} has wrong number of predicted {}! Require {PREDICTIONS_PER_QUERY}, but {found} founded.",
        capital_key(.direction.query()), .direction.candidate().ids_key()
    )]
    WrongNumber {
        /// Who asks whom.
        direction: Direction,
        /// The query.
        id: i64,
        /// Number of predictions.
        found: usize,
    },
    /// A prediction is not a whole number.
    #[error(
        "{} {id} has an invalid predicted {} {prediction} at rank {rank}, it should be an integer (not string), please check your schema",
        capital_key(.direction.query()), .direction.candidate().id_key()
    )]
    InvalidPrediction {
        /// Who asks whom.
        direction: Direction,
        /// The query.
        id: i64,
        /// What stands there.
        prediction: String,
        /// Its rank, from 1.
        rank: usize,
    },
    /// A query predicts the same candidate twice.
    #[error(
        "{} {id} has duplicate topk {}s in your prediction. Pleace check again!",
        capital_key(.direction.query()), .direction.candidate()
    )]
    DuplicatePredictions {
        /// Who asks whom.
        direction: Direction,
        /// The query.
        id: i64,
    },
    /// Annotated queries have no predictions.
    #[error(
        "The following {} have no prediction in your submission, please check again: {}",
        .query.ids_key(), join(.ids)
    )]
    Missing {
        /// The asking side.
        query: Modality,
        /// The queries, in the order of the annotations.
        ids: Vec<Id>,
    },
    /// The report cannot be written.
    #[error("cannot write the report {path}: {source}")]
    Report {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

fn capital_key(modality: Modality) -> &'static str {
    match modality {
        Modality::Image => "Image_id",
        Modality::Text => "Text_id",
    }
}

fn join(ids: &[Id]) -> String {
    ids.iter().map(Id::to_string).collect::<Vec<_>>().join(", ")
}

/// Scores the prediction file `submission` against the annotations `reference`.
///
/// Every annotated query must have exactly ten distinct predictions; predictions of other queries
/// are checked but not scored, and a query without a true candidate counts as missed. Of lines with
/// the same id the last one counts.
///
/// # Errors
/// [`EvaluationError`] for the first fault of either file.
pub fn evaluate(
    direction: Direction,
    reference: &Path,
    submission: &Path,
) -> Result<Scores, EvaluationError> {
    let truths = read_reference(direction, reference)?;
    let predictions = submission::read(direction, submission)?;
    let mut hits = [0_usize; 3];
    let mut missing = Vec::new();
    for (query, truth) in &truths {
        let Id::Int(number) = query else {
            missing.push(query.clone());
            continue;
        };
        let Some(predicted) = predictions.get(number) else {
            missing.push(query.clone());
            continue;
        };
        let first = predicted.iter().position(|&id| truth.contains(&Id::Int(id)));
        for (hits, k) in hits.iter_mut().zip([1, 5, 10]) {
            *hits += usize::from(first.is_some_and(|rank| rank < k));
        }
    }
    if !missing.is_empty() {
        return Err(EvaluationError::Missing { query: direction.query(), ids: missing });
    }
    let [r1, r5, r10] = hits.map(|hits| hits as f64 / truths.len() as f64);
    let mean_recall = (r1 + r5 + r10) / 3.0 * 100.0;
    Ok(Scores { score: mean_recall, mean_recall, r1: r1 * 100.0, r5: r5 * 100.0, r10: r10 * 100.0 })
}

/// Scores as [`evaluate`] does and writes the reference's report to `output`, for failures too.
///
/// # Errors
/// Those of [`evaluate`], after the report on them has been written, and
/// [`EvaluationError::Report`] if it could not be written or would replace one of the inputs.
pub fn evaluate_to_file(
    direction: Direction,
    reference: &Path,
    submission: &Path,
    output: &Path,
) -> Result<Scores, EvaluationError> {
    let report = |source| EvaluationError::Report { path: output.to_owned(), source };
    check_not_input(output, &[reference, submission]).map_err(report)?;
    let result = evaluate(direction, reference, submission);
    let mut file = AtomicFile::create(output).map_err(report)?;
    write_report(&mut file, &result).and_then(|()| file.finish()).map_err(report)?;
    result
}

/// Writes the reference's report on a result: one line of JSON without a line end.
///
/// # Errors
/// Those of the writer.
pub fn write_report(
    writer: impl io::Write,
    result: &Result<Scores, EvaluationError>,
) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Success<'a> {
        success: bool,
        score: f64,
        score_json: &'a Scores,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure<'a> {
        error_detail: &'a str,
        error_msg: &'a str,
        score: u8,
        score_json: Map<String, Value>,
        success: bool,
    }
    match result {
        Ok(scores) => {
            let report = Success { success: true, score: scores.score, score_json: scores };
            python_json::write(writer, &report)?;
        }
        Err(error) => {
            let message = error.to_string();
            let report = Failure {
                error_detail: &message,
                error_msg: &message,
                score: 0,
                score_json: Map::new(),
                success: false,
            };
            python_json::write(writer, &report)?;
        }
    }
    Ok(())
}

/// Queries with their true candidates, in the order of the file.
fn read_reference(
    direction: Direction,
    path: &Path,
) -> Result<Vec<(Id, HashSet<Id>)>, EvaluationError> {
    let text = std::fs::read(path)
        .map_err(|source| EvaluationError::ReferenceFile { path: path.to_owned(), source })?;
    let mut rows: HashMap<Id, usize> = HashMap::new();
    let mut truths: Vec<(Id, HashSet<Id>)> = Vec::new();
    for (index, line) in lines(&text).enumerate() {
        let (query, truth) = reference_line(direction, line).map_err(|reason| {
            EvaluationError::ReferenceLine { path: path.to_owned(), line: index + 1, reason }
        })?;
        match rows.get(&query) {
            Some(&row) => truths[row].1 = truth,
            None => {
                rows.insert(query.clone(), truths.len());
                truths.push((query, truth));
            }
        }
    }
    if truths.is_empty() {
        return Err(EvaluationError::EmptyReference { path: path.to_owned() });
    }
    Ok(truths)
}

fn reference_line(direction: Direction, line: &[u8]) -> Result<(Id, HashSet<Id>), String> {
    fn take<'a, T: Deserialize<'a>>(object: &'a Value, key: &str) -> Result<T, String> {
        let value = object.get(key).ok_or_else(|| format!("no \"{key}\""))?;
        T::deserialize(value)
            .map_err(|_| format!("\"{key}\" is {value}, which is no id or list of ids"))
    }
    let object: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let query = take(&object, direction.query().id_key())?;
    let truth = take(&object, direction.candidate().ids_key())?;
    Ok((query, truth))
}

/// Lines of a file; the end of the last one does not begin another.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ended = text.strip_suffix(b"\n").unwrap_or(text);
    let any = !text.is_empty();
    ended.split(|&byte| byte == b'\n').filter(move |_| any)
}

#[cfg(test)]
mod tests;
