//! A BERT, from which a Q-Former starts.

use std::collections::BTreeMap;

use super::import::{pretty, vocabularies};
use super::parts::{Component, Parts, Source};
use super::tensors::{Expected, Info, Infos, Planned, Problems, Recipe, expect_linear, expect_norm};

/// A BERT without its pooler, old TensorFlow names of norms renewed. Its LM head stands beside the prefix `bert.`: it is taken
/// out of the names that are left, `others`, of the whole file, `all`.
pub(super) fn parts(source: &Source<'_>, all: &Infos, others: &mut Vec<String>) -> Parts {
    let mut parts = Parts::default();
    let mut found: Vec<(String, String, Info)> = source
        .infos
        .iter()
        .map(|(name, info)| (name.clone(), format!("{}{name}", source.prefix), info.clone()))
        .collect();
    let heads = source.prefix.strip_suffix("bert.").map(|wrapper| format!("{wrapper}cls."));
    others.retain(|full| {
        let rest = heads.as_ref().and_then(|heads| full.strip_prefix(heads.as_str()));
        let taken = rest.and_then(|rest| Some((format!("cls.{rest}"), full.clone(), all.get(full)?.clone())));
        let stays = taken.is_none();
        found.extend(taken);
        stays
    });
    let names: BTreeMap<String, String> =
        found.iter().map(|(name, full, _)| (name.clone(), full.clone())).collect();
    let mut planned = Vec::new();
    for (name, full, info) in found {
        // The decoder is the word embeddings, its bias the head's.
        let tied = match name.as_str() {
            "cls.predictions.decoder.weight" => Some("embeddings.word_embeddings.weight"),
            "cls.predictions.decoder.bias" => Some("cls.predictions.bias"),
            _ => None,
        };
        let original = tied.and_then(|tied| names.get(tied).cloned());
        let is_unused = name.starts_with("pooler.") || name.starts_with("cls.seq_relationship.");
        if is_unused || original.is_some() || name.ends_with("position_ids") {
            parts.copies.extend(original.map(|original| (full.clone(), original)));
            parts.left_out.push(full);
            continue;
        }
        let name =
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
        planned.push(Planned { name, info, recipe: Recipe::Copy(full) });
    }
    expect_bert(&planned, &source.prefix, &mut parts.problems);
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
