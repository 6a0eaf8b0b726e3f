//! `POST /v1/classify`: pictures into classes that the request names.

use std::collections::HashSet;

use axum::{Json, extract::State};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Shared, Upload, one_or_many};
use crate::{
    serve::{
        encoder::Embedding,
        error::ApiError,
        payload::{Content, Payload, json},
    },
    templates::TemplateSet,
    zeroshot::{Classifier, ZeroShotError},
};

/// Place of the label in a template.
const LABEL: &str = "{}";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    image: Option<String>,
    images: Option<Vec<String>>,
    labels: Vec<String>,
    templates: Option<Vec<String>>,
    template_set: Option<String>,
}

/// Probabilities of the labels for each picture.
#[derive(Serialize)]
pub struct Classified {
    labels: Vec<String>,
    results: Vec<Classes>,
}

#[derive(Serialize)]
struct Classes {
    /// The most probable one.
    label: String,
    /// In the order of the labels.
    probabilities: Vec<f32>,
}

pub async fn classify(State(app): Shared, payload: Payload) -> Result<Json<Classified>, ApiError> {
    payload.only(&["label", "template", "template_set"])?;
    let (uploads, labels, templates, set) = match &payload.content {
        Content::Picture(file) => (
            vec![Upload::File(file.clone())],
            payload.values("label"),
            Some(payload.values("template")).filter(|templates| !templates.is_empty()),
            payload.values("template_set").pop(),
        ),
        Content::Json(body) => {
            payload.only(&[])?;
            let body: Request = json(body)?;
            let images = one_or_many(body.image, body.images, ["image", "images"])?;
            (Upload::base64(images), body.labels, body.templates, body.template_set)
        }
    };
    check_labels(&labels, app.limits.texts)?;
    let prompts = prompts(&labels, templates, set, app.limits.texts)?;
    let per_label = prompts.len() / labels.len();
    app.check_texts(&prompts)?;
    // Pictures first: those that cannot be decoded cost no text.
    let images = app.embed_images(uploads).await?;
    let texts = app.embed_texts(&prompts).await?;
    let device = app.device.clone();
    let classes = labels.len();
    let probabilities =
        app.blocking(move || probabilities(&texts, per_label, &images, &device)).await?;
    let probabilities = probabilities.map_err(|error| ApiError::internal(error.to_string()))?;
    let results = probabilities.chunks(classes).map(|row| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let label = best.map_or_else(String::new, |(best, _)| labels[best].clone());
        Classes { label, probabilities: row.to_vec() }
    });
    let results = results.collect();
    Ok(Json(Classified { labels, results }))
}

fn check_labels(labels: &[String], most: usize) -> Result<(), ApiError> {
    if labels.is_empty() {
        let message = "no labels; send at least one, such as `labels`: [\"猫\", \"狗\"]";
        return Err(ApiError::invalid("no_labels", message));
    }
    if labels.len() > most {
        let message = format!("{} labels are more than {most}; send fewer", labels.len());
        return Err(ApiError::invalid("too_many_texts", message));
    }
    let mut seen = HashSet::new();
    for (index, label) in labels.iter().enumerate() {
        if label.trim().is_empty() {
            let message = format!("label {index} is empty; give it a name");
            return Err(ApiError::invalid("empty_text", message));
        }
        if !seen.insert(label) {
            let message = format!("the label {label:?} is there twice; send each once");
            return Err(ApiError::invalid("duplicate_label", message));
        }
    }
    Ok(())
}

/// All prompts, label by label.
fn prompts(
    labels: &[String],
    templates: Option<Vec<String>>,
    set: Option<String>,
    most: usize,
) -> Result<Vec<String>, ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("bad_template", message));
    let count = match (&templates, &set) {
        (Some(_), Some(_)) => {
            return invalid("send either `templates` or `template_set`".to_string());
        }
        (Some(templates), None) => {
            let wrong = |template: &&String| template.matches(LABEL).count() != 1;
            if let Some(template) = templates.iter().find(wrong) {
                return invalid(format!(
                    "the template {template:?} must hold {LABEL} once, where the label goes"
                ));
            }
            if templates.is_empty() {
                return invalid("`templates` is empty; leave it out or send one".to_string());
            }
            templates.len()
        }
        (None, Some(name)) => match TemplateSet::named(name) {
            Some(set) => set.len(),
            None => {
                let names: Vec<_> = TemplateSet::names().collect();
                return invalid(format!(
                    "there is no template set {name:?}; there are {}",
                    names.join(", ")
                ));
            }
        },
        (None, None) => return Ok(labels.to_vec()),
    };
    if labels.len().saturating_mul(count) > most {
        let message = format!(
            "{} labels times {count} templates are more than {most} texts; send fewer",
            labels.len()
        );
        return Err(ApiError::invalid("too_many_texts", message));
    }
    let set = set.as_deref().and_then(TemplateSet::named);
    let of_label = |label: &String| -> Vec<String> {
        match (&templates, &set) {
            (Some(templates), _) => {
                templates.iter().map(|template| template.replacen(LABEL, label, 1)).collect()
            }
            (None, Some(set)) => set.prompts(label).collect(),
            (None, None) => vec![label.clone()],
        }
    };
    Ok(labels.iter().flat_map(of_label).collect())
}

/// `[images, classes]`, row by row, from the prompts' features, class by class.
fn probabilities(
    texts: &[Embedding],
    per_label: usize,
    images: &[Embedding],
    device: &Device,
) -> Result<Vec<f32>, ZeroShotError> {
    let tensor = |rows: &[Embedding]| {
        let dim = rows.first().map_or(0, Vec::len);
        Tensor::<2>::from_data(TensorData::new(rows.concat(), [rows.len(), dim]), device)
    };
    Classifier::from_prompts(texts.chunks(per_label).map(tensor), device)?
        .probabilities(tensor(images))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| label.to_string()).collect()
    }

    fn code(result: Result<impl Sized, ApiError>) -> String {
        format!("{:?}", result.err().unwrap())
    }

    #[test]
    fn prompts_are_labels_in_templates() {
        let two = labels(&["猫", "狗"]);
        assert_eq!(prompts(&two, None, None, 9).unwrap(), ["猫", "狗"]);
        let own = Some(labels(&["{}的照片", "一只{}"]));
        let expected = ["猫的照片", "一只猫", "狗的照片", "一只狗"];
        assert_eq!(prompts(&two, own.clone(), None, 4).unwrap(), expected);
        let normal = prompts(&two, None, Some("normal".to_string()), 2).unwrap();
        assert_eq!(normal, ["猫的图片", "狗的图片"]);
        assert!(code(prompts(&two, own.clone(), None, 3)).contains("2 labels times 2 templates"));
        let both = prompts(&two, own, Some("normal".to_string()), 9);
        assert!(code(both).contains("either"));
        for bad in [labels(&["照片"]), labels(&["{}{}"]), Vec::new()] {
            assert!(code(prompts(&two, Some(bad), None, 9)).contains("bad_template"));
        }
        let unknown = prompts(&two, None, Some("nosuch".to_string()), 9);
        assert!(code(unknown).contains("there are aircraft,"));
    }

    #[test]
    fn labels_are_checked() {
        assert!(check_labels(&labels(&["a", "b"]), 2).is_ok());
        assert!(code(check_labels(&[], 9)).contains("no_labels"));
        assert!(code(check_labels(&labels(&["a", " "]), 9)).contains("label 1 is empty"));
        assert!(code(check_labels(&labels(&["a", "b", "a"]), 9)).contains("duplicate_label"));
        assert!(code(check_labels(&labels(&["a", "b", "c"]), 2)).contains("too_many_texts"));
    }
}
