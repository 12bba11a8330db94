//! Reading reference cases, and comparing with them at their own tolerances.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "every test program uses some of these; a panic is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{Dtype, HostTensor};
use model::language::{GenerateOptions, KvCache, LanguageModel, generate};
use model::{ItgWeighting, NegativeWeighting, QformerConfig, Stage1Config, TextBranchConfig};
use tch::{Kind, Tensor};

pub type Tensors = BTreeMap<String, Tensor>;

/// Words of [`tiny_stage1`].
pub const WORDS: i64 = 40;

/// Stage 1 of 3 narrow layers, for images of 16 numbers a token; no dropout.
pub fn tiny_stage1() -> Stage1Config {
    let text =
        TextBranchConfig { vocab_size: WORDS, max_position_embeddings: 10, decoder_start_id: WORDS - 1 };
    let qformer = QformerConfig {
        hidden_size: 24,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        intermediate_size: 48,
        cross_attention_freq: 2,
        num_query_tokens: 5,
        encoder_hidden_size: 16,
        layer_norm_eps: 1e-12,
        dropout: 0.0,
        gradient_checkpointing: false,
        text: Some(text),
    };
    Stage1Config {
        qformer,
        projection_size: 8,
        negative_weighting: NegativeWeighting::default(),
        itg_weighting: ItgWeighting::GlobalTokens,
    }
}

/// One folder of `tests/golden`.
pub struct Case {
    folder: PathBuf,
    pub toml: toml::Table,
}

impl Case {
    pub fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let toml = std::fs::read_to_string(folder.join("case.toml")).unwrap();
        Self { folder, toml: toml.parse().unwrap() }
    }

    pub fn tensors(&self, file: &str) -> Tensors {
        read_tensors(&self.folder.join(format!("{file}.safetensors")))
    }

    pub fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap()
    }

    /// A number of `[table]`.
    pub fn number(&self, table: &str, key: &str) -> f64 {
        let value = &self.toml[table][key];
        value.as_float().or_else(|| value.as_integer().map(|n| n as f64)).unwrap()
    }

    pub fn int(&self, table: &str, key: &str) -> i64 {
        self.toml[table][key].as_integer().unwrap()
    }

    /// |got - want| <= abs + rel * max |want|, with `[tolerance]`'s `{which}_abs` and `{which}_rel`.
    pub fn assert_close(&self, which: &str, what: &str, got: &Tensor, want: &Tensor) {
        let tolerance = |key: &str| {
            let key = format!("{which}_{key}");
            self.toml["tolerance"].get(&key).map_or(0.0, |_| self.number("tolerance", &key))
        };
        assert_close(what, got, want, tolerance("abs"), tolerance("rel"));
    }
}

pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, abs: f64, rel: f64) {
    assert_eq!(got.size(), want.size(), "{what}");
    let limit = abs + rel * want.abs().max().double_value(&[]);
    let worst = (got - want).abs().max().double_value(&[]);
    assert!(worst <= limit, "{what}: off by {worst:e}, allowed {limit:e}");
}

pub fn read_tensors(path: &Path) -> Tensors {
    let map = checkpoint::read_safetensors(path).unwrap_or_else(|error| panic!("{error}"));
    map.iter().map(|(name, host)| (name.clone(), to_torch(host))).collect()
}

fn to_torch(host: &HostTensor) -> Tensor {
    let shape: Vec<i64> = host.shape.iter().map(|&n| n as i64).collect();
    let kind = match host.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        other => panic!("no case has {other:?}"),
    };
    Tensor::from_data_size(&host.bytes, &shape, kind)
}

/// Hidden states of a decoder-only model.
pub fn forward(model: &LanguageModel, embeds: &Tensor, mask: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
    let LanguageModel::Causal(causal) = model else { panic!("no decoder-only model: {model:?}") };
    causal.forward(embeds, mask, cache)
}

/// The most probable captions behind `prompt`.
pub fn greedy(
    model: &LanguageModel,
    prompt: &Tensor,
    mask: &Tensor,
    length: usize,
    end: &[i64],
) -> Vec<Vec<i64>> {
    let nothing_said = vec![Vec::new(); prompt.size()[0] as usize];
    let options = GenerateOptions::greedy(length, end);
    let texts = generate(&mut model.begin(prompt, mask), &nothing_said, &options);
    texts.into_iter().flatten().map(|text| text.ids).collect()
}
