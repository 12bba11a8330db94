//! Stage 2: generative learning from a frozen language model (paper section 3.3; spec 4).
//!
//! The queries' states, projected to the language model's width, stand before the text as a soft visual prompt.

use std::rc::Rc;

use collectives::CommError;
use tch::nn::{self, Module, Path};
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::inputs::{LmText, Stage2Inputs, TextInput};
use crate::language::{self, GenerateOptions, Generated, LanguageModel, TextStates};
use crate::layers::LayerNorm;
use crate::qformer::{Qformer, QformerConfig, layer_norm, linear_of};
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
    /// The language model's last states: of a decoder-only model `[B, O + Q + X + T, L]` with X the prefix's columns, of an
    /// encoder-decoder its decoder's, `[B, T, L]`.
    pub hidden: Tensor,
}

/// What a picture is described behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Ids that the language model reads behind the image (T5: with its end of text); may be empty.
    pub ids: Vec<i64>,
    /// Ids that the repetition penalty counts beside the generated ones. transformers: a decoder-only model's image
    /// placeholders and prompt. LAVIS: none. The start of a T5's decoder is counted always.
    pub said: Vec<i64>,
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

    /// With another epsilon in the LayerNorm of the image features: LAVIS's is 1e-5 (the default here), Hugging Face's is
    /// its `vision_config.layer_norm_eps`.
    #[must_use]
    pub fn with_image_norm_eps(mut self, eps: f64) -> Self {
        self.image_norm.eps = eps;
        self
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
        let (before, mask) = self.before(&prompt, &text.prefix);
        let TextStates { all, predicting } = self.language_model.read(&before, &mask, text);
        // The head, the widest matrix of all, runs only on the states that predict something.
        let predicting = predicting.flatten(0, 1);
        let labels = text.labels.reshape([-1]);
        let scored = labels.ne(LmText::IGNORED).nonzero().view([-1]);
        let logits = self.language_model.logits(&predicting.index_select(0, &scored)).to_kind(Kind::Float);
        let targets = labels.index_select(0, &scored);
        let loss = logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::Mean, LmText::IGNORED, 0.0);
        (loss, scored.size()[0], Stage2Trace { image_embeds, query_output, prompt, hidden: all })
    }

    /// Soft prompt and words, `[B, O + Q + X, L]`, and which of them are no padding.
    fn before(&self, prompt: &Tensor, words: &TextInput) -> (Tensor, Tensor) {
        let [batch, columns, _] = crate::layers::dims(prompt);
        let ones = words.mask.new_ones([batch, columns], (Kind::Int64, words.mask.device()));
        let embeds = Tensor::cat(&[prompt, &self.language_model.embed(&words.ids)], 1);
        (embeds, Tensor::cat(&[&ones, &words.mask], 1))
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

    /// Texts about images (`[B, P, V]`, raw), one prompt each: for each image what the strategy returns, best first.
    /// `options` are such as [`GenerateOptions::check`] lets pass.
    #[must_use]
    pub fn generate(
        &self,
        features: &Tensor,
        prompts: &[Prompt],
        options: &GenerateOptions,
    ) -> Vec<Vec<Generated>> {
        no_grad(|| {
            let (soft, ..) = self.soft_prompt(features, false);
            let rows: Vec<Vec<i64>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
            let words = TextInput::padded(&rows, 0).to_device(soft.device());
            let (before, mask) = self.before(&soft, &words);
            let start = self.language_model.decoder_start();
            let said = |prompt: &Prompt| prompt.said.iter().copied().chain(start).collect();
            let said: Vec<Vec<i64>> = prompts.iter().map(said).collect();
            language::generate(&mut self.language_model.begin(&before, &mask), &said, options)
        })
    }

    /// The best caption of each image (`[B, P, V]`, raw) behind one prompt: its new token ids without the end. `options` as for
    /// [`Stage2::generate`].
    #[must_use]
    pub fn caption(&self, features: &Tensor, prompt: &[i64], options: &GenerateOptions) -> Vec<Vec<i64>> {
        let prompt = Prompt { ids: prompt.to_vec(), said: Vec::new() };
        let prompts = vec![prompt; features.size()[0] as usize];
        let texts = self.generate(features, &prompts, options).into_iter();
        texts.map(|texts| texts.into_iter().next().map(|best| best.ids).unwrap_or_default()).collect()
    }

    /// Of a language model that ranks hold together: [`LanguageModel::accompany`].
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn accompany(&self) -> Result<(), CommError> {
        self.language_model.accompany()
    }

    /// Of a language model that ranks hold together, to be asked behind each pass: [`LanguageModel::check_peers`].
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone: what the pass gave is of no use.
    pub fn check_peers(&self) -> Result<(), CommError> {
        self.language_model.check_peers()
    }

    /// Scores `[N, vocab]` of the language model's states, for comparison with reference cases.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.language_model.logits(hidden)
    }
}
