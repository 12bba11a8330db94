//! `generate_*`, `convert_*`: `Blip2ForConditionalGeneration` of transformers, its forward and its `generate`.
//!
//! transformers writes placeholders where the image goes and pads on either side. We put the image in front and read
//! what is no placeholder and no padding, which is the same text.

use std::collections::BTreeMap;
use std::rc::Rc;

use model::language::{Beams, EarlyStopping, GenerateOptions, Generated, Strategy};
use model::{
    LanguageConfig, LanguageModel, LmText, Prompt, QformerConfig, Stage2, Stage2Inputs, TextInput,
    VisionEncoder, Weights,
};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor, nn};

use super::case::{Case, INPUTS, Tensors, Tolerance, WEIGHTS, broken};
use super::sheet::{Row, Sheet, pack};
use super::vision::{HF_CONFIG, HfVision};
use super::weights::LavisWeights;
use crate::build::copy_weights;
use crate::error::TrainError;
use crate::sizes::Ends;

const GENERATED: &str = "expected.json";

/// The fields of `config.json` that we need.
#[derive(Deserialize)]
struct Config {
    num_query_tokens: i64,
    image_token_index: i64,
    vision_config: HfVision,
    qformer_config: HfQformer,
    text_config: TextConfig,
}

#[derive(Deserialize)]
struct HfQformer {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    cross_attention_frequency: i64,
    layer_norm_eps: f64,
}

#[derive(Deserialize)]
struct TextConfig {
    bos_token_id: i64,
    pad_token_id: i64,
}

/// `generate()`'s arguments in a case; others are refused, they would change what is generated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    max_new_tokens: usize,
    #[serde(default)]
    min_new_tokens: usize,
    repetition_penalty: Option<f64>,
    num_beams: Option<usize>,
    length_penalty: Option<f64>,
    #[serde(default)]
    early_stopping: Value,
    num_return_sequences: Option<usize>,
    eos_token_id: Ends,
    #[serde(rename = "pad_token_id")]
    _pad_token_id: i64,
}

/// One call of `generate()` and what came out.
#[derive(Deserialize)]
struct Call {
    settings: Settings,
    sequences: Vec<Vec<i64>>,
    new_tokens_trimmed: Option<Vec<Vec<i64>>>,
    sequences_scores: Option<Vec<f64>>,
    /// `"omitted"` where nothing but the image is given.
    #[serde(rename = "input_ids")]
    omitted: Option<String>,
}

/// A whole BLIP-2 under transformers' names.
struct Model {
    config: Config,
    language: LanguageConfig,
    vision: VisionEncoder,
    stage2: Stage2,
}

impl Model {
    fn load(case: &Case) -> Result<Self, TrainError> {
        let config: Config = case.json_as(HF_CONFIG)?;
        let text = case.json(HF_CONFIG)?.to_string();
        let language = LanguageConfig::from_hf_json(&text)
            .map_err(|error| broken(&case.folder().join(HF_CONFIG), &error.to_string()))?;
        let all = case.tensors(WEIGHTS)?.map;
        let is_trained = |name: &String| {
            ["query_tokens", "qformer.", "language_projection.", "vision_model.post_layernorm."]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let (trained, frozen): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(name, _)| is_trained(name));
        let mut frozen = Weights::new(frozen);
        let vision = VisionEncoder::new(&config.vision_config.blip2(), &mut frozen, Kind::Float, Device::Cpu);
        let model = Rc::new(LanguageModel::new(&language, &mut frozen, Kind::Float, Device::Cpu));
        let path = case.folder().join(WEIGHTS);
        frozen.finish().map_err(|error| broken(&path, &error.to_string()))?;
        let store = nn::VarStore::new(Device::Cpu);
        let stage2 = Stage2::new(&store.root(), &qformer(&config), model, &[])
            .with_image_norm_eps(config.vision_config.layer_norm_eps);
        let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
        copy_weights(&variables, &trained, &path).map_err(|error| TrainError::Verify(error.to_string()))?;
        if let Some(left) = trained.keys().find(|name| !variables.contains_key(*name)) {
            return Err(broken(&path, &format!("no place for {left}")));
        }
        Ok(Self { config, language, vision, stage2 })
    }

    fn is_t5(&self) -> bool {
        matches!(self.language, LanguageConfig::T5(_))
    }

    /// Of each row of `ids`, what is neither padding nor a placeholder.
    fn words(&self, ids: &Tensor, mask: &Tensor) -> Vec<Vec<i64>> {
        let keep = mask.ne(0).logical_and(&ids.ne(self.config.image_token_index));
        kept(ids, &keep)
    }
}

fn qformer(config: &Config) -> QformerConfig {
    let sizes = &config.qformer_config;
    QformerConfig {
        hidden_size: sizes.hidden_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        intermediate_size: sizes.intermediate_size,
        cross_attention_freq: sizes.cross_attention_frequency,
        num_query_tokens: config.num_query_tokens,
        encoder_hidden_size: config.vision_config.width(),
        layer_norm_eps: sizes.layer_norm_eps,
        dropout: 0.0,
        gradient_checkpointing: false,
        text: None,
    }
}

/// Of each row of `values`, those where `keep` is true.
fn kept(values: &Tensor, keep: &Tensor) -> Vec<Vec<i64>> {
    let row = |i: i64| {
        let chosen = values.get(i).masked_select(&keep.get(i).to_kind(Kind::Bool));
        Vec::<i64>::try_from(chosen).unwrap_or_default()
    };
    (0..values.size()[0]).map(row).collect()
}

/// The plain forward: image features, query states, logits, loss.
fn compare_forward(
    case: &Case,
    model: &Model,
    inputs: &Tensors,
    sheet: &mut Sheet,
) -> Result<(), TrainError> {
    let limit = case.tolerance("tensor")?;
    let (ids, mask) = (inputs.with_dims("fwd_input_ids", 2)?, inputs.with_dims("fwd_attention_mask", 2)?);
    let labels = inputs.with_dims("labels", 2)?;
    let words = TextInput::padded(&model.words(&ids, &mask), model.config.text_config.pad_token_id);
    let (text, scored) = match model.is_t5() {
        true => {
            let mask = inputs.with_dims("decoder_attention_mask", 2)?;
            let ids = labels.masked_fill(&labels.eq(LmText::IGNORED), model.config.text_config.pad_token_id);
            let text = LmText::new(ids, mask.shallow_clone(), 0);
            (LmText { labels, ..text.behind(words) }, mask)
        }
        false => {
            let keep = mask.ne(0).logical_and(&ids.ne(model.config.image_token_index));
            let labels = TextInput::padded(&kept(&labels, &keep), LmText::IGNORED).ids;
            let TextInput { ids, mask: word_mask } = words;
            (LmText { labels, ..LmText::new(ids, word_mask, 0) }, mask)
        }
    };
    let image = model.vision.forward(&inputs.with_dims("pixel_values", 4)?);
    let (loss, _, trace) = model.stage2.forward(&Stage2Inputs { image, text: text.clone() }, false);
    sheet.close("vision_output", &trace.image_embeds, limit);
    sheet.close("qformer_output", &trace.query_output, limit);
    let own_mask = match model.is_t5() {
        true => text.mask.shallow_clone(),
        false => {
            let shape = [text.mask.size()[0], trace.prompt.size()[1]];
            Tensor::cat(&[&Tensor::ones(shape, (Kind::Int64, Device::Cpu)), &text.mask], 1)
        }
    };
    // Both masks have the same tokens in the same order, whatever side the padding is on.
    let logits = model.stage2.logits(&pack(&trace.hidden, &own_mask));
    sheet.close_where("logits", &logits, &scored, limit);
    // A case of conversions has no limit for the loss: it is a mean of what the logits' limit bounds.
    let loss_limit = case.tolerance("loss").unwrap_or(limit);
    sheet.close("loss", &loss, loss_limit);
    Ok(())
}

/// Runs a case of `generate_opt` or `generate_t5`.
pub(super) fn compare_generation(case: &Case) -> Result<Vec<Row>, TrainError> {
    let mut sheet = Sheet::open(case)?;
    let model = Model::load(case)?;
    let inputs = case.tensors(INPUTS)?;
    compare_forward(case, &model, &inputs, &mut sheet)?;
    let scores = Tolerance { abs: case.value("tolerance", "sequences_scores_abs")?, rel: 0.0 };
    let features = model.vision.forward(&inputs.with_dims("pixel_values", 4)?);
    let (ids, mask) = (inputs.with_dims("input_ids", 2)?, inputs.with_dims("attention_mask", 2)?);
    let prompts = model.words(&ids, &mask);
    let calls: BTreeMap<String, Call> = case.json_as(GENERATED)?;
    for (name, call) in &calls {
        let alone = vec![vec![model.config.text_config.bos_token_id]; prompts.len()];
        let prompts = if call.omitted.is_some() { &alone } else { &prompts };
        let prompts: Vec<Prompt> = prompts.iter().map(|ids| model.prompt(ids)).collect();
        let options = call
            .settings
            .options()
            .map_err(|problem| broken(&case.folder().join(GENERATED), &format!("{name}: {problem}")))?;
        let found: Vec<Generated> =
            model.stage2.generate(&features, &prompts, &options).into_iter().flatten().collect();
        let ours: Vec<Vec<i64>> =
            found.iter().map(|text| text.ids.iter().copied().chain(text.end).collect()).collect();
        sheet.push(Row::equal(name, &ours, &model.expected(call)));
        if let Some(theirs) = &call.sequences_scores {
            let ours: Vec<f64> = found.iter().map(|text| text.score.unwrap_or(f64::NAN)).collect();
            sheet.push(Row::list(&format!("{name} scores"), &ours, theirs, scores));
        }
    }
    Ok(sheet.finish())
}

impl Model {
    /// transformers counts an OPT's placeholders and prompt as said; a T5's decoder has said nothing yet.
    fn prompt(&self, ids: &[i64]) -> Prompt {
        let said = match self.is_t5() {
            true => Vec::new(),
            false => ids.iter().copied().chain([self.config.image_token_index]).collect(),
        };
        Prompt { ids: ids.to_vec(), said }
    }

    /// New tokens up to and with the first end.
    fn expected(&self, call: &Call) -> Vec<Vec<i64>> {
        if let Some(trimmed) = &call.new_tokens_trimmed {
            return trimmed.clone();
        }
        let before = match self.is_t5() {
            true => 1,
            false => self.config.num_query_tokens as usize + 1,
        };
        let trim = |row: &Vec<i64>| {
            let new = &row[before.min(row.len())..];
            let end = new.iter().position(|id| call.settings.eos_token_id.ids().contains(id));
            new[..end.map_or(new.len(), |end| end + 1)].to_vec()
        };
        call.sequences.iter().map(trim).collect()
    }
}

impl Settings {
    fn options(&self) -> Result<GenerateOptions, String> {
        let strategy = match self.num_beams.unwrap_or(1) {
            0 | 1 => Strategy::Greedy,
            num_beams => Strategy::Beam(Beams {
                num_beams,
                length_penalty: self.length_penalty.unwrap_or(1.0),
                early_stopping: self.early_stopping()?,
                num_return_sequences: self.num_return_sequences.unwrap_or(1),
            }),
        };
        let options = GenerateOptions {
            strategy,
            min_new_tokens: self.min_new_tokens,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            ..GenerateOptions::greedy(self.max_new_tokens, self.eos_token_id.ids())
        };
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    fn early_stopping(&self) -> Result<EarlyStopping, String> {
        match &self.early_stopping {
            Value::Null | Value::Bool(false) => Ok(EarlyStopping::Heuristic),
            Value::Bool(true) => Ok(EarlyStopping::Immediate),
            Value::String(word) if word == "never" => Ok(EarlyStopping::Never),
            other => Err(format!("early_stopping = {other}; we have false, true, \"never\"")),
        }
    }
}

/// Runs a case of `convert_opt` or `convert_t5`: the forward, and that what is trained and the language model are those of the
/// LAVIS case beside it under other names, to the bit. The encoder's weights are not only renamed there; its output tells.
pub(super) fn compare_conversion(case: &Case) -> Result<Vec<Row>, TrainError> {
    let mut sheet = Sheet::open(case)?;
    let model = Model::load(case)?;
    compare_forward(case, &model, &case.tensors(INPUTS)?, &mut sheet)?;
    let neighbour: String = case.value("case", "lavis_case")?;
    let lavis = Case::open(&case.folder().join("..").join(neighbour))?;
    let theirs = case.tensors(WEIGHTS)?.map;
    let ours = LavisWeights::read(&lavis)?.into_hugging_face();
    for (name, tensor) in theirs.iter().filter(|(name, _)| {
        !name.starts_with("vision_model.") || name.starts_with("vision_model.post_layernorm.")
    }) {
        sheet.push(match ours.get(name) {
            Some(ours) => Row::tensors(name, ours, tensor, Tolerance::EXACT),
            None => Row::short(name, "LAVIS's case has nothing that becomes it"),
        });
    }
    Ok(sheet.finish())
}
