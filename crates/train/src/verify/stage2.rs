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
    let tensors = case.tensors(INPUTS)?;
    let (ids, mask) = (tensors.with_dims("input_ids", 2)?, tensors.with_dims("attention_mask", 2)?);
    let text = LmText::new(ids, mask, prompt_length(case)?);
    compare_around(case, (sizes::opt(case)?, LanguageFamily::Opt), text, |text, queries| {
        let full_mask = Tensor::cat(&[queries, &text.mask], 1);
        let labels = Tensor::cat(&[&queries.full_like(LmText::IGNORED), &text.labels], 1);
        Masks { scored: full_mask.shallow_clone(), full: full_mask, labels }
    })
}

/// Runs a case of `stage2_t5`: the encoder reads the input text, the decoder is scored on the output text.
pub(super) fn compare_t5(case: &Case) -> Result<Vec<Row>, TrainError> {
    let tensors = case.tensors(INPUTS)?;
    let prefix =
        TextInput { ids: tensors.with_dims("input_ids", 2)?, mask: tensors.with_dims("attention_mask", 2)? };
    let (ids, mask) = (tensors.with_dims("output_ids", 2)?, tensors.with_dims("output_attention_mask", 2)?);
    let text = LmText::new(ids, mask, 0).behind(prefix);
    compare_around(case, (sizes::t5(case)?, LanguageFamily::T5), text, |text, queries| Masks {
        full: Tensor::cat(&[queries, &text.prefix.mask], 1),
        scored: text.mask.shallow_clone(),
        labels: text.labels.shallow_clone(),
    })
}

/// What a family's stack sees and says.
struct Masks {
    /// `full_attention_mask`.
    full: Tensor,
    /// Where logits are compared.
    scored: Tensor,
    /// `labels`.
    labels: Tensor,
}

/// Everything that a case of either family expects; `masks` are of a text behind queries, which are all visible (`[B, Q]`).
fn compare_around(
    case: &Case,
    (language, family): (LanguageConfig, LanguageFamily),
    text: LmText,
    masks: impl Fn(&LmText, &Tensor) -> Masks,
) -> Result<Vec<Row>, TrainError> {
    let limits = Limits::of(case)?;
    let mut sheet = Sheet::open(case)?;
    let model = Model::around(case, &language)?;
    let image = model.vision.forward(&case.tensors(INPUTS)?.with_dims("image", 4)?);
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
    let shape = [inputs.text.mask.size()[0], trace.prompt.size()[1]];
    let masks = masks(&inputs.text, &Tensor::ones(shape, (Kind::Int64, Device::Cpu)));
    sheet.equal("full_attention_mask", &masks.full);
    sheet.equal("labels", &masks.labels);
    let logits = model.stage2.logits(&pack(&trace.hidden, &masks.scored));
    sheet.close_where("logits", &logits, &masks.scored, limits.tensor);
    gradients::compare(&mut sheet, &gradients::of(&model.store), limits.gradient);
    gradients::compare_names(case, &mut sheet, &model.store, family)?;
    Ok(sheet.finish())
}
