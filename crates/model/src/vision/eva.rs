//! EVA-CLIP's ViT (Fang et al. 2022) as BLIP-2 uses it: keys without a bias, no final norm, output of the last block.

use tch::{Device, Kind, Tensor};

use super::transformer::{Activation, Style, Transformer, VitConfig};
use crate::layers::{Linear, linear};
use crate::weights::{Scope, Weights};

const LAVIS: Style = Style {
    prefixes: &["visual_encoder.", ""],
    class: "cls_token",
    positions: "pos_embed",
    batched: true,
    patch: "patch_embed.proj",
    patch_bias: true,
    pre_norm: None,
    blocks: "blocks",
    norms: ["norm1", "norm2"],
    qkv: lavis_qkv,
    projection: "attn.proj",
    feed_forward: ["mlp.fc1", "mlp.fc2"],
    layer_scales: None,
    activation: Activation::Gelu,
    eps: 1e-6,
    align_corners: false,
    ignored: &["norm.", "fc_norm.", "head."],
};

/// `Blip2VisionModel`.
const HUGGING_FACE: Style = Style {
    prefixes: &["vision_model.", ""],
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding",
    patch: "embeddings.patch_embedding",
    blocks: "encoder.layers",
    norms: ["layer_norm1", "layer_norm2"],
    qkv: |scope, width| linear(scope, "self_attn.qkv", [width, 3 * width]),
    projection: "self_attn.projection",
    ignored: &["post_layernorm."],
    ..LAVIS
};

pub(super) fn load(config: &VitConfig, weights: &mut Weights, kind: Kind, device: Device) -> Transformer {
    // The trainable norm behind the encoder lies beside it in LAVIS's files; it is not ours.
    weights.ignore_prefix("ln_vision.");
    Transformer::load(config, &[LAVIS, HUGGING_FACE], weights, kind, device)
}

/// One matrix; the bias is `[q_bias, 0, v_bias]`.
fn lavis_qkv(scope: &mut Scope<'_>, width: i64) -> Linear {
    let weight = scope.take_f32("attn.qkv.weight", &[3 * width, width]);
    let query = scope.take_f32("attn.q_bias", &[width]);
    let value = scope.take_f32("attn.v_bias", &[width]);
    let bias = Tensor::cat(&[&query, &query.zeros_like(), &value], 0);
    Linear::new(&weight, Some(&bias), scope.kind())
}
