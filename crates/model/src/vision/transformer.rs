//! The pre-norm vision transformer that EVA, CLIP and DINOv2 share; what differs between them is a [`Style`].

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::positions::{patch_grid, resize_positions};
use crate::layers::{LayerNorm, Linear, attention, dims, layer_norm, linear, linear_f32};
use crate::weights::{Scope, Weights};

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the pictures in pixels.
    pub img_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// V.
    pub width: i64,
    /// Blocks that are run; the file may hold more. The output is the last one's, without a final norm.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// Hidden size of the feed-forward over `width`, truncated to a whole number.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

impl VitConfig {
    /// Hidden size of the feed-forward.
    #[must_use]
    pub fn mlp_hidden(&self) -> i64 {
        // LAVIS: int(dim * mlp_ratio).
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes are small")]
        let hidden = (self.width as f64 * self.mlp_ratio) as i64;
        hidden
    }

    fn grid(&self) -> i64 {
        self.img_size / self.patch_size
    }
}

/// What the feed-forward does between its layers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Activation {
    /// By the error function.
    Gelu,
    /// `x sigmoid(1.702 x)` (CLIP).
    QuickGelu,
}

/// One family under the names of one file format.
pub(super) struct Style {
    /// Prefixes to look under, the likeliest first.
    pub prefixes: &'static [&'static str],
    pub class: &'static str,
    pub positions: &'static str,
    /// Whether class and positions have leading dimensions of one.
    pub batched: bool,
    pub patch: &'static str,
    pub patch_bias: bool,
    /// A norm before the first block.
    pub pre_norm: Option<&'static str>,
    pub blocks: &'static str,
    pub norms: [&'static str; 2],
    /// Reads queries, keys and values of one block as one layer of `3 V` outputs.
    pub qkv: fn(&mut Scope<'_>, i64) -> Linear,
    pub projection: &'static str,
    pub feed_forward: [&'static str; 2],
    /// Gains of the two residual branches.
    pub layer_scales: Option<[&'static str; 2]>,
    pub activation: Activation,
    pub eps: f64,
    /// How positions are resized, see [`resize_positions`].
    pub align_corners: bool,
    /// Names below the prefix that belong to parts we do not run.
    pub ignored: &'static [&'static str],
}

/// A frozen vision transformer.
#[derive(Debug)]
pub(super) struct Transformer {
    config: VitConfig,
    patch: (Tensor, Option<Tensor>),
    /// `[1, 1, V]`, its position already added.
    class: Tensor,
    /// `[1, P - 1, V]`.
    positions: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    heads: i64,
}

impl Transformer {
    /// Reads the file in the first of `styles` whose class token it holds (the last one, if none).
    pub(super) fn load(
        config: &VitConfig,
        styles: &[Style],
        weights: &mut Weights,
        kind: Kind,
        device: Device,
    ) -> Self {
        let candidates =
            styles.iter().flat_map(|style| style.prefixes.iter().map(move |prefix| (style, *prefix)));
        let here = |(style, prefix): &(&Style, &str)| weights.has(&format!("{prefix}{}", style.class));
        let (style, prefix) =
            candidates.clone().find(here).or_else(|| candidates.last()).expect("a style is given");
        let mut scope = weights.scope(prefix, kind, device);
        for ignored in style.ignored {
            scope.ignore(ignored);
        }
        scope.ignore_blocks_from(style.blocks, config.layers);
        let mut blocks = scope.at(style.blocks);
        let blocks = (0..config.layers).map(|i| Block::load(config, style, &mut blocks.at(i))).collect();
        let (class, positions) = embeddings(config, style, &mut scope);
        let patch_shape = [config.width, 3, config.patch_size, config.patch_size];
        let mut patch = scope.at(style.patch);
        let patch = (
            patch.take("weight", &patch_shape),
            style.patch_bias.then(|| patch.take("bias", &[config.width])),
        );
        let pre_norm = style.pre_norm.map(|name| layer_norm(&mut scope, name, config.width, style.eps));
        Self { config: config.clone(), patch, class, positions, pre_norm, blocks }
    }

    /// `[B, 3, S, S]` to `[B, P, V]`, single precision.
    pub(super) fn forward(&self, pixels: &Tensor) -> Tensor {
        let (weight, bias) = &self.patch;
        let side = self.config.patch_size;
        let map =
            pixels.to_kind(weight.kind()).conv2d(weight, bias.as_ref(), [side, side], [0, 0], [1, 1], 1); // [B, V, G, G]
        let patches = map.flatten(2, 3).transpose(1, 2) + &self.positions; // [B, P - 1, V]
        let [batch, _, width] = dims(&patches);
        let mut x = Tensor::cat(&[self.class.expand([batch, 1, width], false), patches], 1);
        if let Some(norm) = &self.pre_norm {
            x = norm.forward(&x);
        }
        for block in &self.blocks {
            x = block.forward(&x);
        }
        x
    }

    pub(super) fn output_shape(&self, image_size: i64) -> [i64; 2] {
        let grid = image_size / self.config.patch_size;
        [1 + grid * grid, self.config.width]
    }

    pub(super) fn width(&self) -> i64 {
        self.config.width
    }
}

impl Block {
    fn load(config: &VitConfig, style: &Style, scope: &mut Scope<'_>) -> Self {
        let (width, hidden) = (config.width, config.mlp_hidden());
        let [norm1, norm2] = style.norms;
        let [fc1, fc2] = style.feed_forward;
        let scale = |which: usize| style.layer_scales.map(|names| names[which]);
        Self {
            norm1: layer_norm(scope, norm1, width, style.eps),
            qkv: (style.qkv)(scope, width),
            projection: scaled_linear(scope, style.projection, [width, width], scale(0)),
            norm2: layer_norm(scope, norm2, width, style.eps),
            fc1: linear(scope, fc1, [width, hidden]),
            fc2: scaled_linear(scope, fc2, [hidden, width], scale(1)),
            activation: style.activation,
            heads: config.heads,
        }
    }

    /// `[B, P, V]` to the same.
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.projection.forward(&self.attend(&self.norm1.forward(x)));
        let hidden = self.fc1.forward(&self.norm2.forward(&x));
        let hidden = match self.activation {
            Activation::Gelu => hidden.gelu("none"),
            Activation::QuickGelu => &hidden * (&hidden * 1.702).sigmoid(),
        };
        &x + self.fc2.forward(&hidden)
    }

    fn attend(&self, x: &Tensor) -> Tensor {
        let [batch, tokens, width] = dims(x);
        let qkv = self.qkv.forward(x).view([batch, tokens, 3, self.heads, width / self.heads]);
        let qkv = qkv.permute([2, 0, 3, 1, 4]); // [3, B, H, P, K]
        let context = attention(&qkv.get(0), &qkv.get(1), &qkv.get(2)); // [B, H, P, K]
        context.transpose(1, 2).reshape([batch, tokens, width])
    }
}

/// The layer times a gain for each output: `s (W x + b)` is `(s W) x + s b`.
fn scaled_linear(scope: &mut Scope<'_>, name: &str, sizes: [i64; 2], scale: Option<&str>) -> Linear {
    let Some(scale) = scale else { return linear(scope, name, sizes) };
    let (weight, bias) = linear_f32(scope, name, sizes);
    let scale = scope.take_f32(scale, &[sizes[1]]);
    Linear::new(&(weight * scale.unsqueeze(1)), Some(&(bias * &scale)), scope.kind())
}

/// The class token with its position, and the positions of the patches at the configured grid.
fn embeddings(config: &VitConfig, style: &Style, scope: &mut Scope<'_>) -> (Tensor, Tensor) {
    let (width, grid) = (config.width, config.grid());
    let class_shape = if style.batched { vec![1, 1, width] } else { vec![width] };
    let class = scope.take_f32(style.class, &class_shape).view([1, 1, width]);
    let shape = |rows: i64| if style.batched { vec![1, rows, width] } else { vec![rows, width] };
    let rows_in_file = scope.shape(style.positions).and_then(|shape| shape.iter().rev().nth(1).copied());
    let rows = rows_in_file.filter(|rows| patch_grid(*rows).is_some()).unwrap_or(1 + grid * grid);
    let table = scope.take_f32(style.positions, &shape(rows));
    let table = resize_positions(&table, grid, style.align_corners).view([1, 1 + grid * grid, width]);
    (class + table.narrow(1, 0, 1), table.narrow(1, 1, grid * grid).contiguous())
}
