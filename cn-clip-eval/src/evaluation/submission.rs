//! Reading prediction files with the reference's checks, in its order.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::{EvaluationError, PREDICTIONS_PER_QUERY, lines};
use crate::predictions::Direction;
use crate::python_json::python_float;

/// Predictions by query; of lines with the same id the last one counts.
pub(super) fn read(
    direction: Direction,
    path: &Path,
) -> Result<HashMap<i64, Vec<i64>>, EvaluationError> {
    let text = std::fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => EvaluationError::NoSubmission,
        _ => EvaluationError::SubmissionFile { path: path.to_owned(), source },
    })?;
    lines(&text).map(|line| parse_line(direction, line)).collect()
}

fn parse_line(direction: Direction, line: &[u8]) -> Result<(i64, Vec<i64>), EvaluationError> {
    let (query, candidate) = (direction.query(), direction.candidate());
    let line = String::from_utf8_lossy(line);
    // What Python's `strip` takes off.
    let line = line.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    let line = || line.to_owned();
    let object: Value =
        serde_json::from_str(&line()).map_err(|_| EvaluationError::NotJson { line: line() })?;

    let id = object
        .get(query.id_key())
        .ok_or_else(|| EvaluationError::NoQuery { query, line: line() })?;
    let id =
        id.as_i64().ok_or_else(|| EvaluationError::InvalidQuery { query, id: python_str(id) })?;

    let predictions = object
        .get(candidate.ids_key())
        .ok_or_else(|| EvaluationError::NoPredictions { candidate, line: line() })?
        .as_array()
        .ok_or(EvaluationError::NoList { direction, id })?;
    let found = predictions.len();
    if found != PREDICTIONS_PER_QUERY {
        return Err(EvaluationError::WrongNumber { direction, id, found });
    }
    let number = |(index, value): (usize, &Value)| {
        value.as_i64().ok_or_else(|| EvaluationError::InvalidPrediction {
            direction,
            id,
            prediction: python_str(value),
            rank: index + 1,
        })
    };
    let numbers: Vec<i64> = predictions.iter().enumerate().map(number).collect::<Result<_, _>>()?;
    if numbers.iter().collect::<HashSet<_>>().len() != numbers.len() {
        return Err(EvaluationError::DuplicatePredictions { direction, id });
    }
    Ok((id, numbers))
}

/// How Python's `str` shows a parsed value; lists and objects stay JSON.
fn python_str(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => python_float(float),
            _ => number.to_string(),
        },
        Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}
