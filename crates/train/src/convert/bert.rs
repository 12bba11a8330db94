//! A BERT, from which a Q-Former starts.

use std::collections::BTreeMap;

use super::import::{pretty, vocabularies};
use super::parts::{Component, Parts, Source};
use super::tensors::{Expected, Info, Planned, Problems, Recipe, expect_linear, expect_norm};

/// Before all names but those of the heads, where a file has heads.
pub(super) const INSIDE: &str = "bert.";

/// A BERT without its pooler and its sentence head, old TensorFlow names of norms renewed.
pub(super) fn parts(source: &Source<'_>) -> Parts {
    let mut parts = Parts::default();
    let bare = |name: &str| name.strip_prefix(INSIDE).unwrap_or(name).to_owned();
    let full = |name: &str| format!("{}{name}", source.prefix);
    let names: BTreeMap<String, String> = source.infos.keys().map(|name| (bare(name), full(name))).collect();
    let mut planned = Vec::new();
    for (name, info) in &source.infos {
        let (name, full) = (bare(name), full(name));
        // The decoder is the word embeddings, its bias the head's.
        let tied = match name.as_str() {
            "cls.predictions.decoder.weight" => names.get("embeddings.word_embeddings.weight"),
            "cls.predictions.decoder.bias" => names.get("cls.predictions.bias"),
            _ => None,
        };
        let is_unused = name.starts_with("pooler.") || name.starts_with("cls.seq_relationship.");
        if is_unused || tied.is_some() || name.ends_with("position_ids") {
            parts.copies.extend(tied.map(|original| (full.clone(), original.clone())));
            parts.left_out.push(full);
            continue;
        }
        let name =
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
        planned.push(Planned { name, info: info.clone(), recipe: Recipe::Copy(full) });
    }
    let inside = if source.infos.keys().any(|name| name.starts_with(INSIDE)) { INSIDE } else { "" };
    expect_bert(&planned, &full(inside), &mut parts.problems);
    let copied = vocabularies(source.path);
    let mut component = Component { planned, copied, ..Component::default() };
    if let Some(config) = &source.config {
        component.files.insert("config.json", pretty(config));
    }
    parts.components.insert("", component);
    parts
}

/// Every layer of a BERT has what the first one's sizes ask for; what else there is (heads) may stay.
fn expect_bert(planned: &[Planned], prefix: &str, problems: &mut Problems) {
    let shape =
        |name: &str| planned.iter().find(|planned| planned.name == name).map(|planned| &planned.info.shape);
    let Some([_, width]) = shape("embeddings.word_embeddings.weight").map(Vec::as_slice) else { return };
    let hidden = shape("encoder.layer.0.intermediate.dense.weight").and_then(|shape| shape.first());
    let (width, hidden) = (*width, hidden.copied().unwrap_or(4 * width));
    let layers =
        planned.iter().filter(|planned| planned.name.ends_with(".attention.self.query.weight")).count();
    let mut expected = Expected::new();
    expect_norm(&mut expected, "embeddings.LayerNorm", width);
    for layer in (0..layers.max(1)).map(|number| format!("encoder.layer.{number}")) {
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            expect_linear(&mut expected, &format!("{layer}.attention.{part}"), [width, width]);
        }
        expect_norm(&mut expected, &format!("{layer}.attention.output.LayerNorm"), width);
        expect_linear(&mut expected, &format!("{layer}.intermediate.dense"), [hidden, width]);
        expect_linear(&mut expected, &format!("{layer}.output.dense"), [width, hidden]);
        expect_norm(&mut expected, &format!("{layer}.output.LayerNorm"), width);
    }
    for Planned { name, info: Info { shape, .. }, .. } in planned {
        if name.starts_with("embeddings.") || name.starts_with("cls.") {
            expected.entry(name.clone()).or_insert_with(|| shape.clone());
        }
    }
    expected.entry("embeddings.position_embeddings.weight".to_owned()).or_insert_with(|| vec![512, width]);
    problems.compare(planned, &expected, |name| format!("{prefix}{name}"));
}
