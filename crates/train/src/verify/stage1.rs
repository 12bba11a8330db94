//! `stage1`: three losses, what they are made of, and every gradient, from pixels (`Blip2Qformer.forward`).

use collectives::{ProcessGroup, SoloGroup};
use model::{
    NegativeWeighting, Negatives, Stage1, Stage1Inputs, Stage1Losses, Stage1Trace, TextInput,
    negative_weights,
};
use tch::{Device, Kind, Tensor, nn};

use super::case::{Case, INPUTS, Tensors, Tolerance};
use super::gradients;
use super::sheet::{Row, Sheet, pack};
use super::sizes;
use super::weights::LavisWeights;
use crate::error::TrainError;
use crate::names::LanguageFamily;

/// Stage 1 with a case's weights, and its frozen encoder.
pub(super) struct Model {
    pub stage1: Stage1,
    pub store: nn::VarStore,
    pub vision: model::VisionEncoder,
}

impl Model {
    /// Builds what `case` describes.
    pub fn load(case: &Case) -> Result<Self, TrainError> {
        let store = nn::VarStore::new(Device::Cpu);
        let stage1 = Stage1::new(&store.root(), &sizes::stage1(case)?);
        let mut weights = LavisWeights::read(case)?;
        let vision = weights.vision(&sizes::vision(case)?);
        weights.finish(&store)?;
        Ok(Self { stage1, store, vision })
    }

    /// The batch whose tensors are named with `prefix`, its negatives as drawn by the peer.
    pub fn inputs(&self, tensors: &Tensors, prefix: &str) -> Result<Stage1Inputs, TrainError> {
        let get = |name: &str, dims| tensors.with_dims(&format!("{prefix}{name}"), dims);
        Ok(Stage1Inputs {
            image: self.vision.forward(&get("image", 4)?),
            text: TextInput { ids: get("input_ids", 2)?, mask: get("attention_mask", 2)? },
            concepts: None,
            negatives: Negatives::Given { images: get("neg_image_idx", 1)?, texts: get("neg_text_idx", 1)? },
        })
    }
}

/// The limits of a case.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub loss: Tolerance,
    pub tensor: Tolerance,
    pub gradient: Tolerance,
}

impl Limits {
    pub fn of(case: &Case) -> Result<Self, TrainError> {
        let [loss, tensor, gradient] = ["loss", "tensor", "grad"].map(|kind| case.tolerance(kind));
        Ok(Self { loss: loss?, tensor: tensor?, gradient: gradient? })
    }
}

/// Runs the case.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limits = Limits::of(case)?;
    let mut sheet = Sheet::open(case)?;
    let model = Model::load(case)?;
    let inputs = model.inputs(&case.tensors(INPUTS)?, "")?;
    let group = SoloGroup::new(Device::Cpu);
    let (losses, trace) = model.stage1.forward(&inputs, &group, true)?;
    losses.total.backward();
    let pass = Pass { inputs: &inputs, losses: &losses, trace: &trace, group: &group };
    compare_pass(&mut sheet, "", &pass, limits);
    compare_states(&mut sheet, &inputs, &trace, limits.tensor);
    gradients::compare(&mut sheet, &gradients::of(&model.store), limits.gradient);
    gradients::compare_names(case, &mut sheet, &model.store, LanguageFamily::Opt)?;
    Ok(sheet.finish())
}

/// A forward pass of one rank.
pub(super) struct Pass<'a> {
    pub inputs: &'a Stage1Inputs,
    pub losses: &'a Stage1Losses,
    pub trace: &'a Stage1Trace,
    pub group: &'a dyn ProcessGroup,
}

/// What is stored of every rank, its names behind `prefix`.
pub(super) fn compare_pass(sheet: &mut Sheet, prefix: &str, pass: &Pass<'_>, limits: Limits) {
    let Pass { inputs, losses, trace, group } = pass;
    let name = |name: &str| format!("{prefix}{name}");
    let scalars = [
        ("loss", &losses.total),
        ("loss_itc", &losses.itc),
        ("loss_itm", &losses.itm),
        ("loss_lm", &losses.itg),
    ];
    for (key, ours) in scalars {
        sheet.close(&name(key), ours, limits.loss);
    }
    let tensors = [
        ("image_embeds", &trace.image_embeds),
        ("image_feats", &trace.image_feats),
        ("text_feat", &trace.text_feats),
        ("sim_i2t", &trace.sim_i2t),
        ("sim_t2i", &trace.sim_t2i),
        ("itm_logits", &trace.itm_logits),
    ];
    for (key, ours) in tensors {
        sheet.close(&name(key), ours, limits.tensor);
    }
    let batch = inputs.image.size()[0];
    let own = Tensor::arange(batch, (Kind::Int64, Device::Cpu)) + group.rank() as i64 * batch;
    for (key, sim) in [("neg_weights_t2i", &trace.sim_t2i), ("neg_weights_i2t", &trace.sim_i2t)] {
        let ours = negative_weights(NegativeWeighting::SoftmaxPlusEps, sim, &own_columns(&own, sim));
        sheet.close(&name(key), &ours, limits.tensor);
    }
    // What the losses above stand on.
    sheet.equal(&name("itc_targets"), &own);
    let wrong = own.zeros_like();
    sheet.equal(&name("itm_labels"), &Tensor::cat(&[own.ones_like(), wrong.shallow_clone(), wrong], 0));
    sheet.equal(&name("lm_shift_labels"), &next_tokens(&inputs.text).0);
}

/// What is stored of a single process only.
fn compare_states(sheet: &mut Sheet, inputs: &Stage1Inputs, trace: &Stage1Trace, limit: Tolerance) {
    let text = &inputs.text;
    sheet.close("query_output", &trace.query_output, limit);
    sheet.close_where("text_output", &pack(&trace.text_output, &text.mask), &text.mask, limit);
    // The matching pass makes the states of queries only: its text states feed nothing behind the last layer.
    let mask = matched_queries(inputs, trace);
    sheet.close_where("itm_output", &trace.itm_query_output.flatten(0, 1), &mask, limit);
    let (_, scored) = next_tokens(text);
    sheet.close_where("lm_shift_logits", &trace.lm_logits, &scored, limit);
    // The last position predicts nothing.
    sheet.close_where("lm_hidden", &trace.lm_states, &scored.constant_pad_nd([0, 1]), limit);
    let own = Tensor::arange(inputs.image.size()[0], (Kind::Int64, Device::Cpu));
    for (key, sim) in [("neg_weights_t2i_main", &trace.sim_t2i), ("neg_weights_i2t_main", &trace.sim_i2t)] {
        sheet.close(
            key,
            &negative_weights(NegativeWeighting::MaskedSoftmax, sim, &own_columns(&own, sim)),
            limit,
        );
    }
}

/// True at each row's own column, as large as `sim`.
fn own_columns(own: &Tensor, sim: &Tensor) -> Tensor {
    own.unsqueeze(1).eq_tensor(&Tensor::arange(sim.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0))
}

/// For each position but the last: the token behind it, -100 for padding (`[B, T - 1]`), and whether there is one.
fn next_tokens(text: &TextInput) -> (Tensor, Tensor) {
    let next = text.ids.size()[1] - 1;
    let mask = text.mask.narrow(1, 1, next);
    (text.ids.narrow(1, 1, next).masked_fill(&mask.eq(0), model::LmText::IGNORED), mask)
}

/// Which of the `[3B, Q + T]` states of the matching pass are those of queries.
fn matched_queries(inputs: &Stage1Inputs, trace: &Stage1Trace) -> Tensor {
    let (rows, queries) = (trace.itm_query_output.size()[0], trace.itm_query_output.size()[1]);
    let of = |columns: i64, value: f64| Tensor::full([rows, columns], value, (Kind::Int64, Device::Cpu));
    Tensor::cat(&[of(queries, 1.0), of(inputs.text.mask.size()[1], 0.0)], 1)
}
