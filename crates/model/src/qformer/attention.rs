//! Multi-head attention of the Q-Former, in BERT's parts and names (post-norm; spec 2.1).

use tch::nn::{self, Module, Path};
use tch::{Kind, Tensor};

use super::QformerConfig;
use super::parts::{Part, layer_norm, linear};
use super::tokens::Layout;
use crate::dropout::dropout;
use crate::layers::LayerNorm;

/// The bias of a layer made by [`linear`].
fn bias(layer: &nn::Linear) -> Tensor {
    layer.bs.as_ref().map(Tensor::shallow_clone).expect("built with a bias")
}

/// `[B, S, D]` > `[B, H, S, K]`.
fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let size = x.size();
    x.reshape([size[0], size[1], heads, size[2] / heads]).transpose(1, 2)
}

/// `[B, H, S, K]` > `[B, S, D]`.
fn join_heads(x: &Tensor) -> Tensor {
    let size = x.size();
    x.transpose(1, 2).reshape([size[0], size[2], size[1] * size[3]])
}

/// Keys and values with heads split, `[B, H, S, K]` each.
#[derive(Debug)]
pub(super) struct KeysValues {
    pub keys: Tensor,
    pub values: Tensor,
}

impl KeysValues {
    /// Rows of the batch, in the order of `rows`.
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { keys: self.keys.index_select(0, rows), values: self.values.index_select(0, rows) }
    }

    /// `other`'s rows below these.
    pub fn stack(&self, other: &Self) -> Self {
        Self {
            keys: Tensor::cat(&[&self.keys, &other.keys], 0),
            values: Tensor::cat(&[&self.values, &other.values], 0),
        }
    }

    /// These positions in front of `later`'s.
    pub fn followed_by(&self, later: &Self) -> Self {
        Self {
            keys: Tensor::cat(&[&self.keys, &later.keys], 2),
            values: Tensor::cat(&[&self.values, &later.values], 2),
        }
    }
}

/// Query, key and value projections; field = checkpoint key.
#[derive(Debug)]
struct Projections {
    query: nn::Linear,
    key: nn::Linear,
    value: nn::Linear,
}

/// Output projection, dropout, residual, LayerNorm.
#[derive(Debug)]
pub(super) struct Output {
    dense: nn::Linear,
    layer_norm: LayerNorm,
    dropout: f64,
}

impl Output {
    pub fn new(p: &Path, from: i64, c: &QformerConfig) -> Self {
        Self {
            dense: linear(p / "dense", from, c.hidden_size),
            layer_norm: layer_norm(p / "LayerNorm", c.hidden_size, c.layer_norm_eps),
            dropout: c.dropout,
        }
    }

    pub fn forward(&self, x: &Tensor, residual: &Tensor, train: bool) -> Tensor {
        let projected = dropout(&self.dense.forward(x), self.dropout, train);
        self.layer_norm.forward(&(projected + residual))
    }
}

impl Part for Projections {
    fn share(&self) -> Self {
        Self { query: self.query.share(), key: self.key.share(), value: self.value.share() }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        [&self.query, &self.key, &self.value].into_iter().for_each(|part| part.collect(into));
    }
}

impl Part for Output {
    fn share(&self) -> Self {
        Self { dense: self.dense.share(), layer_norm: self.layer_norm.share(), dropout: self.dropout }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        self.dense.collect(into);
        self.layer_norm.collect(into);
    }
}

impl Part for Attention {
    fn share(&self) -> Self {
        Self {
            projections: self.projections.share(),
            output: self.output.share(),
            heads: self.heads,
            dropout: self.dropout,
        }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        self.projections.collect(into);
        self.output.collect(into);
    }
}

/// Attention among the tokens of a pass, or of queries to an image.
#[derive(Debug)]
pub(super) struct Attention {
    projections: Projections,
    output: Output,
    heads: i64,
    dropout: f64,
}

impl Attention {
    /// `keys_from`: width of what is attended to (the image encoder's in cross-attention).
    pub fn new(p: &Path, keys_from: i64, c: &QformerConfig) -> Self {
        let inner = p / "attention";
        Self {
            projections: Projections {
                query: linear(&inner / "query", c.hidden_size, c.hidden_size),
                key: linear(&inner / "key", keys_from, c.hidden_size),
                value: linear(&inner / "value", keys_from, c.hidden_size),
            },
            output: Output::new(&(p / "output"), c.hidden_size, c),
            heads: c.num_attention_heads,
            dropout: c.dropout,
        }
    }

    /// Weights `[2D, V]` and biases `[2D]` of keys and values, for a product over all layers at once.
    pub fn image_projection(&self) -> (Tensor, Tensor) {
        let Projections { key, value, .. } = &self.projections;
        (Tensor::cat(&[&key.ws, &value.ws], 0), Tensor::cat(&[bias(key), bias(value)], 0))
    }

    /// Keys and values out of this layer's part of the product, `[N, P, 2D]`.
    pub fn image_keys_values(&self, projected: &Tensor) -> KeysValues {
        let parts = projected.chunk(2, 2);
        KeysValues { keys: split_heads(&parts[0], self.heads), values: split_heads(&parts[1], self.heads) }
    }

    /// Queries (`[B * Q, D]`) look at their image; `image` has one row for each row of the batch.
    pub fn cross(&self, x: &Tensor, image: &KeysValues, layout: &Layout, train: bool) -> Tensor {
        let query = self.projections.query.forward(x).view([layout.batch, layout.queries, -1]);
        let query = query * (x.size()[1] as f64 / self.heads as f64).powf(-0.5);
        let context = self.attend(&split_heads(&query, self.heads), image, None, train);
        self.output.forward(&join_heads(&context).flatten(0, 1), x, train)
    }

    /// Packed rows `x` (`[M, D]`) look at each other and at `past`; gives the new rows and their keys and values.
    ///
    /// With `queries_only` text rows are looked at and not renewed: only the rows of queries come back.
    pub fn among(
        &self,
        x: &Tensor,
        layout: &Layout,
        mask: Option<&Tensor>,
        past: Option<&KeysValues>,
        (queries_only, train): (bool, bool),
    ) -> (Tensor, KeysValues) {
        let (query, own) = self.project(x, layout);
        let query = if queries_only { query.narrow(2, 0, layout.queries) } else { query };
        let context = match past {
            Some(past) => self.attend(&query, &past.followed_by(&own), mask, train),
            None => self.attend(&query, &own, mask, train),
        };
        let context = join_heads(&context);
        let rows = match queries_only {
            true => self.output.forward(&context.flatten(0, 1), &x.narrow(0, 0, layout.query_rows()), train),
            false => self.output.forward(&layout.collect(&context), x, train),
        };
        (rows, own)
    }

    /// Queries, keys and values of packed rows by one matrix product, `[B, H, S, K]` each; the queries are scaled.
    fn project(&self, x: &Tensor, layout: &Layout) -> (Tensor, KeysValues) {
        let Projections { query, key, value } = &self.projections;
        let scale = (x.size()[1] as f64 / self.heads as f64).powf(-0.5);
        // Scaling the projection is scaling its output, at a hundredth of the cost.
        let weights = Tensor::cat(&[&(&query.ws * scale), &key.ws, &value.ws], 0);
        let biases = Tensor::cat(&[bias(query) * scale, bias(key), bias(value)], 0);
        let projected = layout.spread(&x.linear(&weights, Some(&biases))); // [B, S, 3D]
        let size = projected.size();
        let split = projected.view([size[0], size[1], 3, self.heads, size[2] / (3 * self.heads)]);
        let mut parts = split.permute([2, 0, 3, 1, 4]).unbind(0).into_iter(); // [B, H, S, K] each
        let mut next = || parts.next().expect("three parts");
        (next(), KeysValues { keys: next(), values: next() })
    }

    /// softmax(q kᵀ + mask) v of queries that are scaled already, the softmax in fp32; `mask` is additive and broadcasts
    /// to `[B, H, S, S']`.
    fn attend(&self, query: &Tensor, of: &KeysValues, mask: Option<&Tensor>, train: bool) -> Tensor {
        let scores = query.matmul(&of.keys.transpose(2, 3)).to_kind(Kind::Float);
        let scores = match mask {
            Some(mask) => scores + mask,
            None => scores,
        };
        dropout(&scores.softmax(-1, Kind::Float), self.dropout, train).matmul(&of.values)
    }
}
