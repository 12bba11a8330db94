//! The frozen image encoder's names: LAVIS's and OpenAI's on one side, Hugging Face's, which are ours, on the other.

use model::VisionConfig;
use model::vision::VitConfig;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tensors::{Expected, Info, Infos, Planned, Problems, Recipe, expect_linear, expect_norm};

/// Families with a name map; every other encoder keeps its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VisionFamily {
    Eva,
    Clip,
}

/// A tensor each: LAVIS's name, ours.
type Table = &'static [[&'static str; 2]];

struct Names {
    tensors: Table,
    /// Before every block's number: LAVIS, ours.
    blocks: [&'static str; 2],
    /// A weight and a bias in each block.
    block_modules: Table,
    /// Ours: the packed projection's parts; LAVIS: see [`lavis_projection`].
    projection: &'static [&'static str],
    /// LAVIS's names of parts that BLIP-2 does not run.
    not_run: &'static [&'static str],
}

const EVA: Names = Names {
    tensors: &[
        ["cls_token", "embeddings.class_embedding"],
        ["pos_embed", "embeddings.position_embedding"],
        ["patch_embed.proj.weight", "embeddings.patch_embedding.weight"],
        ["patch_embed.proj.bias", "embeddings.patch_embedding.bias"],
    ],
    blocks: ["blocks.", "encoder.layers."],
    block_modules: &[
        ["norm1", "layer_norm1"],
        ["norm2", "layer_norm2"],
        ["attn.proj", "self_attn.projection"],
        ["mlp.fc1", "mlp.fc1"],
        ["mlp.fc2", "mlp.fc2"],
    ],
    projection: &["self_attn.qkv.weight", "self_attn.qkv.bias"],
    not_run: &["norm.", "fc_norm.", "head.", "rope."],
};

const CLIP: Names = Names {
    tensors: &[
        ["class_embedding", "embeddings.class_embedding"],
        ["positional_embedding", "embeddings.position_embedding.weight"],
        ["conv1.weight", "embeddings.patch_embedding.weight"],
        ["ln_pre.weight", "pre_layrnorm.weight"],
        ["ln_pre.bias", "pre_layrnorm.bias"],
    ],
    blocks: ["transformer.resblocks.", "encoder.layers."],
    block_modules: &[
        ["ln_1", "layer_norm1"],
        ["ln_2", "layer_norm2"],
        ["attn.out_proj", "self_attn.out_proj"],
        ["mlp.c_fc", "mlp.fc1"],
        ["mlp.c_proj", "mlp.fc2"],
    ],
    projection: &[
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
    ],
    not_run: &["ln_post.", "proj", "post_layernorm.", "embeddings.position_ids"],
};

/// An encoder under our names.
pub(super) struct Vision {
    /// `None`: an encoder without a name map, copied as it is.
    pub family: Option<VisionFamily>,
    pub planned: Vec<Planned>,
    /// What BLIP-2 does not run, by the names of the file.
    pub left_out: Vec<String>,
}

impl VisionFamily {
    fn names(self) -> &'static Names {
        match self {
            Self::Eva => &EVA,
            Self::Clip => &CLIP,
        }
    }

    /// Of a configured architecture.
    pub fn of(architecture: &VisionConfig) -> Option<(Self, &VitConfig)> {
        match architecture {
            VisionConfig::EvaVit(vit) => Some((Self::Eva, vit)),
            VisionConfig::ClipVit(vit) => Some((Self::Clip, vit)),
            _ => None,
        }
    }

    /// The architecture of these sizes.
    pub fn architecture(self, vit: VitConfig) -> VisionConfig {
        match self {
            Self::Eva => VisionConfig::EvaVit(vit),
            Self::Clip => VisionConfig::ClipVit(vit),
        }
    }
}

/// Whether these names (without a prefix) are an image encoder's, and of which family.
pub(super) fn family(infos: &Infos) -> Option<VisionFamily> {
    let has = |name: &str| infos.contains_key(name);
    if has("cls_token") && has("pos_embed") || has("encoder.layers.0.self_attn.qkv.weight") {
        return Some(VisionFamily::Eva);
    }
    if has("conv1.weight") && has("class_embedding") || has("pre_layrnorm.weight") {
        return Some(VisionFamily::Clip);
    }
    None
}

/// Puts the names of an encoder file (LAVIS's or ours, without a prefix; `prefix` stands before them in the source) into
/// ours. `layers`: blocks behind these are left out.
pub(super) fn into_ours(infos: &Infos, prefix: &str, layers: Option<usize>) -> Vision {
    let Some(family) = family(infos) else {
        let copy = |(name, info): (&String, &Info)| Planned {
            name: name.clone(),
            info: info.clone(),
            recipe: Recipe::Copy(format!("{prefix}{name}")),
        };
        return Vision { family: None, planned: infos.iter().map(copy).collect(), left_out: Vec::new() };
    };
    let names = family.names();
    let mut vision = Vision { family: Some(family), planned: Vec::new(), left_out: Vec::new() };
    for (name, info) in infos {
        let block = block_of(names, name);
        let surplus = block.is_some_and(|(number, _)| layers.is_some_and(|layers| number >= layers));
        if surplus || names.not_run.iter().any(|part| name.starts_with(part)) {
            vision.left_out.push(format!("{prefix}{name}"));
            continue;
        }
        vision.planned.extend(one_into_ours(family, name, info, infos, prefix));
    }
    vision
}

/// The number and the rest of a name inside a block, of either side.
fn block_of<'a>(names: &Names, name: &'a str) -> Option<(usize, &'a str)> {
    let rest = names.blocks.iter().find_map(|stem| name.strip_prefix(stem))?;
    let (number, rest) = rest.split_once('.')?;
    let is_plain = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
    Some((is_plain, rest))
}

fn one_into_ours(family: VisionFamily, name: &str, info: &Info, infos: &Infos, prefix: &str) -> Vec<Planned> {
    let from = format!("{prefix}{name}");
    let planned = |name: String, info: Info, recipe: Recipe| Planned { name, info, recipe };
    let third = |mut info: Info| {
        info.shape[0] /= 3;
        info
    };
    if let Some(ours) = translated(family.names(), name, 0) {
        return vec![planned(ours, info.clone(), Recipe::Copy(from))];
    }
    let Some((number, part)) = block_of(family.names(), name) else {
        return vec![planned(name.to_owned(), info.clone(), Recipe::Copy(from))];
    };
    let at = |part: &str| format!("encoder.layers.{number}.{part}");
    match (family, part) {
        (VisionFamily::Eva, "attn.qkv.weight") => {
            vec![planned(at("self_attn.qkv.weight"), info.clone(), Recipe::Copy(from))]
        }
        (VisionFamily::Eva, "attn.q_bias") => {
            let value = format!("blocks.{number}.attn.v_bias");
            if infos.get(&value) != Some(info) {
                return Vec::new(); // told as a missing bias
            }
            let info = Info { dtype: info.dtype, shape: info.shape.iter().map(|size| 3 * size).collect() };
            let recipe = Recipe::QkvBias { query: from, value: format!("{prefix}{value}") };
            vec![planned(at("self_attn.qkv.bias"), info, recipe)]
        }
        // comes with its q_bias
        (VisionFamily::Eva, "attn.v_bias") if infos.contains_key(&format!("blocks.{number}.attn.q_bias")) => {
            Vec::new()
        }
        (VisionFamily::Clip, "attn.in_proj_weight" | "attn.in_proj_bias")
            if info.shape.first().is_some_and(|rows| rows % 3 == 0) =>
        {
            let leaf = if part.ends_with("weight") { "weight" } else { "bias" };
            let part = |(index, letter): (usize, &str)| {
                let recipe = Recipe::Third { of: from.clone(), index, zero_middle: false };
                planned(at(&format!("self_attn.{letter}_proj.{leaf}")), third(info.clone()), recipe)
            };
            ["q", "k", "v"].into_iter().enumerate().map(part).collect()
        }
        _ => vec![planned(name.to_owned(), info.clone(), Recipe::Copy(from))],
    }
}

/// `name`, which is of `side` (0 LAVIS, 1 ours), in the other side's words; `None` when the tables lack it.
fn translated(names: &Names, name: &str, side: usize) -> Option<String> {
    if let Some(row) = names.tensors.iter().find(|row| row[side] == name) {
        return Some(row[1 - side].to_owned());
    }
    let (number, part) = name.strip_prefix(names.blocks[side])?.split_once('.')?;
    let (module, leaf) = part.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
    let row = names.block_modules.iter().find(|row| row[side] == module)?;
    Some(format!("{}{number}.{}.{leaf}", names.blocks[1 - side], row[1 - side]))
}

/// LAVIS's tensors out of ours, without a prefix; recipes name ours.
pub(super) fn into_lavis(family: VisionFamily, ours: &Infos) -> Vec<Planned> {
    let mut planned = Vec::new();
    for (name, info) in ours {
        let mut push = |name: String, shape: Vec<usize>, recipe: Recipe| {
            planned.push(Planned { name, info: Info { dtype: info.dtype, shape }, recipe });
        };
        if let Some(lavis) = translated(family.names(), name, 1) {
            push(lavis, info.shape.clone(), Recipe::Copy(name.clone()));
            continue;
        }
        let Some((number, part)) = block_of(family.names(), name) else { continue };
        match (family, part) {
            (VisionFamily::Eva, "self_attn.qkv.weight") => {
                push(
                    format!("blocks.{number}.attn.qkv.weight"),
                    info.shape.clone(),
                    Recipe::Copy(name.clone()),
                );
            }
            (VisionFamily::Eva, "self_attn.qkv.bias") => {
                for (index, letter) in [(0, 'q'), (2, 'v')] {
                    let recipe = Recipe::Third { of: name.clone(), index, zero_middle: true };
                    push(format!("blocks.{number}.attn.{letter}_bias"), vec![info.shape[0] / 3], recipe);
                }
            }
            (VisionFamily::Clip, "self_attn.q_proj.weight" | "self_attn.q_proj.bias") => {
                let leaf = if part.ends_with("weight") { "weight" } else { "bias" };
                let parts = ["q", "k", "v"]
                    .map(|letter| format!("encoder.layers.{number}.self_attn.{letter}_proj.{leaf}"));
                let mut shape = info.shape.clone();
                shape[0] *= 3;
                push(
                    format!("transformer.resblocks.{number}.attn.in_proj_{leaf}"),
                    shape,
                    Recipe::Concat(parts),
                );
            }
            _ => {}
        }
    }
    planned
}

/// What LAVIS calls our tensor `name`, for messages to who has LAVIS's file.
pub(super) fn lavis_name(family: VisionFamily, name: &str) -> String {
    translated(family.names(), name, 1).unwrap_or_else(|| name.to_owned())
}

/// Names and sizes of an encoder under our names.
pub(super) fn expected(family: VisionFamily, vit: &VitConfig) -> Expected {
    let size = |size: i64| usize::try_from(size).unwrap_or(0);
    let (width, patch, grid) =
        (size(vit.width), size(vit.patch_size), size(vit.img_size / vit.patch_size.max(1)));
    let rows = 1 + grid * grid;
    let mut expected = Expected::new();
    let (class, positions) = match family {
        VisionFamily::Eva => (vec![1, 1, width], vec![1, rows, width]),
        VisionFamily::Clip => (vec![width], vec![rows, width]),
    };
    for (row, shape) in family.names().tensors.iter().zip([class, positions, vec![width, 3, patch, patch]]) {
        expected.insert(row[1].to_owned(), shape);
    }
    match family {
        VisionFamily::Eva => {
            expected.insert("embeddings.patch_embedding.bias".to_owned(), vec![width]);
        }
        VisionFamily::Clip => expect_norm(&mut expected, "pre_layrnorm", width),
    }
    for block in (0..vit.layers).map(|number| format!("encoder.layers.{number}")) {
        expect_norm(&mut expected, &format!("{block}.layer_norm1"), width);
        expect_norm(&mut expected, &format!("{block}.layer_norm2"), width);
        expect_linear(&mut expected, &format!("{block}.mlp.fc1"), [size(vit.mlp_hidden()), width]);
        expect_linear(&mut expected, &format!("{block}.mlp.fc2"), [width, size(vit.mlp_hidden())]);
        for part in family.names().projection {
            let rows = if family == VisionFamily::Eva { 3 * width } else { width };
            let shape = if part.ends_with("weight") { vec![rows, width] } else { vec![rows] };
            expected.insert(format!("{block}.{part}"), shape);
        }
        let projection = family.names().block_modules[2][1];
        expect_linear(&mut expected, &format!("{block}.{projection}"), [width, width]);
    }
    expected
}

/// The fields of a vision model's `config.json` that no shape tells; absent, they are transformers' defaults.
#[derive(Deserialize)]
struct Heads {
    num_attention_heads: Option<i64>,
}

/// An activation that `config` (Hugging Face's vision config) names and our encoder of this family does not have. A config of
/// the other family was named for its sizes.
pub(super) fn foreign_activation(family: VisionFamily, config: Option<&Value>) -> Option<&str> {
    let config = config?;
    let named = config["hidden_act"].as_str()?;
    let is_eva = config["model_type"].as_str().is_some_and(|kind| kind.starts_with("blip"));
    let ours = match family {
        VisionFamily::Eva => "gelu",
        VisionFamily::Clip if is_eva => return None,
        VisionFamily::Clip => "quick_gelu",
    };
    (named != ours).then_some(named)
}

/// Sizes of an encoder, from its tensors (under our names), and heads from `config` (Hugging Face's vision config) or,
/// without one, from the published models. `None` when a tensor is missing or nobody knows the heads.
pub(super) fn sizes(family: VisionFamily, planned: &[Planned], config: Option<&Value>) -> Option<VitConfig> {
    let shape = |name: &str| Some(&planned.iter().find(|planned| planned.name == name)?.info.shape);
    let signed = |size: usize| i64::try_from(size).ok();
    let patch = shape("embeddings.patch_embedding.weight")?;
    let (width, patch_size) = (signed(*patch.first()?)?, signed(*patch.last()?)?);
    let positions = shape(family.names().tensors[1][1])?;
    let rows = positions[positions.len().checked_sub(2)?];
    let grid = rows.checked_sub(1)?.isqrt();
    let layers = planned.iter().filter(|planned| planned.name.ends_with(".layer_norm1.weight")).count();
    let hidden = signed(*shape("encoder.layers.0.mlp.fc1.weight")?.first()?)?;
    let told = config.and_then(|config| serde_json::from_value::<Heads>(config.clone()).ok());
    let heads = match (told, width) {
        (Some(Heads { num_attention_heads: Some(heads) }), _) => heads,
        (Some(_), _) if family == VisionFamily::Eva => 16,
        (Some(_), _) => 12,
        (None, 1408 | 1024) => 16, // ViT-g/14, ViT-L/14
        (None, _) => return None,
    };
    let vit = |mlp_ratio: f64| VitConfig {
        img_size: patch_size * grid as i64,
        patch_size,
        width,
        layers: layers as i64,
        heads,
        mlp_ratio,
    };
    // LAVIS's own figure where it gives this size; else one that truncates to it.
    let candidates = [4.3637, 4.0, (hidden as f64 + 0.5) / width as f64];
    candidates.into_iter().map(vit).find(|vit| vit.mlp_hidden() == hidden)
}

/// `Blip2VisionConfig`, or `CLIPVisionConfig`.
pub(super) fn config_json(family: VisionFamily, vit: &VitConfig) -> Value {
    let mut config = json!({
        "hidden_size": vit.width,
        "intermediate_size": vit.mlp_hidden(),
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "image_size": vit.img_size,
        "patch_size": vit.patch_size,
        "attention_dropout": 0.0,
    });
    let more = match family {
        VisionFamily::Eva => json!({
            "model_type": "blip_2_vision_model", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true,
            "initializer_range": 1e-10,
        }),
        VisionFamily::Clip => json!({
            "model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        }),
    };
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    config
}

/// Compares an encoder with its sizes, telling names as `called` does.
pub(super) fn check(
    vision: &Vision,
    vit: &VitConfig,
    called: impl Fn(&str) -> String,
    problems: &mut Problems,
) {
    if let Some(family) = vision.family {
        problems.compare(&vision.planned, &expected(family, vit), called);
    }
}
