//! A DINOv2, a BERT and a Llama, 32 wide and two layers deep, with random weights under their own names.

use std::fs;
use std::path::Path;

use checkpoint::{HostTensor, TensorMap, write_safetensors};
use data::{Rng, Stream};

use super::config::words;

const WIDTH: usize = 32;
const HIDDEN: usize = 64;
const LAYERS: usize = 2;
const PATCH: usize = 14;
const PATCHES: usize = 4;
const TEXT_POSITIONS: usize = 16;
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const END_OF_TEXT: &str = "<end>";

/// `vit/`, `bert/` and `llama/` below `folder`.
pub fn write(folder: &Path) {
    for (name, tensors) in [("vit", vit()), ("bert", bert()), ("llama", llama())] {
        fs::create_dir_all(folder.join(name)).unwrap();
        write_safetensors(&folder.join(name).join("model.safetensors"), &tensors, &Default::default())
            .unwrap();
    }
    let vocabulary: Vec<&str> = SPECIAL.into_iter().chain(words()).collect();
    fs::write(folder.join("bert/vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    fs::write(folder.join("bert/config.json"), bert_config().to_string()).unwrap();
    fs::write(folder.join("llama/config.json"), llama_config().to_string()).unwrap();
    fs::write(folder.join("llama/tokenizer.json"), llama_tokenizer().to_string()).unwrap();
}

/// Tensors that are drawn one after another.
struct Drawn {
    tensors: TensorMap,
    model: u64,
}

impl Drawn {
    fn new(model: u64) -> Self {
        Self { tensors: TensorMap::new(), model }
    }

    fn random(&mut self, name: &str, shape: &[usize]) {
        let mut rng = Rng::new(self.model, Stream::Init, &[self.tensors.len() as u64]);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| rng.uniform_in(-0.2, 0.2) as f32).collect();
        self.tensors.insert(name.to_owned(), HostTensor::from_f32(shape, &values).unwrap());
    }

    fn ones(&mut self, name: &str, width: usize) {
        self.tensors.insert(name.to_owned(), HostTensor::from_f32(&[width], &vec![1.0; width]).unwrap());
    }

    fn linear(&mut self, name: &str, [inputs, outputs]: [usize; 2]) {
        self.random(&format!("{name}.weight"), &[outputs, inputs]);
        self.random(&format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str) {
        self.ones(&format!("{name}.weight"), WIDTH);
        self.random(&format!("{name}.bias"), &[WIDTH]);
    }
}

fn vit() -> TensorMap {
    let mut drawn = Drawn::new(1);
    drawn.random("embeddings.cls_token", &[1, 1, WIDTH]);
    drawn.random("embeddings.position_embeddings", &[1, 1 + PATCHES, WIDTH]);
    drawn.random("embeddings.patch_embeddings.projection.weight", &[WIDTH, 3, PATCH, PATCH]);
    drawn.random("embeddings.patch_embeddings.projection.bias", &[WIDTH]);
    for layer in (0..LAYERS).map(|i| format!("encoder.layer.{i}")) {
        for name in ["query", "key", "value"] {
            drawn.linear(&format!("{layer}.attention.attention.{name}"), [WIDTH, WIDTH]);
        }
        drawn.linear(&format!("{layer}.attention.output.dense"), [WIDTH, WIDTH]);
        drawn.linear(&format!("{layer}.mlp.fc1"), [WIDTH, HIDDEN]);
        drawn.linear(&format!("{layer}.mlp.fc2"), [HIDDEN, WIDTH]);
        for half in [1, 2] {
            drawn.norm(&format!("{layer}.norm{half}"));
            drawn.ones(&format!("{layer}.layer_scale{half}.lambda1"), WIDTH);
        }
    }
    drawn.tensors
}

fn bert() -> TensorMap {
    let mut drawn = Drawn::new(2);
    drawn.random("embeddings.word_embeddings.weight", &[SPECIAL.len() + words().len(), WIDTH]);
    drawn.random("embeddings.position_embeddings.weight", &[TEXT_POSITIONS, WIDTH]);
    drawn.random("embeddings.token_type_embeddings.weight", &[2, WIDTH]);
    drawn.norm("embeddings.LayerNorm");
    for layer in (0..LAYERS).map(|i| format!("encoder.layer.{i}")) {
        for name in ["query", "key", "value"] {
            drawn.linear(&format!("{layer}.attention.self.{name}"), [WIDTH, WIDTH]);
        }
        drawn.linear(&format!("{layer}.attention.output.dense"), [WIDTH, WIDTH]);
        drawn.norm(&format!("{layer}.attention.output.LayerNorm"));
        drawn.linear(&format!("{layer}.intermediate.dense"), [WIDTH, HIDDEN]);
        drawn.linear(&format!("{layer}.output.dense"), [HIDDEN, WIDTH]);
        drawn.norm(&format!("{layer}.output.LayerNorm"));
    }
    drawn.tensors
}

fn bert_config() -> serde_json::Value {
    serde_json::json!({
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": HIDDEN,
        "max_position_embeddings": TEXT_POSITIONS, "layer_norm_eps": 1e-12, "vocab_size": SPECIAL.len() + words().len(),
    })
}

/// Two heads of keys and values for four of queries, head tied to the embeddings.
fn llama() -> TensorMap {
    let mut drawn = Drawn::new(3);
    drawn.random("model.embed_tokens.weight", &[1 + words().len(), WIDTH]);
    for layer in (0..LAYERS).map(|i| format!("model.layers.{i}")) {
        for (name, outputs) in
            [("q_proj", WIDTH), ("k_proj", WIDTH / 2), ("v_proj", WIDTH / 2), ("o_proj", WIDTH)]
        {
            drawn.random(&format!("{layer}.self_attn.{name}.weight"), &[outputs, WIDTH]);
        }
        drawn.random(&format!("{layer}.mlp.gate_proj.weight"), &[HIDDEN, WIDTH]);
        drawn.random(&format!("{layer}.mlp.up_proj.weight"), &[HIDDEN, WIDTH]);
        drawn.random(&format!("{layer}.mlp.down_proj.weight"), &[WIDTH, HIDDEN]);
        drawn.ones(&format!("{layer}.input_layernorm.weight"), WIDTH);
        drawn.ones(&format!("{layer}.post_attention_layernorm.weight"), WIDTH);
    }
    drawn.ones("model.norm.weight", WIDTH);
    drawn.tensors
}

fn llama_config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 1 + words().len(), "hidden_size": WIDTH, "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
        "eos_token_id": 0,
    })
}

/// One token a word; id 0 ends a text.
fn llama_tokenizer() -> serde_json::Value {
    let vocabulary: serde_json::Map<String, serde_json::Value> = [END_OF_TEXT]
        .into_iter()
        .chain(words())
        .zip(0..)
        .map(|(word, id)| (word.to_owned(), id.into()))
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "Whitespace" },
        "added_tokens": [{
            "id": 0, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": END_OF_TEXT },
    })
}
