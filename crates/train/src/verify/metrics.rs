//! `metric_captions`, `metric_retrieval`, `metric_vqa`: figures of the crate `score` beside the field's own scripts'.

use std::collections::BTreeMap;

use score::{Recalls, Tokens, VqaAnswer, VqaQuestion};
use serde::Deserialize;
use serde_json::Value;
use tch::Kind;

use super::case::{Case, INPUTS, Tolerance, broken};
use super::sheet::Row;
use crate::error::TrainError;

const GIVEN: &str = "inputs.json";
const FILE: &str = "expected.json";

#[derive(Deserialize)]
struct Captioned {
    references: Vec<String>,
    prediction: String,
}

/// Tokens, corpus figures and figures of each image.
pub(super) fn compare_captions(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("score")?;
    let given: BTreeMap<String, Captioned> = case.json_as(GIVEN)?;
    let expected: Value = case.json(FILE)?;
    let order: Vec<String> = case.part(FILE, &expected, &["per_image_order"])?;
    let find = |image: &String| {
        given
            .get(image)
            .ok_or_else(|| broken(&case.folder().join(GIVEN), &format!("there is no image {image}")))
    };
    let images: Vec<&Captioned> = order.iter().map(find).collect::<Result<_, _>>()?;
    let (references, candidates) = tokens(&images);
    let joined = |captions: &[Tokens]| captions.iter().map(|words| words.join(" ")).collect::<Vec<String>>();
    let mut rows = Vec::new();
    for (image, (references, candidate)) in order.iter().zip(references.iter().zip(&candidates)) {
        let theirs: Vec<String> = case.part(FILE, &expected, &["tokenized_references", image])?;
        rows.push(Row::equal(&format!("tokenized_references.{image}"), &joined(references), &theirs));
        let theirs: Vec<String> = case.part(FILE, &expected, &["tokenized_predictions", image])?;
        let ours = joined(std::slice::from_ref(candidate));
        rows.push(Row::equal(&format!("tokenized_predictions.{image}"), &ours, &theirs));
    }
    let figures = score::caption_figures(&references, &candidates);
    let [bleu1, bleu2, bleu3, bleu4] = figures.bleu;
    for (name, ours) in [
        ("Bleu_1", bleu1),
        ("Bleu_2", bleu2),
        ("Bleu_3", bleu3),
        ("Bleu_4", bleu4),
        ("CIDEr", figures.cider),
        ("ROUGE_L", figures.rouge_l),
    ] {
        rows.push(Row::number(name, ours, case.part(FILE, &expected, &[name])?, limit));
    }
    rows.extend(caption_by_caption(case, &expected, &references, &candidates, limit)?);
    rows.push(Row::left_out("METEOR", "the crate score does not have it"));
    Ok(rows)
}

/// Words of all references and of all predictions, each tokenised as one text, as the script does it.
fn tokens(images: &[&Captioned]) -> (Vec<Vec<Tokens>>, Vec<Tokens>) {
    let texts: Vec<&str> =
        images.iter().flat_map(|image| image.references.iter().map(String::as_str)).collect();
    let mut words = score::tokenize_as_one_text(&texts).into_iter();
    let references =
        images.iter().map(|image| words.by_ref().take(image.references.len()).collect()).collect();
    let predictions: Vec<&str> = images.iter().map(|image| image.prediction.as_str()).collect();
    (references, score::tokenize_as_one_text(&predictions))
}

fn caption_by_caption(
    case: &Case,
    expected: &Value,
    references: &[Vec<Tokens>],
    candidates: &[Tokens],
    limit: Tolerance,
) -> Result<Vec<Row>, TrainError> {
    let mut rows = Vec::new();
    for (name, ours) in
        [("CIDEr", score::cider(references, candidates)), ("ROUGE_L", score::rouge_l(references, candidates))]
    {
        let theirs: Vec<f64> = case.part(FILE, expected, &["per_image", name])?;
        rows.push(Row::list(&format!("per_image.{name}"), &ours, &theirs, limit));
    }
    let ours = score::bleu(references, candidates).per_caption;
    let theirs: [Vec<f64>; 4] = case.part(FILE, expected, &["per_image", "Bleu"])?;
    for (order, theirs) in theirs.iter().enumerate() {
        let ours: Vec<f64> = ours.iter().map(|scores| scores[order]).collect();
        rows.push(Row::list(&format!("per_image.Bleu_{}", order + 1), &ours, theirs, limit));
    }
    Ok(rows)
}

/// Recalls both ways, in per cent, and LAVIS's means of them.
pub(super) fn compare_retrieval(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("score")?;
    let expected: BTreeMap<String, f64> = case.json_as(FILE)?;
    let text = percents(&recalls(case, "scores_i2t", "img2txt")?);
    let image = percents(&recalls(case, "scores_t2i", "txt2img")?);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (text_mean, image_mean) = (mean(&text), mean(&image));
    let ours = BTreeMap::from([
        ("txt_r1", text[0]),
        ("txt_r5", text[1]),
        ("txt_r10", text[2]),
        ("txt_r_mean", text_mean),
        ("img_r1", image[0]),
        ("img_r5", image[1]),
        ("img_r10", image[2]),
        ("img_r_mean", image_mean),
        ("r_mean", mean(&[text_mean, image_mean])),
        ("agg_metrics", text_mean),
    ]);
    let row = |(name, &theirs): (&String, &f64)| match ours.get(name.as_str()) {
        Some(&ours) => Row::number(name, ours, theirs, limit),
        None => Row::short(name, "we have nothing to compare it with"),
    };
    Ok(expected.iter().map(row).collect())
}

fn percents(recalls: &Recalls) -> [f64; 3] {
    [recalls.r1, recalls.r5, recalls.r10].map(|share| 100.0 * share)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Right {
    One(usize),
    Several(Vec<usize>),
}

/// Recalls of the matrix `scores`, whose right columns stand in `right` of `inputs.json`.
fn recalls(case: &Case, scores: &str, right: &str) -> Result<Recalls, TrainError> {
    let matrix = case.tensors(INPUTS)?.with_dims(scores, 2)?.to_kind(Kind::Float);
    let [rows, columns] = [matrix.size()[0] as usize, matrix.size()[1] as usize];
    let given: Value = case.json(GIVEN)?;
    let of_row = |row: usize| -> Result<Vec<usize>, TrainError> {
        let found = match case.part(GIVEN, &given, &[right, &row.to_string()])? {
            Right::One(column) => vec![column],
            Right::Several(columns) => columns,
        };
        match found.iter().all(|&column| column < columns) {
            true => Ok(found),
            false => Err(broken(
                &case.folder().join(GIVEN),
                &format!("{right}.{row} is beyond the {columns} columns"),
            )),
        }
    };
    let right: Vec<Vec<usize>> = (0..rows).map(of_row).collect::<Result<_, _>>()?;
    let values = Vec::<f32>::try_from(matrix.reshape([-1]));
    let values = values.map_err(|error: tch::TchError| case.broken(&error.to_string()))?;
    Ok(score::retrieval_recalls(&values, rows, columns, &right))
}

#[derive(Deserialize)]
struct Annotation {
    question_id: u64,
    question_type: String,
    answer_type: String,
    answers: Vec<Answer>,
    prediction: String,
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Normalised {
    #[serde(rename = "in")]
    text: String,
    punct: String,
    full: String,
}

/// Accuracy as the script rounds it, and the texts that it compares.
pub(super) fn compare_vqa(case: &Case) -> Result<Vec<Row>, TrainError> {
    let given: Value = case.json(GIVEN)?;
    let annotations: Vec<Annotation> = case.part(GIVEN, &given, &["annotations"])?;
    let expected: Value = case.json(FILE)?;
    let (ids, questions): (Vec<String>, Vec<VqaQuestion>) = annotations.into_iter().map(question).unzip();
    let mut rows = Vec::new();
    for (id, question) in ids.iter().zip(&questions) {
        let accuracy = score::vqa_accuracy(&question.prediction, &question.answers);
        let theirs = case.part(FILE, &expected, &["per_question", id])?;
        rows.push(Row::number(&format!("per_question.{id}"), percent(accuracy), theirs, Tolerance::EXACT));
        let theirs: String = case.part(FILE, &expected, &["normalised_prediction", id])?;
        let ours = score::normalise_answer(&question.prediction);
        rows.push(Row::equal(&format!("normalised_prediction.{id}"), &[ours], &[theirs]));
        let theirs: Vec<String> = case.part(FILE, &expected, &["punct_only_answers", id])?;
        let ours: Vec<String> =
            question.answers.iter().map(|answer| score::normalise_punctuation(&answer.text)).collect();
        rows.push(Row::equal(&format!("punct_only_answers.{id}"), &ours, &theirs));
    }
    let figures = score::vqa(&questions);
    let overall = case.part(FILE, &expected, &["accuracy", "overall"])?;
    rows.push(Row::number("accuracy.overall", percent(figures.overall), overall, Tolerance::EXACT));
    for (name, ours) in
        [("perQuestionType", &figures.by_question_type), ("perAnswerType", &figures.by_answer_type)]
    {
        let theirs: BTreeMap<String, f64> = case.part(FILE, &expected, &["accuracy", name])?;
        let ours: Vec<(String, f64)> =
            ours.iter().map(|(kind, share)| (kind.clone(), percent(*share))).collect();
        rows.push(Row::equal(&format!("accuracy.{name}"), &ours, &theirs.into_iter().collect::<Vec<_>>()));
    }
    let theirs: Vec<Normalised> = case.part(FILE, &expected, &["normalise"])?;
    let column = |of: &dyn Fn(&Normalised) -> String| theirs.iter().map(of).collect::<Vec<String>>();
    let punctuation = column(&|it| score::normalise_punctuation(&it.text));
    rows.push(Row::equal("normalise.punct", &punctuation, &column(&|it| it.punct.clone())));
    let full = column(&|it| score::normalise_answer(&it.text));
    rows.push(Row::equal("normalise.full", &full, &column(&|it| it.full.clone())));
    Ok(rows)
}

fn question(annotation: Annotation) -> (String, VqaQuestion) {
    let Annotation { question_id, question_type, answer_type, answers, prediction } = annotation;
    let answer = |entry: Answer| VqaAnswer { text: entry.answer, rest: format!("{:?}", entry.rest) };
    let answers = answers.into_iter().map(answer).collect();
    (question_id.to_string(), VqaQuestion { prediction, answers, question_type, answer_type })
}

/// Per cent with two decimals, as the script rounds.
fn percent(share: f64) -> f64 {
    format!("{:.2}", 100.0 * share).parse().unwrap_or(f64::NAN)
}
