//! Figures beside those of the peers' own scripts (`tests/golden/metric_*`), within the tolerance that each case names.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use score::{Recalls, Tokens, VqaAnswer, VqaQuestion};
use serde_json::Value;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn json(case_name: &str, file: &str) -> Value {
    let bytes = fs::read(case(case_name).join(file)).expect("golden file");
    serde_json::from_slice(&bytes).expect("json")
}

/// `key = number` of the case's `[tolerance]`.
fn tolerance(case_name: &str, key: &str) -> f64 {
    let text = fs::read_to_string(case(case_name).join("case.toml")).expect("case.toml");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the tolerance's key");
    line.trim_start_matches([' ', '=']).parse().expect("a number")
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

/// References and candidate of each image, as they are, in the order of the expected per-image figures.
fn caption_inputs(expected: &Value) -> (Vec<Vec<String>>, Vec<String>) {
    let inputs = json("metric_captions", "inputs.json");
    let of = |image: &String| {
        let prediction = inputs[image]["prediction"].as_str().expect("a prediction").to_owned();
        (texts(&inputs[image]["references"]), prediction)
    };
    texts(&expected["per_image_order"]).iter().map(of).unzip()
}

#[test]
fn captions_are_tokenised_as_by_the_treebank() {
    let expected = json("metric_captions", "expected.json");
    let (references, candidates) = caption_inputs(&expected);
    let joined = |caption: &String| score::tokenize(caption).join(" ");
    for (place, image) in texts(&expected["per_image_order"]).iter().enumerate() {
        let tokenised: Vec<String> = references[place].iter().map(joined).collect();
        assert_eq!(tokenised, texts(&expected["tokenized_references"][image]), "image {image}");
        assert_eq!([joined(&candidates[place])].to_vec(), texts(&expected["tokenized_predictions"][image]));
    }
}

#[test]
fn caption_figures_are_pycocoevalcaps() {
    let expected = json("metric_captions", "expected.json");
    let within = tolerance("metric_captions", "score_abs");
    let close = |ours: f64, theirs: &Value, what: &str| {
        let theirs = theirs.as_f64().expect("a number");
        assert!((ours - theirs).abs() <= within, "{what}: {ours} against {theirs}");
    };
    let (references, candidates) = caption_inputs(&expected);
    let figures = score::captions(&references, &candidates);
    close(figures.cider, &expected["CIDEr"], "CIDEr");
    close(figures.rouge_l, &expected["ROUGE_L"], "ROUGE_L");
    for (index, bleu) in figures.bleu.iter().enumerate() {
        close(*bleu, &expected[format!("Bleu_{}", index + 1)], "BLEU");
    }

    let tokens =
        |captions: &Vec<String>| captions.iter().map(|c| score::tokenize(c)).collect::<Vec<Tokens>>();
    let references: Vec<Vec<Tokens>> = references.iter().map(tokens).collect();
    let candidates = tokens(&candidates);
    let per_image = &expected["per_image"];
    let all_close = |ours: &[f64], theirs: &Value, what: &str| {
        let theirs = numbers(theirs);
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= within, "{what}: {ours} against {theirs}");
        }
    };
    all_close(&score::cider(&references, &candidates), &per_image["CIDEr"], "CIDEr per image");
    all_close(&score::rouge_l(&references, &candidates), &per_image["ROUGE_L"], "ROUGE_L per image");
    let bleu = score::bleu(&references, &candidates).per_caption;
    for index in 0..4 {
        let of_length: Vec<f64> = bleu.iter().map(|scores| scores[index]).collect();
        all_close(&of_length, &per_image["Bleu"][index], "BLEU per image");
    }
}

#[test]
fn recalls_are_lavis() {
    let (inputs, expected) =
        (json("metric_retrieval", "inputs.json"), json("metric_retrieval", "expected.json"));
    let within = tolerance("metric_retrieval", "score_abs");
    let bytes = fs::read(case("metric_retrieval").join("inputs.safetensors")).expect("scores");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let recalls = |tensor: &str, right: &str| -> Recalls {
        let tensor = tensors.tensor(tensor).expect("tensor");
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
        let right_of = |row: usize| match &inputs[right][row.to_string()] {
            Value::Array(several) => {
                several.iter().map(|column| column.as_u64().expect("column") as usize).collect()
            }
            one => vec![one.as_u64().expect("column") as usize],
        };
        let right: Vec<Vec<usize>> = (0..rows).map(right_of).collect();
        score::retrieval_recalls(&values.collect::<Vec<_>>(), rows, columns, &right)
    };
    for (prefix, recalls) in
        [("txt", recalls("scores_i2t", "img2txt")), ("img", recalls("scores_t2i", "txt2img"))]
    {
        for (k, recall) in [(1, recalls.r1), (5, recalls.r5), (10, recalls.r10)] {
            let theirs = expected[format!("{prefix}_r{k}")].as_f64().expect("a number");
            assert!((100.0 * recall - theirs).abs() <= within, "{prefix} R@{k}: {recall} against {theirs}");
        }
        let mean = 100.0 * (recalls.r1 + recalls.r5 + recalls.r10) / 3.0;
        assert!((mean - expected[format!("{prefix}_r_mean")].as_f64().expect("a number")).abs() <= within);
    }
}

fn vqa_questions() -> (Vec<String>, Vec<VqaQuestion>) {
    let inputs = json("metric_vqa", "inputs.json");
    let question = |value: &Value| {
        let text = |key: &str| value[key].as_str().expect("a text").to_owned();
        let answers = value["answers"].as_array().expect("answers").iter();
        let answer = |entry: &Value| VqaAnswer {
            text: entry["answer"].as_str().expect("a text").to_owned(),
            rest: entry["answer_id"].to_string(),
        };
        let answers = answers.map(answer).collect();
        let question = VqaQuestion {
            prediction: text("prediction"),
            answers,
            question_type: text("question_type"),
            answer_type: text("answer_type"),
        };
        (value["question_id"].to_string(), question)
    };
    inputs["annotations"].as_array().expect("annotations").iter().map(question).unzip()
}

/// Per cent with two decimals, as the script rounds.
fn percent(share: f64) -> f64 {
    format!("{:.2}", 100.0 * share).parse().expect("a number")
}

#[test]
fn vqa_accuracy_is_lavis() {
    let expected = json("metric_vqa", "expected.json");
    let (ids, questions) = vqa_questions();
    assert!(!questions.is_empty());
    for (id, question) in ids.iter().zip(&questions) {
        let ours = percent(score::vqa_accuracy(&question.prediction, &question.answers));
        assert_eq!(ours, expected["per_question"][id].as_f64().expect("a number"), "question {id}");
    }
    let figures = score::vqa(&questions);
    let accuracy = &expected["accuracy"];
    assert_eq!(percent(figures.overall), accuracy["overall"].as_f64().expect("a number"));
    let same = |ours: &BTreeMap<String, f64>, theirs: &Value| {
        let ours: BTreeMap<String, f64> =
            ours.iter().map(|(name, value)| (name.clone(), percent(*value))).collect();
        let theirs: BTreeMap<String, f64> = serde_json::from_value(theirs.clone()).expect("numbers by name");
        assert_eq!(ours, theirs);
    };
    same(&figures.by_question_type, &accuracy["perQuestionType"]);
    same(&figures.by_answer_type, &accuracy["perAnswerType"]);
}

#[test]
fn vqa_answers_are_normalised_as_by_lavis() {
    let expected = json("metric_vqa", "expected.json");
    let (ids, questions) = vqa_questions();
    for (id, question) in ids.iter().zip(&questions) {
        let theirs = expected["normalised_prediction"][id].as_str().expect("a text");
        assert_eq!(score::normalise_answer(&question.prediction), theirs, "question {id}");
        let by_punctuation: Vec<String> =
            question.answers.iter().map(|answer| score::normalise_punctuation(&answer.text)).collect();
        assert_eq!(by_punctuation, texts(&expected["punct_only_answers"][id]), "question {id}");
    }
    let extra = expected["normalise"].as_array().expect("strings to normalise");
    assert!(!extra.is_empty());
    for one in extra {
        let text = |key: &str| one[key].as_str().expect("a text");
        assert_eq!(score::normalise_punctuation(text("in")), text("punct"));
        assert_eq!(score::normalise_answer(text("in")), text("full"));
    }
}
