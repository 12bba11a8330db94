//! Stage 1: representation learning from a frozen image encoder (paper section 3.2; spec 3).
//!
//! Three losses over one set of weights: image-text contrastive (ITC), image-text matching with hard negatives (ITM),
//! image-grounded text generation (ITG); their sum is minimised.

mod cached;
mod generate;

pub use cached::CachedContrast;

use collectives::{CommError, ProcessGroup};
use tch::nn::{self, Module, Path};
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::contrast::{Itc, contrast};
use crate::exchange::{Images, fetch_images, gather_texts};
use crate::inputs::{Negatives, Stage1Inputs, TextInput, count};
use crate::layers::LayerNorm;
use crate::negatives::{NegativeWeighting, draw, negative_weights};
use crate::qformer::{ImageContext, Packing, Qformer, QformerConfig, QueryCache, layer_norm, linear};

/// Of ITC and ITG (spec 3.1, 3.3).
pub(crate) const LABEL_SMOOTHING: f64 = 0.1;
/// A label that is not scored.
const NO_LABEL: i64 = -100;
/// LayerNorm of the image features (LAVIS's `ln_vision`; Hugging Face has 1e-6).
pub(crate) const IMAGE_LAYER_NORM_EPS: f64 = 1e-5;

/// Over what ITG is a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ItgWeighting {
    /// All ranks' tokens: N ranks equal one rank with N times the batch.
    #[default]
    GlobalTokens,
    /// Each rank's own tokens, as LAVIS under DDP.
    RankTokens,
}

/// What stage 1 is made of.
#[derive(Clone, Debug)]
pub struct Stage1Config {
    /// The bridge; its text branch is needed.
    pub qformer: QformerConfig,
    /// Width E of the contrastive space (paper: 256).
    pub projection_size: i64,
    /// Chances of hard negatives.
    pub negative_weighting: NegativeWeighting,
    /// Mean of ITG.
    pub itg_weighting: ItgWeighting,
}

/// The losses of one micro-batch, scalars; only `total` carries the graph that matters.
#[derive(Debug)]
pub struct Stage1Losses {
    /// ITC + ITM + ITG.
    pub total: Tensor,
    /// Image-text contrastive, nats.
    pub itc: Tensor,
    /// Image-text matching, nats.
    pub itm: Tensor,
    /// Image-grounded text generation, nats a token.
    pub itg: Tensor,
    /// Share of the 3B pairs that ITM gets right.
    pub itm_accuracy: Tensor,
    /// Share of images whose own text is the most similar of the contrast batch.
    pub i2t_recall: Tensor,
    /// ITC's temperature.
    pub temperature: Tensor,
}

/// What the losses were computed from, for comparison with reference cases.
#[derive(Debug)]
pub struct Stage1Trace {
    /// Image features behind their LayerNorm, `[B, P, V]`.
    pub image_embeds: Tensor,
    /// Query states of the image pass, `[B, Q, D]`.
    pub query_output: Tensor,
    /// States of the text pass, `[B, T, D]`; padding is not specified.
    pub text_output: Tensor,
    /// Normalised projections, `[B, Q, E]`.
    pub image_feats: Tensor,
    /// Normalised projections, `[B, E]`.
    pub text_feats: Tensor,
    /// Similarities over temperature, `[B, W * B]`.
    pub sim_i2t: Tensor,
    /// Similarities over temperature, `[B, W * B]`.
    pub sim_t2i: Tensor,
    /// Query states of the matching pass, `[3B, Q, D]`.
    pub itm_query_output: Tensor,
    /// `[3B, 2]`.
    pub itm_logits: Tensor,
    /// States that predict a token, `[N, D]`, caption by caption.
    pub lm_states: Tensor,
    /// Scores of the next token, `[N, vocab]`.
    pub lm_logits: Tensor,
}

/// Images ready to be compared with texts.
#[derive(Debug)]
pub struct EncodedImages {
    /// Normalised projections of the queries, `[B, Q, E]`.
    pub projections: Tensor,
    context: ImageContext,
}

/// Q-Former, heads and the LayerNorm of the image features: all that is trained.
#[derive(Debug)]
pub struct Stage1 {
    image_norm: LayerNorm,
    qformer: Qformer,
    vision_projection: nn::Linear,
    text_projection: nn::Linear,
    itm_head: nn::Linear,
    temperature: Tensor,
    config: Stage1Config,
}

impl Stage1 {
    /// Fresh weights under Hugging Face's names (`Blip2ForImageTextRetrieval`), plus `temperature` and `cls.*`.
    #[must_use]
    pub fn new(p: &Path, config: &Stage1Config) -> Self {
        let (d, v) = (config.qformer.hidden_size, config.qformer.encoder_hidden_size);
        // PyTorch's default for linear layers, U(±1 / sqrt(in)) (spec 2.7); tch's default is 2.4 times as wide.
        let uniform = nn::Init::Uniform { lo: -(d as f64).powf(-0.5), up: (d as f64).powf(-0.5) };
        let plain = nn::LinearConfig { ws_init: uniform, bs_init: Some(uniform), bias: true };
        let head = |name: &str, to: i64| nn::linear(p / name, d, to, plain);
        Self {
            image_norm: layer_norm(p / "vision_model" / "post_layernorm", v, IMAGE_LAYER_NORM_EPS),
            qformer: Qformer::new(p, &config.qformer),
            vision_projection: head("vision_projection", config.projection_size),
            text_projection: head("text_projection", config.projection_size),
            // As BERT's layers and without a bias of its own, so that ITM starts near ln 2.
            itm_head: linear(p / "itm_head", d, 2),
            temperature: p.var("temperature", &[], nn::Init::Const(0.07)),
            config: config.clone(),
        }
    }

    /// The three losses of one micro-batch. Other ranks are reached through `group` only.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn losses(
        &self,
        inputs: &Stage1Inputs,
        group: &dyn ProcessGroup,
        train: bool,
    ) -> Result<Stage1Losses, CommError> {
        Ok(self.forward(inputs, group, train)?.0)
    }

    /// [`Stage1::losses`], with what they were computed from.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn forward(
        &self,
        inputs: &Stage1Inputs,
        group: &dyn ProcessGroup,
        train: bool,
    ) -> Result<(Stage1Losses, Stage1Trace), CommError> {
        let own = self.embed(&inputs.image, &inputs.text, train);
        // Similarities are divided by a small temperature: bf16's three digits are too few for them.
        let itc = torch_bridge::autocast(group.device(), None, || {
            let concepts = inputs.concepts.as_ref();
            contrast(&own.image_feats, &own.text_feats, concepts, &self.temperature, group)
        })?;
        let (neg_images, neg_texts) = self.negatives(&inputs.negatives, &itc, 0);
        let texts = gather_texts(&inputs.text, group)?;
        let at_hand = Images { parts: &[&inputs.image], at_hand: 0 };
        let hard = Hard {
            images: self.with_hard_images(&own.images, &at_hand, &neg_images, group)?,
            texts: texts.select(&neg_texts),
        };
        let itm = self.itm(&inputs.text, &hard, train);
        let lm = self.itg(&inputs.text, &own.cache, train);
        let itg = lm.sum() / self.itg_tokens(&inputs.text, &texts, group.world_size());
        let losses = Stage1Losses {
            total: &itc.loss + &itm.loss + &itg,
            itc: itc.loss,
            itm: itm.loss,
            itg,
            itm_accuracy: itm.accuracy,
            i2t_recall: itc.recall,
            temperature: self.temperature.detach().copy(),
        };
        let trace = Stage1Trace {
            image_embeds: own.image_embeds,
            query_output: own.query_output,
            text_output: own.packing.unpack(&own.text_states),
            image_feats: own.image_feats,
            text_feats: own.text_feats,
            sim_i2t: itc.sim_i2t,
            sim_t2i: itc.sim_t2i,
            itm_query_output: itm.query_output,
            itm_logits: itm.logits,
            lm_states: lm.states.narrow(0, 0, lm.tokens),
            lm_logits: lm.logits.narrow(0, 0, lm.tokens),
        };
        Ok((losses, trace))
    }

    /// The passes over images and texts that ITC compares. They come first and in this order, whoever asks: the same seed
    /// then drops the same.
    fn embed(&self, image: &Tensor, text: &TextInput, train: bool) -> Embedded {
        let image_embeds = self.image_norm.forward(image);
        let images = self.qformer.image_context(&image_embeds);
        let (query_output, cache) = self.qformer.encode_queries(&images, train);
        let packing = Packing::new(&text.mask);
        let text_states = self.qformer.encode_text(text, &packing, train);
        let image_feats = self.image_feats(&query_output);
        let text_feats = self.text_feats(&text_states, &packing);
        Embedded { image_embeds, images, query_output, cache, packing, text_states, image_feats, text_feats }
    }

    /// Query states `[B, Q, D]` > normalised projections, `[B, Q, E]`.
    fn image_feats(&self, query_output: &Tensor) -> Tensor {
        normalise(&self.vision_projection.forward(query_output))
    }

    /// Packed states of texts > normalised projections of their `[CLS]`, `[B, E]`.
    fn text_feats(&self, states: &Tensor, packing: &Packing) -> Tensor {
        normalise(&self.text_projection.forward(&states.index_select(0, &packing.first_tokens())))
    }

    /// Global indices of the image drawn for each text and of the text drawn for each image, `[B]` each, for the pairs that
    /// stand in `itc` from row `first` on.
    fn negatives(&self, negatives: &Negatives, itc: &Itc, first: i64) -> (Tensor, Tensor) {
        match negatives {
            Negatives::Given { images, texts } => (images.shallow_clone(), texts.shallow_clone()),
            Negatives::Drawn { uniforms } => no_grad(|| {
                let rows = |tensor: &Tensor| tensor.narrow(0, first, uniforms.size()[1]);
                let weighting = self.config.negative_weighting;
                let draw = |sim: &Tensor, which: i64| {
                    let weights = negative_weights(weighting, &rows(sim), &rows(&itc.matches));
                    draw(&weights, &uniforms.get(which))
                };
                (draw(&itc.sim_t2i, 0), draw(&itc.sim_i2t, 1))
            }),
        }
    }

    /// Keys and values of the images of all ITM pairs, `3B` of them: own, drawn, own. `own` are those `at_hand`.
    fn with_hard_images(
        &self,
        own: &ImageContext,
        at_hand: &Images<'_>,
        drawn: &Tensor,
        group: &dyn ProcessGroup,
    ) -> Result<ImageContext, CommError> {
        let (places, fetched) = fetch_images(at_hand, drawn, group)?;
        let first = Tensor::arange(drawn.size()[0], (Kind::Int64, drawn.device()));
        let rows = Tensor::cat(&[&first, &places, &first], 0); // [3B]
        Ok(match fetched {
            Some(raw) => own.stack(&self.qformer.image_context(&self.image_norm.forward(&raw))).select(&rows),
            None => own.select(&rows),
        })
    }

    /// Spec 3.2: the pair itself, the text with a hard image, the image with a hard text.
    fn itm(&self, own_text: &TextInput, hard: &Hard, train: bool) -> Itm {
        let wide = own_text.widened(hard.texts.ids.size()[1]);
        let text = TextInput::stack(&[&wide, &wide, &hard.texts]); // [3B, T']
        let packing = Packing::new(&text.mask);
        let queries = self.qformer.encode_jointly(&text, &packing, &hard.images, train);
        let logits = self.match_logits(&queries);
        let ones = Tensor::ones([own_text.ids.size()[0]], (Kind::Int64, logits.device()));
        let zeros = ones.zeros_like();
        let labels = Tensor::cat(&[&ones, &zeros, &zeros], 0);
        Itm {
            loss: logits.cross_entropy_for_logits(&labels),
            accuracy: logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Float).mean(Kind::Float),
            query_output: queries,
            logits,
        }
    }

    /// Query states `[R, Q, D]` > class logits, mean over queries, `[R, 2]`.
    fn match_logits(&self, queries: &Tensor) -> Tensor {
        // The head is linear: the mean of its outputs is its output of the mean, here in fp32 whatever autocast says.
        let mean = queries.to_kind(Kind::Float).mean_dim([1i64].as_slice(), false, Kind::Float); // [R, D]
        torch_bridge::autocast(queries.device(), None, || self.itm_head.forward(&mean))
    }

    /// Spec 3.3. The last token of a text predicts nothing and is seen by nobody: it is left out.
    fn itg(&self, text: &TextInput, cache: &QueryCache, train: bool) -> Lm {
        let last = text.ids.size()[1] - 1;
        let read = TextInput { ids: text.ids.narrow(1, 0, last), mask: text.mask.narrow(1, 1, last) };
        let packing = Packing::new(&read.mask);
        let states = self.qformer.decode_text(&read, &packing, cache, train);
        let logits = self.qformer.lm_logits(&states).to_kind(Kind::Float);
        let labels = packing.pack(&text.ids.narrow(1, 1, last));
        let tokens = packing.tokens();
        let _ = labels.narrow(0, tokens, labels.size()[0] - tokens).fill_(NO_LABEL);
        Lm { states, logits, labels, tokens }
    }

    /// What ITG's sum over the tokens of `own` is divided by; `all` are the texts of all ranks.
    fn itg_tokens(&self, own: &TextInput, all: &TextInput, world_size: usize) -> f64 {
        // Each text has one token that is no target.
        let scored = |texts: &TextInput| (count(&texts.mask) - texts.mask.size()[0]) as f64;
        match self.config.itg_weighting {
            ItgWeighting::RankTokens => scored(own),
            // Ranks average their losses: a rank's share is scaled by W.
            ItgWeighting::GlobalTokens => scored(all) / world_size as f64,
        }
    }

    /// Images (`[B, P, V]`, raw) ready for [`Stage1::itm_scores`] and for comparison with [`Stage1::encode_texts`].
    #[must_use]
    pub fn encode_images(&self, features: &Tensor) -> EncodedImages {
        no_grad(|| {
            let context = self.qformer.image_context(&self.image_norm.forward(features));
            let (queries, _) = self.qformer.encode_queries(&context, false);
            EncodedImages { projections: self.image_feats(&queries), context }
        })
    }

    /// Normalised projections of texts, `[N, E]`.
    pub fn encode_texts(&self, texts: &TextInput) -> Tensor {
        no_grad(|| {
            let packing = Packing::new(&texts.mask);
            let states = self.qformer.encode_text(texts, &packing, false);
            self.text_feats(&states, &packing)
        })
    }

    /// Logit of "they match", mean over queries, `[R]`, of pairs (image `rows[i]`, text `i`); spec 7.6.
    pub fn itm_scores(&self, images: &EncodedImages, rows: &Tensor, texts: &TextInput) -> Tensor {
        no_grad(|| {
            let packing = Packing::new(&texts.mask);
            let context = images.context.select(rows);
            let queries = self.qformer.encode_jointly(texts, &packing, &context, false);
            self.match_logits(&queries).select(1, 1)
        })
    }
}

/// What comes before the losses of a micro-batch.
struct Embedded {
    /// `[B, P, V]`.
    image_embeds: Tensor,
    images: ImageContext,
    /// `[B, Q, D]`.
    query_output: Tensor,
    cache: QueryCache,
    packing: Packing,
    /// Packed.
    text_states: Tensor,
    /// `[B, Q, E]`.
    image_feats: Tensor,
    /// `[B, E]`.
    text_feats: Tensor,
}

/// What ITM pairs the own texts with.
struct Hard {
    /// Of all `3B` pairs.
    images: ImageContext,
    /// The text drawn for each image, `[B, T']`, as wide as the longest of all ranks.
    texts: TextInput,
}

struct Itm {
    loss: Tensor,
    accuracy: Tensor,
    query_output: Tensor,
    logits: Tensor,
}

struct Lm {
    states: Tensor,
    logits: Tensor,
    labels: Tensor,
    /// Rows that are scored; those behind them are fillers.
    tokens: i64,
}

impl Lm {
    /// Of the smoothed cross entropies of all tokens.
    fn sum(&self) -> Tensor {
        let how = (Reduction::Sum, NO_LABEL, LABEL_SMOOTHING);
        self.logits.cross_entropy_loss::<Tensor>(&self.labels, None, how.0, how.1, how.2)
    }
}

/// Unit length over the last dimension, in fp32.
fn normalise(x: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Float);
    let norm = x.norm_scalaropt_dim(2, [-1i64].as_slice(), true).clamp_min(1e-12);
    x / norm
}
