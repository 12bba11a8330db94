//! The Q-Former: a BERT whose learned queries look at a frozen image encoder (paper section 3.1, fig. 2; spec 2).
//!
//! One set of weights, four passes: queries alone ([`Qformer::encode_queries`]), text alone ([`Qformer::encode_text`]),
//! both seeing each other ([`Qformer::encode_jointly`]), and causal text that sees the queries
//! ([`Qformer::decode_text`]).

mod attention;
mod bert;
mod continuation;
mod layer;
mod parts;
mod tokens;

use tch::nn::{self, Module, Path};
use tch::{Kind, Tensor};

use attention::{Attention, KeysValues};
pub use bert::init_from_bert;
use layer::{Layer, Pass};
pub(crate) use parts::{layer_norm, linear, linear_of};
use tokens::Layout;
pub use tokens::Packing;

use crate::dropout::dropout;
use crate::inputs::TextInput;
use crate::layers::LayerNorm;

/// Added to the attention score of a masked key (BERT's; not minus infinity).
const MASKED: f64 = -10000.0;

/// Sizes of the Q-Former. The paper's: 768, 12, 12, 3072, 2, 32.
#[derive(Clone, Debug)]
pub struct QformerConfig {
    /// Width D.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads H of every attention.
    pub num_attention_heads: i64,
    /// Inner width of the feed-forwards.
    pub intermediate_size: i64,
    /// Cross-attention stands in every so-many-th layer, from layer 0.
    pub cross_attention_freq: i64,
    /// Learned queries Q.
    pub num_query_tokens: i64,
    /// Width V of the image encoder.
    pub encoder_hidden_size: i64,
    /// BERT: 1e-12.
    pub layer_norm_eps: f64,
    /// Of hidden states and attention probabilities, in training.
    pub dropout: f64,
    /// Each layer keeps its inputs alone in training, and is computed again in the backward pass: a third more time, a
    /// fraction of the memory.
    pub gradient_checkpointing: bool,
    /// The text branch; absent in stage 2.
    pub text: Option<TextBranchConfig>,
}

/// Sizes of the text branch.
#[derive(Clone, Copy, Debug)]
pub struct TextBranchConfig {
    /// Word pieces, `[DEC]` included (it is the last).
    pub vocab_size: i64,
    /// Longest text.
    pub max_position_embeddings: i64,
    /// Id of `[DEC]`, which starts a text that is to be generated.
    pub decoder_start_id: i64,
}

/// Word and position embeddings and the head over the vocabulary, whose matrix is the word embeddings.
#[derive(Debug)]
struct TextBranch {
    word_embeddings: nn::Embedding,
    position_embeddings: nn::Embedding,
    transform: nn::Linear,
    transform_norm: LayerNorm,
    bias: Tensor,
    decoder_start_id: i64,
}

/// Keys and values of images in every layer that looks at them: computed once an image, used by every pass.
#[derive(Debug)]
pub struct ImageContext {
    layers: Vec<Option<KeysValues>>,
    images: i64,
}

impl ImageContext {
    /// Rows for the images `rows` (`[R]`, int64), which may repeat.
    #[must_use]
    pub fn select(&self, rows: &Tensor) -> Self {
        let layers = self.layers.iter().map(|layer| layer.as_ref().map(|kv| kv.select(rows))).collect();
        Self { layers, images: rows.size()[0] }
    }

    /// `other`'s images behind these.
    #[must_use]
    pub fn stack(&self, other: &Self) -> Self {
        let layers = self.layers.iter().zip(&other.layers);
        let layers = layers.map(|pair| match pair {
            (Some(own), Some(other)) => Some(own.stack(other)),
            _ => None,
        });
        Self { layers: layers.collect(), images: self.images + other.images }
    }
}

/// Self-attention keys and values of a query pass, for text that is decoded behind it.
#[derive(Debug)]
pub struct QueryCache(Vec<KeysValues>);

/// The Q-Former with its queries.
#[derive(Debug)]
pub struct Qformer {
    query_tokens: Tensor,
    layernorm: LayerNorm,
    layers: Vec<Layer>,
    text: Option<TextBranch>,
    config: QformerConfig,
}

impl TextBranch {
    fn new(p: &Path, c: &QformerConfig, text: &TextBranchConfig) -> Self {
        let init = nn::EmbeddingConfig {
            ws_init: nn::Init::Randn { mean: 0.0, stdev: 0.02 },
            ..nn::EmbeddingConfig::default()
        };
        let embeddings = p / "embeddings";
        let head = p / "cls" / "predictions";
        let d = c.hidden_size;
        Self {
            word_embeddings: nn::embedding(&embeddings / "word_embeddings", text.vocab_size, d, init),
            position_embeddings: nn::embedding(
                &embeddings / "position_embeddings",
                text.max_position_embeddings,
                d,
                init,
            ),
            transform: linear(&head / "transform" / "dense", d, d),
            transform_norm: layer_norm(&head / "transform" / "LayerNorm", d, c.layer_norm_eps),
            bias: head.var("bias", &[text.vocab_size], nn::Init::Const(0.0)),
            decoder_start_id: text.decoder_start_id,
        }
    }

    /// Word plus position of the real tokens, `[N, D]`.
    fn embed(&self, ids: &Tensor, packing: &Packing) -> Tensor {
        self.word_embeddings.forward(&packing.pack(ids))
            + self.position_embeddings.forward(&packing.offsets())
    }
}

impl Qformer {
    /// Fresh weights under Hugging Face's names: `query_tokens`, `qformer.*`, `embeddings.*`, `cls.predictions.*`.
    #[must_use]
    pub fn new(p: &Path, config: &QformerConfig) -> Self {
        let qformer = p / "qformer";
        let shape = [1, config.num_query_tokens, config.hidden_size];
        let layers = &qformer / "encoder" / "layer";
        Self {
            query_tokens: p.var("query_tokens", &shape, nn::Init::Randn { mean: 0.0, stdev: 0.02 }),
            layernorm: layer_norm(&qformer / "layernorm", config.hidden_size, config.layer_norm_eps),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&(&layers / i), i, config)).collect(),
            text: config.text.as_ref().map(|text| TextBranch::new(p, config, text)),
            config: config.clone(),
        }
    }

    /// Keys and values of `image` (`[N, P, V]`, behind its LayerNorm) in every layer that looks at images, by one matrix
    /// product.
    pub fn image_context(&self, image: &Tensor) -> ImageContext {
        let crossing = self.layers.iter().filter_map(Layer::cross_attention);
        let (weights, biases): (Vec<Tensor>, Vec<Tensor>) = crossing.map(Attention::image_projection).unzip();
        let projected = image.linear(&Tensor::cat(&weights, 0), Some(&Tensor::cat(&biases, 0)));
        let mut parts = projected.chunk(weights.len() as i64, 2).into_iter();
        let keys_values = |layer: &Layer| {
            let cross = layer.cross_attention()?;
            parts.next().map(|part| cross.image_keys_values(&part))
        };
        ImageContext { layers: self.layers.iter().map(keys_values).collect(), images: image.size()[0] }
    }

    /// Queries and their image, `[B, Q, D]`, and the cache for [`Qformer::decode_text`].
    pub fn encode_queries(&self, image: &ImageContext, train: bool) -> (Tensor, QueryCache) {
        let layout = Layout::queries(image.images, self.config.num_query_tokens);
        let x = self.embed(Some(image.images), None, train);
        let pass = Pass { layout: &layout, mask: None, train };
        let (rows, cache) = self.run(x, &pass, Some(image), None, false);
        (rows.view([image.images, self.config.num_query_tokens, -1]), QueryCache(cache))
    }

    /// Text alone, each token seeing all of its text: packed states `[N, D]`.
    pub fn encode_text(&self, text: &TextInput, packing: &Packing, train: bool) -> Tensor {
        let mask = padding_mask(&packing.mask);
        let x = self.embed(None, Some((&text.ids, packing)), train);
        let pass = Pass { layout: &Layout::with_text(0, packing), mask: Some(&mask), train };
        self.run(x, &pass, None, None, false).0
    }

    /// Queries with their image and a text, all seeing each other; `image` has one row for each text. Query states
    /// `[B, Q, D]`: nobody asks for the text's, so the last layer does not make them.
    pub fn encode_jointly(
        &self,
        text: &TextInput,
        packing: &Packing,
        image: &ImageContext,
        train: bool,
    ) -> Tensor {
        let queries = self.config.num_query_tokens;
        let ones = packing.mask.new_ones([packing.batch, queries], (Kind::Int64, packing.mask.device()));
        let mask = padding_mask(&Tensor::cat(&[&ones, &packing.mask], 1));
        let layout = Layout::with_text(queries, packing);
        let x = self.embed(Some(packing.batch), Some((&text.ids, packing)), train);
        let pass = Pass { layout: &layout, mask: Some(&mask), train };
        let (rows, _) = self.run(x, &pass, Some(image), None, true);
        rows.view([packing.batch, queries, -1])
    }

    /// Text that sees all queries and its own past: packed states `[N, D]`, to be scored by [`Qformer::lm_logits`].
    ///
    /// The first id of each text is replaced by `[DEC]`; the image is seen through the queries' keys and values only.
    pub fn decode_text(&self, text: &TextInput, packing: &Packing, past: &QueryCache, train: bool) -> Tensor {
        let ids = text.ids.copy();
        let _ = ids.select(1, 0).fill_(self.text_branch().decoder_start_id);
        let mask = causal_mask(self.config.num_query_tokens, packing);
        let x = self.embed(None, Some((&ids, packing)), train);
        let pass = Pass { layout: &Layout::with_text(0, packing), mask: Some(&mask), train };
        self.run(x, &pass, None, Some(past), false).0
    }

    /// Scores over the vocabulary, `[N, vocab]`, of states `[N, D]` (spec 2.6).
    pub fn lm_logits(&self, states: &Tensor) -> Tensor {
        let text = self.text_branch();
        let transformed = text.transform_norm.forward(&text.transform.forward(states).gelu("none"));
        transformed.linear(&text.word_embeddings.ws, Some(&text.bias))
    }

    /// The embedding LayerNorm over queries (as they are: no position) and over words with positions, `[M, D]`.
    fn embed(&self, images: Option<i64>, text: Option<(&Tensor, &Packing)>, train: bool) -> Tensor {
        let d = self.config.hidden_size;
        let mut parts = Vec::with_capacity(2);
        if let Some(images) = images {
            let expanded = self.query_tokens.expand([images, -1, -1], false);
            parts.push(expanded.reshape([images * self.config.num_query_tokens, d]));
        }
        if let Some((ids, packing)) = text {
            parts.push(self.text_branch().embed(ids, packing));
        }
        dropout(&self.layernorm.forward(&Tensor::cat(&parts, 0)), self.config.dropout, train)
    }

    /// All layers; with `queries_only` the last one gives the rows of queries alone.
    fn run(
        &self,
        x: Tensor,
        pass: &Pass<'_>,
        image: Option<&ImageContext>,
        past: Option<&QueryCache>,
        queries_only: bool,
    ) -> (Tensor, Vec<KeysValues>) {
        let mut rows = x;
        let mut cache = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let image = image.and_then(|context| context.layers[i].as_ref());
            let past = past.map(|past| &past.0[i]);
            let is_last = i + 1 == self.layers.len();
            let queries_only = queries_only && is_last;
            let (next, own) = match pass.train && self.config.gradient_checkpointing {
                true => layer.recomputed(&rows, pass, image, past, queries_only),
                false => layer.forward(&rows, pass, image, past, queries_only),
            };
            rows = next;
            cache.push(own);
        }
        (rows, cache)
    }

    fn text_branch(&self) -> &TextBranch {
        self.text.as_ref().expect("a pass with text is only asked of a Q-Former built with a text branch")
    }
}

/// `[B, S]`, 1 = visible, to what is added to scores, `[B, 1, 1, S]`.
fn padding_mask(visible: &Tensor) -> Tensor {
    let hidden: Tensor = 1 - visible.to_kind(Kind::Float);
    (hidden * MASKED).unsqueeze(1).unsqueeze(1)
}

/// `[T, Q + T]`: all queries and the past are seen. Right padding lies in the future of every real token, so that the
/// causal mask hides it.
fn causal_mask(queries: i64, packing: &Packing) -> Tensor {
    let width = packing.width;
    let ones = Tensor::ones([width, queries + width], (Kind::Float, packing.mask.device()));
    (1 - ones.tril(queries)) * MASKED
}
