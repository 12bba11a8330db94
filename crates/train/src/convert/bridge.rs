//! The trained part: image norm, queries, Q-Former, heads. Its sizes, and what each stage has of it.

use serde::Deserialize;
use serde_json::Value;

use super::tensors::{Expected, Info, Infos, Planned, Problems, Recipe, expect_linear, expect_norm};
use crate::names::{LavisEntry, from_lavis};

/// Which of the two models a trained part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageKind {
    /// ITC, ITM, ITG: with text branch and heads.
    One,
    /// With the projection into a language model.
    Two,
}

/// What the tensors of a trained part tell of its sizes; names are config.json's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeSizes {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub intermediate_size: usize,
    pub cross_attention_frequency: usize,
    pub encoder_hidden_size: usize,
    pub num_query_tokens: usize,
    /// Rows of word and position embeddings, in stage 1.
    pub text: Option<[usize; 2]>,
    /// Width of the contrastive space, in stage 1.
    pub projection_size: Option<usize>,
    /// Width of the language model, in stage 2.
    pub language_width: Option<usize>,
}

/// What a Hugging Face file has no place for: stage 1's temperature and LM head.
pub(super) fn is_extra(name: &str) -> bool {
    name == "temperature" || name.starts_with("cls.predictions.")
}

/// The text branch, which a stage 2 does not have.
fn is_text_branch(name: &str) -> bool {
    let in_layer = name.strip_prefix("qformer.encoder.layer.").and_then(|rest| rest.split_once('.'));
    name.starts_with("embeddings.")
        || in_layer.is_some_and(|(_, part)| part.starts_with("intermediate.") || part.starts_with("output."))
}

/// A LAVIS state dict, without the prefix that its file puts before every name, taken apart.
pub(super) struct LavisParts {
    pub bridge: Vec<Planned>,
    /// Tied copies: the copy, what it must equal (full names of the file).
    pub copies: Vec<(String, String)>,
    /// Names of no BLIP-2.
    pub unknown: Vec<String>,
    /// Constants.
    pub left_out: Vec<String>,
}

/// Takes everything but the frozen models out of a LAVIS state dict; `prefix` stands before each name in the file.
pub(super) fn from_lavis_state(infos: &Infos, prefix: &str) -> LavisParts {
    let mut parts =
        LavisParts { bridge: Vec::new(), copies: Vec::new(), unknown: Vec::new(), left_out: Vec::new() };
    for (name, info) in infos {
        let full = format!("{prefix}{name}");
        match from_lavis(name) {
            Some(LavisEntry::Parameter(ours)) => {
                parts.bridge.push(Planned { name: ours, info: info.clone(), recipe: Recipe::Copy(full) });
            }
            Some(LavisEntry::CopyOf(original)) => {
                // without its original, of which LAVIS's runner keeps only the copy, it is a frozen model's
                if infos.contains_key(&original) {
                    parts.copies.push((full, format!("{prefix}{original}")));
                } else {
                    parts.left_out.push(full);
                }
            }
            Some(LavisEntry::Frozen) => {}
            Some(LavisEntry::Buffer) => parts.left_out.push(full),
            None => parts.unknown.push(full),
        }
    }
    parts
}

/// The stage of a trained part.
pub(super) fn stage(planned: &[Planned]) -> StageKind {
    match planned.iter().any(|planned| planned.name.starts_with("language_projection.")) {
        true => StageKind::Two,
        false => StageKind::One,
    }
}

/// Sizes of a trained part under our names; `None` when the tensors that tell them are missing.
pub(super) fn sizes(planned: &[Planned]) -> Option<BridgeSizes> {
    let info = |name: &str| planned.iter().find(|planned| planned.name == name).map(|planned| &planned.info);
    let rows = |name: &str| info(name).and_then(|info| info.shape.first().copied());
    let [_, num_query_tokens, hidden_size] = *info("query_tokens")?.shape.as_slice() else { return None };
    let layers = |part: &str| {
        let suffix = format!(".{part}");
        let number = |name: &str| -> Option<usize> {
            name.strip_prefix("qformer.encoder.layer.")?.strip_suffix(&suffix)?.parse().ok()
        };
        let mut numbers: Vec<usize> = planned.iter().filter_map(|planned| number(&planned.name)).collect();
        numbers.sort_unstable();
        numbers
    };
    let all = layers("attention.output.dense.weight");
    let crossed = layers("crossattention.attention.key.weight");
    let num_hidden_layers = all.last()? + 1;
    let first = crossed
        .first()
        .map(|layer| format!("qformer.encoder.layer.{layer}.crossattention.attention.key.weight"))?;
    Some(BridgeSizes {
        hidden_size,
        num_hidden_layers,
        intermediate_size: rows("qformer.encoder.layer.0.intermediate_query.dense.weight")?,
        // one layer alone says only that the next one with it is beyond the last
        cross_attention_frequency: crossed.get(1).copied().unwrap_or(num_hidden_layers),
        encoder_hidden_size: info(&first)?.shape.get(1).copied()?,
        num_query_tokens,
        text: rows("embeddings.word_embeddings.weight")
            .zip(rows("embeddings.position_embeddings.weight"))
            .map(|(words, positions)| [words, positions]),
        projection_size: rows("vision_projection.weight"),
        language_width: rows("language_projection.weight"),
    })
}

/// Names and sizes of a trained part. With `extras`, those too that Hugging Face has no place for.
pub(super) fn expected(sizes: &BridgeSizes, stage: StageKind, extras: bool) -> Expected {
    let mut expected = Expected::new();
    let d = sizes.hidden_size;
    expected.insert("query_tokens".to_owned(), vec![1, sizes.num_query_tokens, d]);
    expect_norm(&mut expected, "vision_model.post_layernorm", sizes.encoder_hidden_size);
    expect_norm(&mut expected, "qformer.layernorm", d);
    for layer in 0..sizes.num_hidden_layers {
        expect_layer(&mut expected, sizes, layer, stage);
    }
    match stage {
        StageKind::Two => {
            let width = sizes.language_width.unwrap_or(0);
            expect_linear(&mut expected, "language_projection", [width, d]);
        }
        StageKind::One => {
            let [words, positions] = sizes.text.unwrap_or([0, 0]);
            let projection = sizes.projection_size.unwrap_or(0);
            expected.insert("embeddings.word_embeddings.weight".to_owned(), vec![words, d]);
            expected.insert("embeddings.position_embeddings.weight".to_owned(), vec![positions, d]);
            expect_linear(&mut expected, "vision_projection", [projection, d]);
            expect_linear(&mut expected, "text_projection", [projection, d]);
            expect_linear(&mut expected, "itm_head", [2, d]);
            if extras {
                expected.insert("temperature".to_owned(), Vec::new());
                expected.insert("cls.predictions.bias".to_owned(), vec![words]);
                expect_linear(&mut expected, "cls.predictions.transform.dense", [d, d]);
                expect_norm(&mut expected, "cls.predictions.transform.LayerNorm", d);
            }
        }
    }
    expected
}

fn expect_layer(expected: &mut Expected, sizes: &BridgeSizes, layer: usize, stage: StageKind) {
    let (d, hidden) = (sizes.hidden_size, sizes.intermediate_size);
    let stem = format!("qformer.encoder.layer.{layer}");
    let mut attentions = vec![("attention", d)];
    if layer.is_multiple_of(sizes.cross_attention_frequency.max(1)) {
        attentions.push(("crossattention", sizes.encoder_hidden_size));
    }
    for (attention, from) in attentions {
        let at = format!("{stem}.{attention}");
        expect_linear(expected, &format!("{at}.attention.query"), [d, d]);
        expect_linear(expected, &format!("{at}.attention.key"), [d, from]);
        expect_linear(expected, &format!("{at}.attention.value"), [d, from]);
        expect_linear(expected, &format!("{at}.output.dense"), [d, d]);
        expect_norm(expected, &format!("{at}.output.LayerNorm"), d);
    }
    let branches: &[&str] = if stage == StageKind::One { &["", "_query"] } else { &["_query"] };
    for branch in branches {
        expect_linear(expected, &format!("{stem}.intermediate{branch}.dense"), [hidden, d]);
        expect_linear(expected, &format!("{stem}.output{branch}.dense"), [d, hidden]);
        expect_norm(expected, &format!("{stem}.output{branch}.LayerNorm"), d);
    }
}

/// Compares a trained part with what its stage must have. A stage 2 may carry the text branch and heads of a stage 1;
/// `extras`: whether a stage 1 must have what Hugging Face has no place for.
pub(super) fn check(
    planned: &[Planned],
    sizes: &BridgeSizes,
    extras: bool,
    called: impl Fn(&str) -> String,
    problems: &mut Problems,
) {
    let stage = stage(planned);
    let mut expected = expected(sizes, stage, extras);
    let may_stay = |name: &str| match stage {
        StageKind::One => is_extra(name),
        StageKind::Two => {
            let heads = ["vision_projection.", "text_projection.", "itm_head."];
            is_extra(name) || is_text_branch(name) || heads.iter().any(|head| name.starts_with(head))
        }
    };
    for Planned { name, info: Info { shape, .. }, .. } in planned {
        if may_stay(name) {
            expected.entry(name.clone()).or_insert_with(|| shape.clone());
        }
    }
    problems.compare(planned, &expected, called);
}

/// The fields of a Q-Former's `config.json` that no tensor tells; defaults are `Blip2QFormerConfig`'s.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct QformerFacts {
    #[serde(default = "bert_heads")]
    pub num_attention_heads: i64,
    #[serde(default = "bert_positions")]
    pub max_position_embeddings: i64,
    #[serde(default = "bert_eps")]
    pub layer_norm_eps: f64,
}

fn bert_heads() -> i64 {
    12
}

fn bert_positions() -> i64 {
    512
}

fn bert_eps() -> f64 {
    1e-12
}

/// From `config` (Hugging Face's `qformer_config`) or, without one, BERT-base's and BERT-large's.
pub(super) fn facts(sizes: &BridgeSizes, config: Option<&Value>) -> Option<QformerFacts> {
    if let Some(config) = config {
        return serde_json::from_value(config.clone()).ok();
    }
    let num_attention_heads = match sizes.hidden_size {
        768 => 12,
        1024 => 16,
        _ => return None,
    };
    let max_position_embeddings = sizes.text.map_or(bert_positions(), |[_, positions]| positions as i64);
    Some(QformerFacts { num_attention_heads, max_position_embeddings, layer_norm_eps: bert_eps() })
}
