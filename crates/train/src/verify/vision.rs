//! `vision_*`: the frozen encoders under LAVIS's names and Hugging Face's; `features_pos_embed`: another grid.

use std::collections::BTreeMap;

use model::vision::{VitConfig, resize_positions};
use model::{VisionConfig, VisionEncoder, Weights};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::case::{Case, INPUTS, Tensors, WEIGHTS, broken};
use super::sheet::{Row, Sheet};
use super::sizes;
use super::weights::LavisWeights;
use crate::error::TrainError;

pub(super) const HF_CONFIG: &str = "config.json";

/// The fields of a Hugging Face vision config that we need.
#[derive(Deserialize)]
pub(super) struct HfVision {
    hidden_size: i64,
    image_size: i64,
    intermediate_size: i64,
    pub layer_norm_eps: f64,
    num_attention_heads: i64,
    num_hidden_layers: i64,
    patch_size: i64,
}

impl HfVision {
    /// V.
    pub fn width(&self) -> i64 {
        self.hidden_size
    }

    /// The encoder of `Blip2VisionModel`, all of whose layers are run.
    pub fn blip2(&self) -> VisionConfig {
        VisionConfig::EvaVit(self.vit(self.num_hidden_layers))
    }

    fn vit(&self, layers: i64) -> VitConfig {
        VitConfig {
            img_size: self.image_size,
            patch_size: self.patch_size,
            width: self.hidden_size,
            layers,
            heads: self.num_attention_heads,
            // The product is truncated: half a unit more keeps it from falling below the number that was meant.
            mlp_ratio: (self.intermediate_size as f64 + 0.5) / self.hidden_size as f64,
        }
    }
}

/// `vision_eva`, `vision_clip`: LAVIS's names, and the trainable LayerNorm behind the encoder.
pub(super) fn compare_lavis(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("tensor")?;
    let mut sheet = Sheet::open(case)?;
    let mut weights = LavisWeights::read(case)?;
    let encoder = weights.vision(&sizes::vision(case)?);
    let norm = ["weight", "bias"].map(|leaf| weights.take(&format!("vision_model.post_layernorm.{leaf}")));
    let [gain, bias] = norm;
    let eps = case.value("vision", "ln_vision_eps")?;
    let features = encoder.forward(&case.tensors(INPUTS)?.with_dims("image", 4)?);
    sheet.close("features", &features, limit);
    sheet.close("ln_vision_features", &layer_norm(&features, &gain?, &bias?, eps), limit);
    // Nothing is trained here, so nothing may be left.
    weights.finish(&tch::nn::VarStore::new(Device::Cpu))?;
    Ok(sheet.finish())
}

/// `vision_eva_hf`: `Blip2VisionModel`.
pub(super) fn compare_blip2_hf(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("tensor")?;
    let sizes: HfVision = case.json_as(HF_CONFIG)?;
    let mut sheet = Sheet::open(case)?;
    let weights = case.tensors(WEIGHTS)?;
    let encoder = encoder(case, &weights, &VisionConfig::EvaVit(sizes.vit(sizes.num_hidden_layers)))?;
    let features = encoder.forward(&case.tensors(INPUTS)?.with_dims("image", 4)?);
    let prefix = if weights.map.contains_key("post_layernorm.weight") { "" } else { "vision_model." };
    let gain = weights.get(&format!("{prefix}post_layernorm.weight"))?;
    let bias = weights.get(&format!("{prefix}post_layernorm.bias"))?;
    let last = layer_norm(&features, gain, bias, sizes.layer_norm_eps);
    sheet.close("last_block_output", &features, limit);
    sheet.close("last_hidden_state", &last, limit);
    // Hugging Face applies the same norm once more to the class token.
    sheet.close("pooler_output", &layer_norm(&last.select(1, 0), gain, bias, sizes.layer_norm_eps), limit);
    Ok(sheet.finish())
}

/// `vision_clip_hf`: `CLIPVisionModel`, of which BLIP-2 leaves out the last layer.
pub(super) fn compare_clip_hf(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("tensor")?;
    let sizes: HfVision = case.json_as(HF_CONFIG)?;
    let mut sheet = Sheet::open(case)?;
    let weights = case.tensors(WEIGHTS)?;
    let image = case.tensors(INPUTS)?.with_dims("image", 4)?;
    let depth = sizes.num_hidden_layers;
    let names = ["hidden_states_0", "hidden_states_m2", "hidden_states_m1", "last_hidden_state"];
    for (name, layers) in names.into_iter().zip([0, depth - 1, depth, depth]) {
        let encoder = encoder(case, &weights, &VisionConfig::ClipVit(sizes.vit(layers)))?;
        sheet.close(name, &encoder.forward(&image), limit);
    }
    Ok(sheet.finish())
}

/// `features_pos_embed`: keys are `KIND.OLDtoNEW`.
pub(super) fn compare_positions(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("tensor")?;
    let mut sheet = Sheet::open(case)?;
    for (name, positions) in &case.tensors(INPUTS)?.map {
        let parsed = name.split_once('.').and_then(|(kind, grids)| {
            let align_corners = BTreeMap::from([("eva", false), ("clip", true)]).get(kind).copied()?;
            let (old, new) = grids.split_once("to")?;
            Some((align_corners, old.parse::<i64>().ok()?, new.parse::<i64>().ok()?))
        });
        let rows = |old: i64| positions.dim() >= 2 && positions.size()[positions.dim() - 2] == 1 + old * old;
        let Some((align_corners, _, new)) = parsed.filter(|(_, old, _)| rows(*old)) else {
            let problem =
                format!("{name} is {:?}; wanted KIND.OLDtoNEW of 1 + OLD * OLD rows", positions.size());
            return Err(broken(&case.folder().join(INPUTS), &problem));
        };
        sheet.close(name, &resize_positions(positions, new, align_corners), limit);
    }
    Ok(sheet.finish())
}

fn encoder(case: &Case, tensors: &Tensors, config: &VisionConfig) -> Result<VisionEncoder, TrainError> {
    let copies = tensors.map.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
    let mut weights = Weights::new(copies.collect());
    let encoder = VisionEncoder::new(config, &mut weights, Kind::Float, Device::Cpu);
    weights.finish().map_err(|error| broken(&case.folder().join(WEIGHTS), &error.to_string()))?;
    Ok(encoder)
}

fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
    x.layer_norm(gain.size(), Some(gain), Some(bias), eps, false)
}
