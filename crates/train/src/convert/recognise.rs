//! Whose weights these are, told from their names.

use checkpoint::WeightFormat;

use super::tensors::{Infos, below};
use super::{bert, language, vision};

/// What a file or folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A BLIP-2 under LAVIS's names, whole or only what was trained.
    Lavis,
    /// A BLIP-2 under Hugging Face's names.
    HuggingFace,
    /// EVA's or CLIP's image encoder.
    Vision,
    /// A BERT.
    Bert,
    /// A language model under Hugging Face's names.
    Language,
    /// A Llama in llama.cpp's form.
    Gguf,
}

/// What wrappers put before every name: runners, DDP, OpenAI's CLIP, whole models.
const WRAPPERS: [&str; 5] = ["", "model.", "state_dict.", "module.", "model.module."];
const ENCODERS: [&str; 4] = ["", "visual_encoder.", "vision_model.", "visual."];

/// The content and the prefix before its names; `None` when it is nothing we know.
pub(super) fn recognise(infos: &Infos, format: WeightFormat) -> Option<(Content, String)> {
    if format == WeightFormat::Gguf {
        return Some((Content::Gguf, String::new()));
    }
    WRAPPERS.iter().find_map(|wrapper| {
        let (inside, _) = below(infos, wrapper);
        one(&inside).map(|(content, prefix)| (content, format!("{wrapper}{prefix}")))
    })
}

/// As [`recognise`], for names without a wrapper's prefix.
fn one(infos: &Infos) -> Option<(Content, &'static str)> {
    let has = |name: &str| infos.contains_key(name);
    if has("query_tokens") {
        let is_lavis = has("ln_vision.weight") || infos.keys().any(|name| name.starts_with("Qformer."));
        return Some((if is_lavis { Content::Lavis } else { Content::HuggingFace }, ""));
    }
    let encoder = ENCODERS.into_iter().find(|prefix| vision::family(&below(infos, prefix).0).is_some());
    if let Some(prefix) = encoder {
        return Some((Content::Vision, prefix));
    }
    if ["", bert::INSIDE].iter().any(|inside| has(&format!("{inside}embeddings.word_embeddings.weight"))) {
        return Some((Content::Bert, ""));
    }
    language::is_language(infos).then_some((Content::Language, ""))
}
