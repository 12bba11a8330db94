//! Stage 2: generative learning from a frozen language model (paper section 3.3; spec 4).
//!
//! The queries' states, projected to the language model's width, stand before the text as a soft visual prompt.

use std::rc::Rc;

use tch::nn::{self, Module, Path};
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::inputs::{LmText, Stage2Inputs};
use crate::language::{self, LanguageModel};
use crate::qformer::{LayerNorm, Qformer, QformerConfig, layer_norm, linear_of};
use crate::stage1::IMAGE_LAYER_NORM_EPS;

/// The trainable part (image LayerNorm, queries, Q-Former without text branch, projection) and the frozen model.
pub struct Stage2 {
    image_norm: LayerNorm,
    qformer: Qformer,
    language_projection: nn::Linear,
    language_model: Rc<LanguageModel>,
    /// Ids of what the language model reads before the image, `[O]`; may be empty.
    opening: Tensor,
}

/// What the loss was computed from, for comparison with reference cases.
#[derive(Debug)]
pub struct Stage2Trace {
    /// Image features behind their LayerNorm, `[B, P, V]`.
    pub image_embeds: Tensor,
    /// Query states, `[B, Q, D]`.
    pub query_output: Tensor,
    /// Embedded opening and soft prompt, `[B, O + Q, L]` with L the language model's width.
    pub prompt: Tensor,
    /// The language model's last states, `[B, O + Q + T, L]`.
    pub hidden: Tensor,
}

impl Stage2 {
    /// Fresh weights under Hugging Face's names (`Blip2ForConditionalGeneration`); `config.text` must be `None`. `opening`: ids
    /// of what the language model reads before the image (LAVIS: nothing; a chat model: the start of the user's turn).
    #[must_use]
    pub fn new(p: &Path, config: &QformerConfig, language_model: Rc<LanguageModel>, opening: &[i64]) -> Self {
        let to = language_model.hidden_size();
        // A query's state has about unit variance: the soft prompt starts as large as words are. With the usual
        // initialisation it is several times larger, and a small language model does not find back from that.
        let stdev = language_model.word_rms() / (config.hidden_size as f64).sqrt();
        Self {
            image_norm: layer_norm(
                p / "vision_model" / "post_layernorm",
                config.encoder_hidden_size,
                IMAGE_LAYER_NORM_EPS,
            ),
            qformer: Qformer::new(p, config),
            language_projection: linear_of(p / "language_projection", config.hidden_size, to, stdev),
            language_model,
            opening: Tensor::from_slice(opening).to_device(p.device()),
        }
    }

    /// Mean cross entropy (nats) over this micro-batch's scored tokens, and how many they are.
    pub fn loss(&self, inputs: &Stage2Inputs, train: bool) -> (Tensor, i64) {
        let (loss, tokens, _) = self.forward(inputs, train);
        (loss, tokens)
    }

    /// [`Stage2::loss`], with what it was computed from.
    pub fn forward(&self, inputs: &Stage2Inputs, train: bool) -> (Tensor, i64, Stage2Trace) {
        let (prompt, image_embeds, query_output) = self.soft_prompt(&inputs.image, train);
        let text = &inputs.text;
        let before = prompt.size()[1];
        let words = self.language_model.embed(&text.ids);
        let embeds = Tensor::cat(&[&prompt, &words], 1); // [B, O + Q + T, L]
        let ones = text.mask.new_ones([prompt.size()[0], before], (Kind::Int64, text.mask.device()));
        let mask = Tensor::cat(&[&ones, &text.mask], 1);
        let hidden = self.language_model.forward(&embeds, &mask, None);
        // The state before a token predicts it: the last query's the first token of the text. The head, the widest
        // matrix of all, runs on those states only.
        let predicting = hidden.narrow(1, before - 1, text.ids.size()[1]).flatten(0, 1);
        let labels = text.labels.reshape([-1]);
        let scored = labels.ne(LmText::IGNORED).nonzero().view([-1]);
        let logits = self.language_model.logits(&predicting.index_select(0, &scored)).to_kind(Kind::Float);
        let targets = labels.index_select(0, &scored);
        let loss = logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::Mean, LmText::IGNORED, 0.0);
        (loss, scored.size()[0], Stage2Trace { image_embeds, query_output, prompt, hidden })
    }

    /// Raw features `[B, P, V]` > what stands before the text, `[B, O + Q, L]`, with the states on the way.
    fn soft_prompt(&self, features: &Tensor, train: bool) -> (Tensor, Tensor, Tensor) {
        let image = self.image_norm.forward(features);
        let context = self.qformer.image_context(&image);
        let (queries, _) = self.qformer.encode_queries(&context, train);
        let soft = self.language_projection.forward(&queries).to_kind(Kind::Float);
        let opening = self.language_model.embed(&self.opening.unsqueeze(0)); // [1, O, L]
        let opening = opening.expand([soft.size()[0], -1, -1], false);
        (Tensor::cat(&[&opening, &soft], 1), image, queries)
    }

    /// Greedy captions of images (`[B, P, V]`, raw): new token ids up to the first of `end`, which is not included.
    #[must_use]
    pub fn caption(
        &self,
        features: &Tensor,
        prompt: &[i64],
        max_new_tokens: usize,
        end: &[i64],
    ) -> Vec<Vec<i64>> {
        no_grad(|| {
            let (soft, ..) = self.soft_prompt(features, false);
            let batch = soft.size()[0];
            let ids = Tensor::from_slice(prompt).to_device(soft.device()).unsqueeze(0).repeat([batch, 1]);
            let words = self.language_model.embed(&ids); // [B, 0, L] without a prompt
            let embeds = Tensor::cat(&[&soft, &words], 1);
            let mask = Tensor::ones([batch, embeds.size()[1]], (Kind::Int64, embeds.device()));
            language::greedy(&self.language_model, &embeds, &mask, max_new_tokens, end)
        })
    }

    /// Scores `[N, vocab]` of the language model's states, for comparison with reference cases.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.language_model.logits(hidden)
    }
}
