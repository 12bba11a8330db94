//! A DINOv2, a BERT, a Llama and a T5, 32 wide and two layers deep, with random weights under their own names.

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
const T5_BUCKETS: usize = 8;
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Id 0 ends a text.
const LLAMA_SPECIAL: [&str; 1] = ["<end>"];
/// T5's own ids: 0 fills and starts the decoder, 1 ends a text.
const T5_SPECIAL: [&str; 2] = ["<pad>", "</s>"];

/// `vit/`, `bert/`, `llama/` and `t5/` below `folder`.
pub fn write(folder: &Path) {
    for (name, tensors) in [("vit", vit()), ("bert", bert()), ("llama", llama()), ("t5", t5(&tiny_t5()))] {
        fs::create_dir_all(folder.join(name)).unwrap();
        write_safetensors(&folder.join(name).join("model.safetensors"), &tensors, &Default::default())
            .unwrap();
    }
    let vocabulary: Vec<&str> = SPECIAL.into_iter().chain(words()).collect();
    fs::write(folder.join("bert/vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    fs::write(folder.join("bert/config.json"), bert_config().to_string()).unwrap();
    for (name, config, special) in
        [("llama", llama_config(), &LLAMA_SPECIAL[..]), ("t5", t5_config(), &T5_SPECIAL)]
    {
        fs::write(folder.join(name).join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join(name).join("tokenizer.json"), tokenizer(special).to_string()).unwrap();
    }
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
        self.random_up_to(0.2, name, shape);
    }

    fn random_up_to(&mut self, limit: f64, name: &str, shape: &[usize]) {
        let mut rng = Rng::new(self.model, Stream::Init, &[self.tensors.len() as u64]);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| rng.uniform_in(-limit, limit) as f32).collect();
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

/// The numbers in which T5s differ here.
struct T5Sizes {
    vocabulary: usize,
    heads: usize,
    d_kv: usize,
    buckets: usize,
}

fn tiny_t5() -> T5Sizes {
    T5Sizes { vocabulary: T5_SPECIAL.len() + words().len(), heads: 4, d_kv: WIDTH / 4, buckets: T5_BUCKETS }
}

/// Flan-T5's vocabulary and buckets; as in its small one, heads are not as wide together as the model.
const FLAN: T5Sizes = T5Sizes { vocabulary: 32128, heads: 3, d_kv: 12, buckets: 32 };

/// Gated feed-forwards and a head of its own, as Flan-T5 has them.
fn t5(sizes: &T5Sizes) -> TensorMap {
    let mut drawn = Drawn::new(4);
    let inner = sizes.heads * sizes.d_kv;
    drawn.random("shared.weight", &[sizes.vocabulary, WIDTH]);
    // Behind the last norm states are of one size: a small head could not tell words apart, whatever is learnt.
    drawn.random_up_to(1.0, "lm_head.weight", &[sizes.vocabulary, WIDTH]);
    for (stack, branches) in
        [("encoder", &["SelfAttention"][..]), ("decoder", &["SelfAttention", "EncDecAttention"])]
    {
        drawn.random(
            &format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            &[sizes.buckets, sizes.heads],
        );
        drawn.ones(&format!("{stack}.final_layer_norm.weight"), WIDTH);
        for block in (0..LAYERS).map(|i| format!("{stack}.block.{i}.layer")) {
            for (place, branch) in branches.iter().enumerate() {
                for name in ["q", "k", "v"] {
                    drawn.random(&format!("{block}.{place}.{branch}.{name}.weight"), &[inner, WIDTH]);
                }
                drawn.random(&format!("{block}.{place}.{branch}.o.weight"), &[WIDTH, inner]);
                drawn.ones(&format!("{block}.{place}.layer_norm.weight"), WIDTH);
            }
            let last = format!("{block}.{}", branches.len());
            drawn.random(&format!("{last}.DenseReluDense.wi_0.weight"), &[HIDDEN, WIDTH]);
            drawn.random(&format!("{last}.DenseReluDense.wi_1.weight"), &[HIDDEN, WIDTH]);
            drawn.random(&format!("{last}.DenseReluDense.wo.weight"), &[WIDTH, HIDDEN]);
            drawn.ones(&format!("{last}.layer_norm.weight"), WIDTH);
        }
    }
    drawn.tensors
}

fn t5_config() -> serde_json::Value {
    let sizes = tiny_t5();
    serde_json::json!({
        "model_type": "t5", "vocab_size": sizes.vocabulary, "d_model": WIDTH, "d_kv": sizes.d_kv,
        "d_ff": HIDDEN, "num_layers": LAYERS, "num_heads": sizes.heads, "relative_attention_num_buckets": sizes.buckets,
        "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
        "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0,
    })
}

/// A Flan-T5 as its hub folder has it, but 32 wide and two layers deep: every key of its `config.json`, both copies of the
/// embeddings, a unigram `tokenizer.json`.
pub fn write_flan(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut tensors = t5(&FLAN);
    for copy in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
        tensors.insert(copy.to_owned(), tensors["shared.weight"].clone());
    }
    write_safetensors(&folder.join("model.safetensors"), &tensors, &Default::default()).unwrap();
    let config = serde_json::json!({
        "architectures": ["T5ForConditionalGeneration"], "d_ff": HIDDEN, "d_kv": FLAN.d_kv, "d_model": WIDTH,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": true, "layer_norm_epsilon": 1e-6, "model_type": "t5",
        "n_positions": 512, "num_decoder_layers": LAYERS, "num_heads": FLAN.heads, "num_layers": LAYERS,
        "output_past": true, "pad_token_id": 0, "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": FLAN.buckets, "tie_word_embeddings": false, "transformers_version": "4.23.1",
        "use_cache": true, "vocab_size": FLAN.vocabulary,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), unigram().to_string()).unwrap();
}

/// 32 000 pieces, most of them of no use here. Words of more than four letters are two of them.
fn pieces() -> Vec<String> {
    let cut = |word: &str| match word.split_at_checked(4) {
        Some((start, rest)) if !rest.is_empty() => vec![format!("▁{start}"), rest.to_owned()],
        _ => vec![format!("▁{word}")],
    };
    let mut pieces = ["<pad>", "</s>", "<unk>", "▁"].map(str::to_owned).to_vec();
    for piece in words().into_iter().flat_map(cut).chain(('a'..='z').map(String::from)) {
        if !pieces.contains(&piece) {
            pieces.push(piece);
        }
    }
    pieces.extend((pieces.len()..32_000).map(|number| format!("▁{number}")));
    pieces
}

/// SentencePiece's unigram as T5's `tokenizer.json` has it, with its 100 sentinels, so that the last 28 rows of the embeddings
/// have no piece. T5's own table of characters (`Precompiled`) is NFKC here.
fn unigram() -> serde_json::Value {
    let pieces = pieces();
    let sentinels: Vec<String> = (0..100).rev().map(|number| format!("<extra_id_{number}>")).collect();
    let added = pieces[..3].iter().zip(0..).chain(sentinels.iter().zip(32_000..)).map(|(content, id)| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let added: Vec<serde_json::Value> = added.collect();
    let score = |piece: &String| if piece.chars().count() > 1 { -4.0 } else { -12.0 };
    let vocabulary: Vec<_> = pieces.iter().chain(&sentinels).map(|piece| (piece, score(piece))).collect();
    let metaspace = serde_json::json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
    });
    let sequence = |id: &str| serde_json::json!({ "Sequence": { "id": id, "type_id": 0 } });
    let end = serde_json::json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFKC" }, { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, metaspace] },
        "post_processor": {
            "type": "TemplateProcessing", "single": [sequence("A"), end], "pair": [sequence("A"), end, sequence("B"), end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false },
    })
}

/// One token a word, behind the `special` ones, of which the last ends a text.
fn tokenizer(special: &[&str]) -> serde_json::Value {
    let vocabulary: serde_json::Map<String, serde_json::Value> = special
        .iter()
        .copied()
        .chain(words())
        .zip(0..)
        .map(|(word, id)| (word.to_owned(), id.into()))
        .collect();
    let added = special.iter().enumerate().map(|(id, content)| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "Whitespace" },
        "added_tokens": added.collect::<Vec<_>>(),
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": special.last() },
    })
}
