//! The frozen language model: embeddings in, hidden states and logits out. Gradients reach the embeddings, and no weight.

mod bytes;
mod cache;
mod config;
mod continuation;
mod generate;
mod llama;
mod opt;
mod peers;
mod shards;
mod stack;
mod t5;

use collectives::{CommError, ProcessGroup};
use tch::{Device, Kind, Tensor};

pub use bytes::FrozenBytes;
pub use cache::KvCache;
pub use config::{ConfigError, LanguageConfig, LlamaConfig, OptConfig};
pub use continuation::Continuation;
pub use generate::{
    Beams, Decoder, EarlyStopping, GenerateOptions, Generated, Nucleus, OptionsError, Strategy, generate,
};
pub use llama::Llama;
pub use opt::Opt;
pub use t5::{Activation, T5, T5Cache, T5Config};

use peers::Peers;
use stack::{AnyStack, Keeping, meet};

use crate::inputs::LmText;
use crate::layers::dims;
use crate::weights::{Scope, Weights};

/// A frozen language model with its weights.
#[derive(Debug)]
pub enum LanguageModel {
    /// One stack of layers that reads and continues.
    Causal(CausalModel),
    /// An encoder that reads, a decoder that continues.
    T5(T5),
}

/// A frozen decoder-only language model.
#[derive(Debug)]
pub enum CausalModel {
    /// OPT.
    Opt(Opt),
    /// Llama and what is built like it.
    Llama(Llama),
}

/// States of a forward over something that is read and the text behind it.
#[derive(Debug)]
pub struct TextStates {
    /// Everything that the model computed behind its last norm: of a decoder-only model `[B, S + T, H]`, of an
    /// encoder-decoder its decoder's `[B, T, H]`.
    pub all: Tensor,
    /// `[B, T, H]`: the state that predicts each token of the text.
    pub predicting: Tensor,
}

impl CausalModel {
    /// `embeds` `[B, T, H]` and their `mask` `[B, T]` (1 = token, 0 = padding, on either side) to hidden states
    /// `[B, T, H]` behind the last norm, single precision. Padding comes out as zeros, and costs no matrix product.
    ///
    /// With a `cache` the embeddings continue what it remembers, and are remembered; `mask` is of the new ones only.
    pub fn forward(&self, embeds: &Tensor, mask: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
        if cache.is_some() {
            // Texts that are generated: ranks have each their own number of passes.
            meet(&[self.stack()], Some(0));
        }
        match self {
            Self::Opt(opt) => opt.forward(embeds, mask, cache),
            Self::Llama(llama) => llama.forward(embeds, mask, cache),
        }
    }

    fn stack(&self) -> &dyn AnyStack {
        match self {
            Self::Opt(opt) => &opt.layers,
            Self::Llama(llama) => &llama.layers,
        }
    }

    fn vocabulary(&self) -> &Vocabulary {
        match self {
            Self::Opt(opt) => &opt.vocabulary,
            Self::Llama(llama) => &llama.vocabulary,
        }
    }
}

impl LanguageModel {
    /// Takes the model's tensors out of `weights`, under Hugging Face's names, alone or inside a BLIP-2
    /// (`language_model.`; LAVIS: `opt_model.`, `t5_model.`, `llm_model.`). Matrix products will run in `kind`; norms,
    /// softmax and the residual stream are single precision. What is missing is told by [`Weights::finish`].
    #[must_use]
    pub fn new(config: &LanguageConfig, weights: &mut Weights, kind: Kind, device: Device) -> Self {
        Self::kept(config, weights, (kind, device), &Keeping::Whole)
    }

    /// [`LanguageModel::new`] with an equal part of each layer on every rank of `group`, which is for nothing else (Rajbhandari
    /// et al. 2020, arXiv 1910.02054, of frozen weights). A layer is gathered when it is needed, the next one while it computes,
    /// and in the backward pass again. Embeddings and head are whole on every rank.
    ///
    /// All ranks make the same [`LanguageModel::read`]s and backward passes. Texts that they generate may be of any number and
    /// length; each rank that has no more to write calls [`LanguageModel::accompany`]. Errors are told by
    /// [`LanguageModel::check_peers`].
    #[must_use]
    pub fn parted(
        config: &LanguageConfig,
        weights: &mut Weights,
        kind: Kind,
        group: Box<dyn ProcessGroup>,
    ) -> Self {
        let device = group.device();
        Self::kept(config, weights, (kind, device), &Keeping::Parted(Peers::new(group)))
    }

    fn kept(
        config: &LanguageConfig,
        weights: &mut Weights,
        place: (Kind, Device),
        keeping: &Keeping,
    ) -> Self {
        let _frozen = tch::no_grad_guard();
        match config {
            LanguageConfig::Opt(config) => {
                Self::Causal(CausalModel::Opt(Opt::new(config, weights, place, keeping)))
            }
            LanguageConfig::Llama(config) => {
                Self::Causal(CausalModel::Llama(Llama::new(config, weights, place, keeping)))
            }
            LanguageConfig::T5(config) => Self::T5(T5::new(config, weights, place, keeping)),
        }
    }

    /// Of a parted model: gives its parts of layers to ranks that still generate, until none does. Of a whole one: nothing.
    ///
    /// # Errors
    /// As [`LanguageModel::check_peers`].
    pub fn accompany(&self) -> Result<(), CommError> {
        let _no_gradient = tch::no_grad_guard();
        match self {
            Self::Causal(causal) => meet(&[causal.stack()], None),
            Self::T5(t5) => meet(&t5.stacks(), None),
        }
        self.check_peers()
    }

    /// Of a parted model, to be asked behind each pass: whether its layers have come. What a pass gave otherwise is of no use.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn check_peers(&self) -> Result<(), CommError> {
        let peers = match self {
            Self::Causal(causal) => causal.stack().peers(),
            Self::T5(t5) => t5.stacks().into_iter().find_map(AnyStack::peers),
        };
        peers.map_or(Ok(()), |peers| peers.check())
    }

    /// With layers that keep their inputs alone where a gradient is wanted, and are computed again in the backward pass: time
    /// of one forward more, the memory of one layer at a time, the same numbers.
    #[must_use]
    pub fn with_gradient_checkpointing(mut self, on: bool) -> Self {
        match &mut self {
            Self::Causal(CausalModel::Opt(opt)) => opt.gradient_checkpointing = on,
            Self::Causal(CausalModel::Llama(llama)) => llama.gradient_checkpointing = on,
            Self::T5(t5) => t5.gradient_checkpointing = on,
        }
        self
    }

    /// H, the width of the embeddings read and of the hidden states returned.
    #[must_use]
    pub fn hidden_size(&self) -> i64 {
        self.vocabulary().table.size()[1]
    }

    /// Number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> i64 {
        self.vocabulary().table.size()[0]
    }

    /// Embeddings of token ids: `[B, T]` to `[B, T, H]`, single precision.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        self.vocabulary().embed(ids)
    }

    /// Root mean square of the elements of all token embeddings: how large this model's words are.
    #[must_use]
    pub fn word_rms(&self) -> f64 {
        let table = &self.vocabulary().table;
        table.to_kind(Kind::Float).square().mean(Kind::Float).sqrt().double_value(&[])
    }

    /// Reads `before` `[B, S, H]` (`mask` `[B, S]`, 1 = token) and then the text, whose every token is predicted from what
    /// stands before it.
    pub fn read(&self, before: &Tensor, mask: &Tensor, text: &LmText) -> TextStates {
        match self {
            Self::Causal(causal) => {
                let embeds = Tensor::cat(&[before, &self.embed(&text.ids)], 1);
                let all = causal.forward(&embeds, &Tensor::cat(&[mask, &text.mask], 1), None);
                let [_, columns, _] = dims(before);
                let first = last_tokens(&all.narrow(1, 0, columns), mask).unsqueeze(1);
                let rest = all.narrow(1, columns, text.ids.size()[1] - 1);
                TextStates { predicting: Tensor::cat(&[first, rest], 1), all }
            }
            Self::T5(t5) => {
                let all = t5.read(before, mask, &text.ids);
                TextStates { predicting: all.shallow_clone(), all }
            }
        }
    }

    /// Ids that stand before all generated ones and are no prompt: the start that a decoder reads.
    #[must_use]
    pub fn decoder_start(&self) -> Option<i64> {
        match self {
            Self::Causal(_) => None,
            Self::T5(t5) => Some(t5.decoder_start()),
        }
    }

    /// Scores of every token id, `[.., H]` to `[.., vocabulary]`, single precision. The head is a large part of the
    /// model: give it only the rows that are needed.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let vocabulary = self.vocabulary();
        let head = vocabulary.head.as_ref().unwrap_or(&vocabulary.table);
        hidden.to_kind(head.kind()).linear(head, None::<&Tensor>).to_kind(Kind::Float)
    }

    fn vocabulary(&self) -> &Vocabulary {
        match self {
            Self::Causal(causal) => causal.vocabulary(),
            Self::T5(t5) => &t5.vocabulary,
        }
    }
}

/// The rows of `hidden` `[B, T, H]` at each row's last token, `[B, H]`.
fn last_tokens(hidden: &Tensor, mask: &Tensor) -> Tensor {
    let [batch, tokens, width] = dims(hidden);
    let columns = Tensor::arange(tokens, (Kind::Int64, hidden.device()));
    let last = (mask.to_kind(Kind::Int64) * columns).argmax(1, false); // [B]
    hidden.gather(1, &last.view([batch, 1, 1]).expand([batch, 1, width], false), false).squeeze_dim(1)
}

/// Embeddings on the way in, scores on the way out.
#[derive(Debug)]
struct Vocabulary {
    /// `[vocabulary, H]`.
    table: Tensor,
    /// `[vocabulary, H]`; the table itself where the two are tied.
    head: Option<Tensor>,
}

impl Vocabulary {
    /// `head` is the name of an untied head in `scope`; a tied one's copy, which many files have, is left alone.
    fn new(table: Tensor, head: Option<&str>, scope: &mut Scope<'_>) -> Self {
        let shape = table.size();
        let head = head.map(|name| scope.take(name, &shape));
        if head.is_none() {
            scope.ignore("lm_head.weight");
        }
        Self { table, head }
    }

    fn kind(&self) -> Kind {
        self.table.kind()
    }

    fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.table, ids, -1, false, false).to_kind(Kind::Float)
    }
}

/// The first `root` and `body` under which the file has token embeddings (the last ones, if none).
fn root_of(
    weights: &Weights,
    roots: &[&'static str],
    bodies: &[&'static str],
) -> (&'static str, &'static str) {
    let candidates = roots.iter().flat_map(|root| bodies.iter().map(move |body| (*root, *body)));
    let here = |(root, body): &(&str, &str)| weights.has(&format!("{root}{body}embed_tokens.weight"));
    candidates.clone().find(here).or_else(|| candidates.last()).expect("at least one of each is given")
}
