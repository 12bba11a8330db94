//! One layer: self-attention over all rows, cross-attention and a feed-forward of its own for queries, another
//! feed-forward for text (paper fig. 2; spec 2.1).

use tch::Tensor;
use tch::nn::{self, Module, Path};

use super::QformerConfig;
use super::attention::{Attention, KeysValues, Output};
use super::parts::{Part, linear};
use super::tokens::Layout;

/// Two linear layers with an exact GELU between them, residual and LayerNorm behind.
#[derive(Debug)]
struct FeedForward {
    intermediate: nn::Linear,
    output: Output,
}

impl FeedForward {
    /// `suffix` is empty for text, `_query` for queries.
    fn new(p: &Path, suffix: &str, c: &QformerConfig) -> Self {
        let intermediate = p / format!("intermediate{suffix}") / "dense";
        Self {
            intermediate: linear(intermediate, c.hidden_size, c.intermediate_size),
            output: Output::new(&(p / format!("output{suffix}")), c.intermediate_size, c),
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        self.output.forward(&self.intermediate.forward(x).gelu("none"), x, train)
    }
}

impl Part for FeedForward {
    fn share(&self) -> Self {
        Self { intermediate: self.intermediate.share(), output: self.output.share() }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        self.intermediate.collect(into);
        self.output.collect(into);
    }
}

/// What all layers of one pass share.
pub(super) struct Pass<'a> {
    /// Where the rows are.
    pub layout: &'a Layout,
    /// Added to the scores of self-attention.
    pub mask: Option<&'a Tensor>,
    /// Dropout is on.
    pub train: bool,
}

/// Field = checkpoint key.
#[derive(Debug)]
pub(super) struct Layer {
    attention: Attention,
    crossattention: Option<Attention>,
    query_feed_forward: FeedForward,
    /// Not there in stage 2, which has no text branch.
    text_feed_forward: Option<FeedForward>,
}

impl Part for Layer {
    fn share(&self) -> Self {
        Self {
            attention: self.attention.share(),
            crossattention: self.crossattention.share(),
            query_feed_forward: self.query_feed_forward.share(),
            text_feed_forward: self.text_feed_forward.share(),
        }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        self.attention.collect(into);
        self.crossattention.collect(into);
        self.query_feed_forward.collect(into);
        self.text_feed_forward.collect(into);
    }
}

impl Layer {
    /// Layer `index`; cross-attention stands in every `cross_attention_freq`-th, from layer 0.
    pub fn new(p: &Path, index: i64, c: &QformerConfig) -> Self {
        let crosses = index % c.cross_attention_freq == 0;
        Self {
            attention: Attention::new(&(p / "attention"), c.hidden_size, c),
            crossattention: crosses
                .then(|| Attention::new(&(p / "crossattention"), c.encoder_hidden_size, c)),
            query_feed_forward: FeedForward::new(p, "_query", c),
            text_feed_forward: c.text.as_ref().map(|_| FeedForward::new(p, "", c)),
        }
    }

    /// This layer's attention to images, where it has one.
    pub fn cross_attention(&self) -> Option<&Attention> {
        self.crossattention.as_ref()
    }

    /// `x` is packed, `[M, D]`; gives the new rows (only those of queries with `queries_only`) and the self-attention's
    /// keys and values.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        image: Option<&KeysValues>,
        past: Option<&KeysValues>,
        queries_only: bool,
    ) -> (Tensor, KeysValues) {
        let (layout, train) = (pass.layout, pass.train);
        let (attended, own) = self.attention.among(x, layout, pass.mask, past, (queries_only, train));
        let (queries, text) = layout.split(&attended);
        let mut parts = Vec::with_capacity(2);
        if layout.queries > 0 {
            let seen = match (&self.crossattention, image) {
                (Some(cross), Some(image)) => cross.cross(&queries, image, layout, train),
                _ => queries,
            };
            parts.push(self.query_feed_forward.forward(&seen, train));
        }
        if let Some(feed_forward) = self.text_feed_forward.as_ref().filter(|_| text.size()[0] > 0) {
            parts.push(feed_forward.forward(&text, train));
        }
        let rows = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) };
        (rows, own)
    }

    /// [`Layer::forward`] in training, of which only the inputs are kept until the backward pass.
    pub fn recomputed(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        image: Option<&KeysValues>,
        past: Option<&KeysValues>,
        queries_only: bool,
    ) -> (Tensor, KeysValues) {
        let mut inputs = vec![x];
        inputs.extend([image, past].into_iter().flatten().flat_map(|kv| [&kv.keys, &kv.values]));
        let mut parameters = Vec::new();
        self.collect(&mut parameters);
        let (layer, layout) = (self.share(), pass.layout.share());
        let mask = pass.mask.map(Tensor::shallow_clone);
        let (has_image, has_past) = (image.is_some(), past.is_some());
        let piece = move |inputs: &[Tensor]| {
            let mut rest = inputs[1..]
                .chunks(2)
                .map(|kv| KeysValues { keys: kv[0].shallow_clone(), values: kv[1].shallow_clone() });
            let mut take = |is_there: bool| if is_there { rest.next() } else { None };
            let (image, past) = (take(has_image), take(has_past));
            let pass = Pass { layout: &layout, mask: mask.as_ref(), train: true };
            let (rows, own) = layer.forward(&inputs[0], &pass, image.as_ref(), past.as_ref(), queries_only);
            vec![rows, own.keys, own.values]
        };
        let mut results = torch_bridge::recomputed(&inputs, &parameters, 3, piece).into_iter();
        let mut next = || results.next().expect("three tensors");
        (next(), KeysValues { keys: next(), values: next() })
    }
}
