//! Language models of reference cases, something to read, and what comes of it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "every test program uses some of these; a panic is a failed test"
)]

use model::language::{LanguageConfig, LanguageModel};
use model::{LmText, TextInput, Weights};
use tch::{Device, Kind, Reduction, Tensor};

use crate::common::Case;

pub const WORDS: i64 = 60;

/// Sizes and weights of a reference case, which are large on purpose.
pub fn case(name: &str) -> (LanguageConfig, Weights) {
    let case = Case::open(name);
    let mut tensors = case.tensors("weights");
    let config = match case.toml.get("t5") {
        Some(sizes) => {
            tensors.retain(|name, _| name.starts_with("t5_model."));
            let mut config = serde_json::to_value(sizes).unwrap();
            config["model_type"] = "t5".into();
            config.to_string()
        }
        None => case.text("config.json"),
    };
    let config = LanguageConfig::from_hf_json(&config).unwrap();
    (config, Weights::new(tensors))
}

/// Its model, whole.
pub fn open(name: &str, kind: Kind) -> LanguageModel {
    let (config, mut weights) = case(name);
    let model = LanguageModel::new(&config, &mut weights, kind, Device::Cpu);
    weights.finish().unwrap();
    model
}

/// Something read and a text behind it, both of several lengths.
pub struct Input {
    pub before: Tensor,
    pub mask: Tensor,
    pub text: LmText,
}

pub fn input(width: i64, [batch, read, said]: [i64; 3]) -> Input {
    tch::manual_seed(4);
    let options = (Kind::Int64, Device::Cpu);
    let mask = Tensor::arange(read, options).unsqueeze(0);
    let lengths = Tensor::arange(batch, options).unsqueeze(1).remainder(3);
    let mask = mask.lt_tensor(&(read - lengths)).to_kind(Kind::Int64);
    let rows: Vec<Vec<i64>> =
        (0..batch).map(|row| (0..said - row % 4).map(|i| (7 * row + 5 * i) % WORDS).collect()).collect();
    let prefix = TextInput::padded(&vec![Vec::new(); batch as usize], 0);
    Input {
        before: Tensor::randn([batch, read, width], (Kind::Float, Device::Cpu)),
        mask,
        text: LmText::padded(&rows, 0, 0).behind(prefix),
    }
}

pub fn loss(model: &LanguageModel, input: &Input, before: &Tensor) -> Tensor {
    let states = model.read(before, &input.mask, &input.text).predicting;
    let logits = model.logits(&states).flatten(0, 1);
    let labels = input.text.labels.flatten(0, 1);
    logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, LmText::IGNORED, 0.0)
}

/// The loss, and its gradient by what was read.
pub fn step(model: &LanguageModel, input: &Input) -> [Tensor; 2] {
    let before = input.before.copy().set_requires_grad(true);
    let loss = loss(model, input, &before);
    loss.backward();
    [loss.detach(), before.grad()]
}
