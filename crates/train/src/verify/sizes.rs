//! `[vision]`, `[qformer]`, `[text]` and `[opt]` of a case as our configurations.

use model::vision::VitConfig;
use model::{ItgWeighting, LanguageConfig, NegativeWeighting, QformerConfig, Stage1Config, TextBranchConfig};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::case::Case;
use crate::error::TrainError;

#[derive(Deserialize)]
struct Vision {
    kind: VisionKind,
    img_size: i64,
    patch_size: i64,
    width: i64,
    blocks: i64,
    heads: i64,
    mlp_ratio: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum VisionKind {
    Eva,
    Clip,
}

#[derive(Deserialize)]
struct Qformer {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    cross_attention_freq: i64,
    num_query_tokens: i64,
    layer_norm_eps: f64,
    hidden_act: String,
}

#[derive(Deserialize)]
struct Text {
    vocab_size: i64,
    bos_id: i64,
}

/// The frozen image encoder.
pub(super) fn vision(case: &Case) -> Result<model::VisionConfig, TrainError> {
    let sizes: Vision = case.section("vision")?;
    let vit = VitConfig {
        img_size: sizes.img_size,
        patch_size: sizes.patch_size,
        width: sizes.width,
        layers: sizes.blocks,
        heads: sizes.heads,
        mlp_ratio: sizes.mlp_ratio.unwrap_or(4.0),
    };
    Ok(match sizes.kind {
        VisionKind::Eva => model::VisionConfig::EvaVit(vit),
        VisionKind::Clip => model::VisionConfig::ClipVit(vit),
    })
}

/// The Q-Former without its text branch, as stage 2 has it. Dropout is 0 in every case.
pub(super) fn qformer(case: &Case) -> Result<QformerConfig, TrainError> {
    let sizes: Qformer = case.section("qformer")?;
    if sizes.hidden_act != "gelu" {
        return Err(case.broken(&format!("[qformer] hidden_act = {:?}; we have \"gelu\"", sizes.hidden_act)));
    }
    Ok(QformerConfig {
        hidden_size: sizes.hidden_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        intermediate_size: sizes.intermediate_size,
        cross_attention_freq: sizes.cross_attention_freq,
        num_query_tokens: sizes.num_query_tokens,
        encoder_hidden_size: case.value("vision", "width")?,
        layer_norm_eps: sizes.layer_norm_eps,
        dropout: 0.0,
        gradient_checkpointing: false,
        text: None,
    })
}

/// All of stage 1. ITG is a mean over each rank's own tokens, as in LAVIS.
pub(super) fn stage1(case: &Case) -> Result<Stage1Config, TrainError> {
    let text: Text = case.section("text")?;
    let branch = TextBranchConfig {
        vocab_size: text.vocab_size,
        max_position_embeddings: case.value("qformer", "max_position_embeddings")?,
        decoder_start_id: text.bos_id,
    };
    Ok(Stage1Config {
        qformer: QformerConfig { text: Some(branch), ..qformer(case)? },
        projection_size: case.value("qformer", "embed_dim")?,
        negative_weighting: NegativeWeighting::default(),
        itg_weighting: ItgWeighting::RankTokens,
    })
}

/// The OPT of `[opt]`, whose keys are those of its `config.json`.
pub(super) fn opt(case: &Case) -> Result<LanguageConfig, TrainError> {
    language(case, "opt", case.section("opt")?)
}

/// The T5 of `[t5]`: LAVIS states the activation that it puts in place of the config's.
pub(super) fn t5(case: &Case) -> Result<LanguageConfig, TrainError> {
    let mut sizes: Map<String, Value> = case.section("t5")?;
    let gated = case.value::<String>("t5", "feed_forward_proj")?.starts_with("gated-");
    let start: i64 = case.value("t5", "decoder_start_id")?;
    sizes.insert("is_gated_act".into(), gated.into());
    sizes.insert("decoder_start_token_id".into(), start.into());
    language(case, "t5", sizes)
}

fn language(case: &Case, kind: &str, mut sizes: Map<String, Value>) -> Result<LanguageConfig, TrainError> {
    sizes.insert("model_type".into(), kind.into());
    let text = Value::Object(sizes).to_string();
    LanguageConfig::from_hf_json(&text).map_err(|error| case.broken(&format!("[{kind}] {error}")))
}
