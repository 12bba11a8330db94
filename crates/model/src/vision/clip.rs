//! CLIP's ViT (Radford et al. 2021) as BLIP-2 uses it: a norm before the first block, none behind the last.

use tch::{Device, Kind};

use super::transformer::{Activation, Style, Transformer, VitConfig};
use crate::layers::{Linear, fused_linear};
use crate::weights::{Scope, Weights};

const LAVIS: Style = Style {
    prefixes: &["visual_encoder.", ""],
    class: "class_embedding",
    positions: "positional_embedding",
    batched: false,
    patch: "conv1",
    patch_bias: false,
    pre_norm: Some("ln_pre"),
    blocks: "transformer.resblocks",
    norms: ["ln_1", "ln_2"],
    qkv: lavis_qkv,
    projection: "attn.out_proj",
    feed_forward: ["mlp.c_fc", "mlp.c_proj"],
    layer_scales: None,
    activation: Activation::QuickGelu,
    eps: 1e-5,
    align_corners: true,
    ignored: &["ln_post.", "proj"],
};

/// `CLIPVisionModel`; its pre-norm is really spelled so.
const HUGGING_FACE: Style = Style {
    prefixes: &["vision_model.", ""],
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    patch: "embeddings.patch_embedding",
    pre_norm: Some("pre_layrnorm"),
    blocks: "encoder.layers",
    norms: ["layer_norm1", "layer_norm2"],
    qkv: |scope, width| {
        fused_linear(scope, &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], [width, width])
    },
    projection: "self_attn.out_proj",
    feed_forward: ["mlp.fc1", "mlp.fc2"],
    ignored: &["post_layernorm.", "embeddings.position_ids"],
    ..LAVIS
};

pub(super) fn load(config: &VitConfig, weights: &mut Weights, kind: Kind, device: Device) -> Transformer {
    // The trainable norm behind the encoder lies beside it in LAVIS's files; it is not ours. A whole CLIP has a text side.
    for prefix in ["ln_vision.", "text_model.", "text_projection.", "visual_projection.", "logit_scale"] {
        weights.ignore_prefix(prefix);
    }
    Transformer::load(config, &[LAVIS, HUGGING_FACE], weights, kind, device)
}

/// `nn.MultiheadAttention`'s packed projection.
fn lavis_qkv(scope: &mut Scope<'_>, width: i64) -> Linear {
    let weight = scope.take_f32("attn.in_proj_weight", &[3 * width, width]);
    let bias = scope.take_f32("attn.in_proj_bias", &[3 * width]);
    Linear::new(&weight, Some(&bias), scope.kind())
}
