//! LAVIS's parameter names and ours (Hugging Face's), both ways.
//!
//! Total over what LAVIS's `state_dict()` of a BLIP-2 holds: each name is a trainable parameter, a copy that is tied to
//! another entry, a buffer, or part of a frozen model, which keeps its own names (`model::VisionEncoder` and
//! `model::LanguageModel` read them). Anything else is no name of a BLIP-2.

/// What an entry of LAVIS's state dict is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LavisEntry {
    /// A trainable parameter, with the name that we give it.
    Parameter(String),
    /// The same numbers as this other entry of LAVIS's.
    CopyOf(String),
    /// A constant: the positions 0, 1, 2, ...
    Buffer,
    /// Of the frozen image encoder or language model.
    Frozen,
}

/// Before every layer's number.
const LAYERS: [&str; 2] = ["Qformer.bert.encoder.layer.", "qformer.encoder.layer."];

/// A weight and a bias each: LAVIS's name, ours. Where several of LAVIS's names are one of ours, [`to_lavis`] takes the
/// first and [`to_lavis_beside`] the one of a language model.
const MODULES: [[&str; 2]; 9] = [
    ["ln_vision", "vision_model.post_layernorm"],
    ["vision_proj", "vision_projection"],
    ["text_proj", "text_projection"],
    ["itm_head", "itm_head"],
    ["opt_proj", "language_projection"],
    ["t5_proj", "language_projection"],
    ["llm_proj", "language_projection"],
    ["Qformer.bert.embeddings.LayerNorm", "qformer.layernorm"],
    ["Qformer.cls.predictions.transform.dense", "cls.predictions.transform.dense"],
];

/// A tensor each: LAVIS's name, ours.
const TENSORS: [[&str; 2]; 7] = [
    ["query_tokens", "query_tokens"],
    ["temp", "temperature"],
    ["Qformer.bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"],
    ["Qformer.bert.embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"],
    ["Qformer.cls.predictions.bias", "cls.predictions.bias"],
    ["Qformer.cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.weight"],
    ["Qformer.cls.predictions.transform.LayerNorm.bias", "cls.predictions.transform.LayerNorm.bias"],
];

/// A weight and a bias in each layer, behind its number: LAVIS's name, ours.
const LAYER_MODULES: [[&str; 2]; 16] = [
    ["attention.self.query", "attention.attention.query"],
    ["attention.self.key", "attention.attention.key"],
    ["attention.self.value", "attention.attention.value"],
    ["attention.output.dense", "attention.output.dense"],
    ["attention.output.LayerNorm", "attention.output.LayerNorm"],
    ["crossattention.self.query", "crossattention.attention.query"],
    ["crossattention.self.key", "crossattention.attention.key"],
    ["crossattention.self.value", "crossattention.attention.value"],
    ["crossattention.output.dense", "crossattention.output.dense"],
    ["crossattention.output.LayerNorm", "crossattention.output.LayerNorm"],
    ["intermediate.dense", "intermediate.dense"],
    ["intermediate_query.dense", "intermediate_query.dense"],
    ["output.dense", "output.dense"],
    ["output.LayerNorm", "output.LayerNorm"],
    ["output_query.dense", "output_query.dense"],
    ["output_query.LayerNorm", "output_query.LayerNorm"],
];

/// Copies that tied weights leave in a state dict: the copy, what it is tied to.
const COPIES: [[&str; 2]; 5] = [
    ["Qformer.cls.predictions.decoder.weight", "Qformer.bert.embeddings.word_embeddings.weight"],
    ["Qformer.cls.predictions.decoder.bias", "Qformer.cls.predictions.bias"],
    ["opt_model.lm_head.weight", "opt_model.model.decoder.embed_tokens.weight"],
    ["t5_model.encoder.embed_tokens.weight", "t5_model.shared.weight"],
    ["t5_model.decoder.embed_tokens.weight", "t5_model.shared.weight"],
];

/// The positions 0, 1, 2, ... as LAVIS keeps them, `[1, max_position_embeddings]`.
pub(crate) const BUFFER: &str = "Qformer.bert.embeddings.position_ids";
const FROZEN: [&str; 4] = ["visual_encoder.", "opt_model.", "t5_model.", "llm_model."];

/// Which kind of language model stands behind the projection; LAVIS names it in every parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LanguageFamily {
    /// `Blip2OPT`.
    Opt,
    /// `Blip2T5`.
    T5,
    /// What LAVIS's later models call `llm`.
    Llama,
}

impl LanguageFamily {
    /// Before the names of the language model.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Opt => "opt_model.",
            Self::T5 => "t5_model.",
            Self::Llama => "llm_model.",
        }
    }

    /// The projection into it.
    const fn projection(self) -> &'static str {
        match self {
            Self::Opt => "opt_proj",
            Self::T5 => "t5_proj",
            Self::Llama => "llm_proj",
        }
    }
}

/// Columns of the tables.
#[derive(Clone, Copy)]
enum Side {
    Lavis = 0,
    Ours = 1,
}

/// What `name` of LAVIS's state dict is; `None` when it belongs to no BLIP-2.
#[must_use]
pub fn from_lavis(name: &str) -> Option<LavisEntry> {
    if let Some([_, original]) = COPIES.iter().find(|[copy, _]| *copy == name) {
        return Some(LavisEntry::CopyOf((*original).to_owned()));
    }
    if name == BUFFER {
        return Some(LavisEntry::Buffer);
    }
    if FROZEN.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(LavisEntry::Frozen);
    }
    translate(name, Side::Lavis).map(LavisEntry::Parameter)
}

/// LAVIS's name of our trainable parameter `name`; `None` when no stage has such a parameter.
#[must_use]
pub fn to_lavis(name: &str) -> Option<String> {
    translate(name, Side::Ours)
}

/// As [`to_lavis`], for a stage 2 on a language model of `family`.
#[must_use]
pub(crate) fn to_lavis_beside(name: &str, family: LanguageFamily) -> Option<String> {
    match name.strip_prefix("language_projection.") {
        Some(leaf) if ["weight", "bias"].contains(&leaf) => Some(format!("{}.{leaf}", family.projection())),
        _ => to_lavis(name),
    }
}

/// The copies that tied weights leave in LAVIS's state dict beside these names (LAVIS's): the copy, what it is tied to.
pub(crate) fn lavis_copies<'a>(
    has: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = (&'static str, &'static str)> + 'a {
    COPIES.iter().filter(move |[_, of]| has(of)).map(|[copy, of]| (*copy, *of))
}

/// What LAVIS's runner would write into a checkpoint of a stage with these trainable parameters of ours (sorted), a stage 2
/// on a language model of `family`: no frozen parameter, but the buffer, and every tied copy, even of a frozen one. `None`
/// when a name is not ours.
#[must_use]
pub(crate) fn lavis_checkpoint_keys<'a>(
    ours: impl IntoIterator<Item = &'a String>,
    family: LanguageFamily,
) -> Option<Vec<String>> {
    let named = ours.into_iter().map(|name| to_lavis_beside(name, family));
    let mut keys: Vec<String> = named.collect::<Option<_>>()?;
    let has = |name: &str| keys.iter().any(|key| key == name);
    let is_stage2 = has(&format!("{}.weight", family.projection()));
    let is_there = |[copy, of]: &&[&str; 2]| has(of) || (is_stage2 && copy.starts_with(family.prefix()));
    let copies: Vec<&str> = COPIES.iter().filter(is_there).map(|[copy, _]| *copy).collect();
    keys.extend(copies.into_iter().chain([BUFFER]).map(str::to_owned));
    keys.sort();
    Some(keys)
}

/// `name`, which is of `side`, in the other side's words.
fn translate(name: &str, side: Side) -> Option<String> {
    let (from, to) = (side as usize, 1 - side as usize);
    if let Some(row) = TENSORS.iter().find(|row| row[from] == name) {
        return Some(row[to].to_owned());
    }
    let (module, leaf) = name.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
    let find = |rows: &[[&'static str; 2]], module: &str| {
        rows.iter().find(|row| row[from] == module).map(|row| row[to])
    };
    if let Some(found) = find(&MODULES, module) {
        return Some(format!("{found}.{leaf}"));
    }
    let (number, module) = module.strip_prefix(LAYERS[from])?.split_once('.')?;
    // "07" or "+7" would not come back as it went.
    let is_number = number.parse::<u32>().is_ok_and(|n| n.to_string() == number);
    let found = find(&LAYER_MODULES, module).filter(|_| is_number)?;
    Some(format!("{}{number}.{found}.{leaf}", LAYERS[to]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_goes_there_and_back() {
        let modules = MODULES.iter().map(|row| row[0].to_owned());
        let layers = LAYER_MODULES.iter().map(|row| format!("{}11.{}", LAYERS[0], row[0]));
        let leaves = modules
            .chain(layers)
            .flat_map(|module| ["weight", "bias"].map(|leaf| format!("{module}.{leaf}")));
        for lavis in leaves.chain(TENSORS.iter().map(|row| row[0].to_owned())) {
            let Some(LavisEntry::Parameter(ours)) = from_lavis(&lavis) else { panic!("{lavis}") };
            let back = lavis.replace("t5_proj", "opt_proj").replace("llm_proj", "opt_proj");
            assert_eq!(to_lavis(&ours), Some(back));
            let families = [LanguageFamily::Opt, LanguageFamily::T5, LanguageFamily::Llama];
            let beside = families.map(|family| to_lavis_beside(&ours, family));
            assert!(beside.contains(&Some(lavis.clone())), "{lavis}: {beside:?}");
        }
    }

    #[test]
    fn what_is_no_parameter_is_told_apart() {
        let copy = LavisEntry::CopyOf("Qformer.cls.predictions.bias".into());
        assert_eq!(from_lavis("Qformer.cls.predictions.decoder.bias"), Some(copy));
        assert_eq!(from_lavis(BUFFER), Some(LavisEntry::Buffer));
        for frozen in ["visual_encoder.blocks.0.attn.q_bias", "opt_model.model.decoder.layers.0.fc1.weight"] {
            assert_eq!(from_lavis(frozen), Some(LavisEntry::Frozen));
        }
        for unknown in [
            "Qformer.bert.encoder.layer.x.output.dense.bias",
            "Qformer.bert.encoder.layer.01.output.dense.bias",
            "Qformer.bert.encoder.layer.0.output.dense.gamma",
            "Qformer.bert.pooler.dense.weight",
            "ln_vision",
            "",
        ] {
            assert_eq!(from_lavis(unknown), None, "{unknown}");
        }
        assert_eq!(to_lavis("language_model.lm_head.weight"), None);
    }

    #[test]
    fn a_checkpoint_of_lavis_holds_copies_and_the_buffer() {
        let ours = ["temperature".to_owned(), "cls.predictions.bias".to_owned()];
        let keys = lavis_checkpoint_keys(&ours, LanguageFamily::Opt);
        let expected =
            [BUFFER, "Qformer.cls.predictions.bias", "Qformer.cls.predictions.decoder.bias", "temp"]
                .map(str::to_owned);
        assert_eq!(keys, Some(expected.to_vec()));
        let stage2 = lavis_checkpoint_keys(&["language_projection.weight".to_owned()], LanguageFamily::Opt);
        assert_eq!(
            stage2,
            Some([BUFFER, "opt_model.lm_head.weight", "opt_proj.weight"].map(str::to_owned).to_vec())
        );
        assert_eq!(lavis_checkpoint_keys(&["qformer.x".to_owned()], LanguageFamily::Opt), None);
    }
}
