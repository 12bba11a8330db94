//! `stage2_opt`, `stage2_t5`: the loss of a frozen language model behind the soft prompt, its logits, and every gradient
//! (`Blip2OPT.forward`, `Blip2T5.forward`).

use std::rc::Rc;

use model::{LanguageConfig, LmText, Stage2, Stage2Inputs, TextInput};
use tch::{Device, Kind, Tensor, nn};

use super::case::{Case, INPUTS};
use super::gradients;
use super::sheet::{Row, Sheet, pack};
use super::sizes;
use super::stage1::Limits;
use super::weights::LavisWeights;
use crate::error::TrainError;
use crate::names::LanguageFamily;

/// Stage 2 with a case's weights, and its frozen encoder.
pub(super) struct Model {
    pub stage2: Stage2,
    pub store: nn::VarStore,
    pub vision: model::VisionEncoder,
}

impl Model {
    /// Builds what `case` describes, around an OPT.
    pub fn load(case: &Case) -> Result<Self, TrainError> {
        Self::around(case, &sizes::opt(case)?)
    }

    /// Builds what `case` describes, around this language model.
    fn around(case: &Case, language: &LanguageConfig) -> Result<Self, TrainError> {
        let mut weights = LavisWeights::read(case)?;
        let vision = weights.vision(&sizes::vision(case)?);
        let language = Rc::new(weights.language(language));
        let store = nn::VarStore::new(Device::Cpu);
        let stage2 = Stage2::new(&store.root(), &sizes::qformer(case)?, language, &[]);
        weights.finish(&store)?;
        Ok(Self { stage2, store, vision })
    }
}

/// Tokens that are not scored, the leading `</s>` counted; without a prompt even that one is scored.
pub(super) fn prompt_length(case: &Case) -> Result<usize, TrainError> {
    match case.value::<String>("text", "prompt")?.is_empty() {
        true => Ok(0),
        false => case.value("text", "prompt_length"),
    }
}

/// Runs a case of `stage2_opt`.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limits = Limits::of(case)?;
    let mut sheet = Sheet::open(case)?;
    let model = Model::load(case)?;
    let tensors = case.tensors(INPUTS)?;
    let (ids, mask) = (tensors.with_dims("input_ids", 2)?, tensors.with_dims("attention_mask", 2)?);
    let image = model.vision.forward(&tensors.with_dims("image", 4)?);
    let inputs = Stage2Inputs { image, text: LmText::new(ids, mask, prompt_length(case)?) };
    let (loss, _, trace) = model.stage2.forward(&inputs, true);
    loss.backward();

    sheet.close("loss", &loss, limits.loss);
    for (name, ours) in [
        ("image_embeds", &trace.image_embeds),
        ("query_output", &trace.query_output),
        ("inputs_llm", &trace.prompt),
    ] {
        sheet.close(name, ours, limits.tensor);
    }
    let text = &inputs.text;
    let shape = [text.mask.size()[0], trace.prompt.size()[1]];
    let ones = Tensor::ones(shape, (Kind::Int64, Device::Cpu));
    let full_mask = Tensor::cat(&[&ones, &text.mask], 1);
    sheet.equal("full_attention_mask", &full_mask);
    sheet.equal("labels", &Tensor::cat(&[&ones.full_like(LmText::IGNORED), &text.labels], 1));
    let logits = model.stage2.logits(&pack(&trace.hidden, &full_mask));
    sheet.close_where("logits", &logits, &full_mask, limits.tensor);
    gradients::compare(&mut sheet, &gradients::of(&model.store), limits.gradient);
    gradients::compare_names(case, &mut sheet, &model.store, LanguageFamily::Opt)?;
    Ok(sheet.finish())
}

/// Runs a case of `stage2_t5`: the encoder reads the input text, the decoder is scored on the output text.
pub(super) fn compare_t5(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limits = Limits::of(case)?;
    let mut sheet = Sheet::open(case)?;
    let model = Model::around(case, &sizes::t5(case)?)?;
    let tensors = case.tensors(INPUTS)?;
    let prefix =
        TextInput { ids: tensors.with_dims("input_ids", 2)?, mask: tensors.with_dims("attention_mask", 2)? };
    let (ids, mask) = (tensors.with_dims("output_ids", 2)?, tensors.with_dims("output_attention_mask", 2)?);
    let image = model.vision.forward(&tensors.with_dims("image", 4)?);
    let text = LmText::new(ids, mask, 0).behind(prefix);
    let inputs = Stage2Inputs { image, text };
    let (loss, _, trace) = model.stage2.forward(&inputs, true);
    loss.backward();

    sheet.close("loss", &loss, limits.loss);
    for (name, ours) in [
        ("image_embeds", &trace.image_embeds),
        ("query_output", &trace.query_output),
        ("inputs_llm", &trace.prompt),
    ] {
        sheet.close(name, ours, limits.tensor);
    }
    let text = &inputs.text;
    let shape = [text.mask.size()[0], trace.prompt.size()[1]];
    let ones = Tensor::ones(shape, (Kind::Int64, Device::Cpu));
    sheet.equal("full_attention_mask", &Tensor::cat(&[&ones, &text.prefix.mask], 1));
    sheet.equal("labels", &text.labels);
    let logits = model.stage2.logits(&pack(&trace.hidden, &text.mask));
    sheet.close_where("logits", &logits, &text.mask, limits.tensor);
    gradients::compare(&mut sheet, &gradients::of(&model.store), limits.gradient);
    gradients::compare_names(case, &mut sheet, &model.store, LanguageFamily::T5)?;
    Ok(sheet.finish())
}
