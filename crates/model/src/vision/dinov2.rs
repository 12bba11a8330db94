//! DINOv2's ViT (Oquab et al. 2023): a gain on each residual branch, folded into the layer before it.

use tch::{Device, Kind};

use super::transformer::{Activation, Style, Transformer, VitConfig};
use crate::layers::fused_linear;
use crate::weights::Weights;

/// `Dinov2Model`.
const HUGGING_FACE: Style = Style {
    prefixes: &["", "dinov2.", "vision_model."],
    class: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    batched: true,
    patch: "embeddings.patch_embeddings.projection",
    patch_bias: true,
    pre_norm: None,
    blocks: "encoder.layer",
    norms: ["norm1", "norm2"],
    qkv: |scope, width| {
        let names = ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
        fused_linear(scope, &names, [width, width])
    },
    projection: "attention.output.dense",
    feed_forward: ["mlp.fc1", "mlp.fc2"],
    layer_scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    activation: Activation::Gelu,
    eps: 1e-6,
    align_corners: false,
    ignored: &["embeddings.mask_token", "layernorm."],
};

pub(super) fn load(config: &VitConfig, weights: &mut Weights, kind: Kind, device: Device) -> Transformer {
    Transformer::load(config, &[HUGGING_FACE], weights, kind, device)
}
