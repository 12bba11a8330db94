//! Which pairs meet in which step, turned into tensors: a pure function of (seed, step, rank).

use data::{LmTokenizer, Order, Rng, Stream, TextBatch, WordPiece, rank_slice};
use model::{LmText, TextInput};
use tch::{Device, Tensor};

use crate::corpus::Corpus;
use crate::error::TrainError;
use crate::plan::StagePlan;
use crate::stage::random_name;
use crate::state::TrainState;

/// One forward's input on the device.
pub struct MicroBatch {
    /// Raw features of the frozen encoder, `[B, P, V]`.
    pub features: Tensor,
    /// The texts, as this stage reads them.
    pub text: StageText,
    /// Which concept each pair shows, `[B]` (stage 1, where the config groups pairs by caption).
    pub concepts: Option<Tensor>,
    /// Numbers in `[0, 1)` for the draw of hard negatives, `[2, B]` (stage 1).
    pub uniforms: Tensor,
    /// Seed of this forward's dropout.
    pub dropout_seed: i64,
}

/// The texts of a micro-batch, tokenised for the model that reads them.
pub enum StageText {
    /// WordPiece for the Q-Former.
    One(TextInput),
    /// Labels of the language model.
    Two(LmText),
}

/// Turns texts into a stage's tokens.
pub enum StageTokenizer<'a> {
    /// Stage 1: WordPiece, at most so many tokens.
    One(&'a WordPiece, usize),
    /// Stage 2: the language model's own, with the prompt's ids in front.
    Two(&'a LmCaptions),
}

/// How the language model reads a caption: opening, image, prompt, caption, end of text.
pub struct LmCaptions {
    /// The model's tokenizer.
    pub tokenizer: LmTokenizer,
    /// Ids of what is read before the image; may be empty.
    pub opening: Vec<i64>,
    /// Ids of the prompt, between image and caption; may be empty.
    pub prompt: Vec<i64>,
    /// Ends every caption.
    pub eos: i64,
    /// Longest caption in tokens, the end included; a longer one is cut and has no end.
    pub max_tokens: usize,
}

/// The training pairs of one phase, for one rank.
pub struct PairSource<'a> {
    /// The training split.
    pub corpus: &'a Corpus,
    /// Its order.
    pub order: Order,
    /// What a training text is made of.
    pub texts: &'a data::TextPolicy,
    /// Turns texts into ids.
    pub tokenizer: StageTokenizer<'a>,
    /// Pairs with one caption are one concept.
    pub by_caption: bool,
    /// The run's seed.
    pub seed: u64,
    /// This rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
    /// Where the tensors go.
    pub device: Device,
}

impl PairSource<'_> {
    /// The micro-batches of the step that `state` stands before.
    ///
    /// # Errors
    /// [`TrainError::Read`] when cached features cannot be read.
    pub fn next_step(&self, plan: &StagePlan, state: &TrainState) -> Result<Vec<MicroBatch>, TrainError> {
        let per_pass = plan.contrast_batch;
        (0..plan.grad_accum_steps)
            .map(|micro_step| {
                let own = rank_slice(per_pass, self.rank, self.world_size);
                let start = state.pairs_seen + (micro_step * per_pass + own.start) as u64;
                self.micro_batch(plan, state.step, micro_step, start, own.len())
            })
            .collect()
    }

    fn micro_batch(
        &self,
        plan: &StagePlan,
        step: u64,
        micro_step: usize,
        position: u64,
        count: usize,
    ) -> Result<MicroBatch, TrainError> {
        let samples = self.order.slice(position, count);
        let mut rows = Vec::with_capacity(count);
        let mut texts = Vec::with_capacity(count);
        for sample in &samples {
            let id = self.corpus.examples[sample.index].sample as u64;
            let view =
                Rng::new(self.seed, Stream::View, &[id, sample.epoch]).below(self.corpus.views() as u64);
            rows.push((sample.index, view as usize));
            let captions = &self.corpus.examples[sample.index].captions;
            let text = self.texts.draw(captions, self.seed, id, sample.epoch);
            texts.push(data::blip_caption(&text, data::MAX_WORDS));
        }
        let dropout_name = [random_name(plan.phase), step, micro_step as u64, self.rank as u64];
        let dropout = Rng::new(self.seed, Stream::Dropout, &dropout_name).bits();
        Ok(MicroBatch {
            features: self.corpus.features(&rows)?.to_device(self.device),
            text: self.tokenizer.tokenise(&texts, self.device)?,
            concepts: self.by_caption.then(|| self.concepts(&rows)),
            uniforms: self.uniforms(position, count),
            // libtorch takes any 64 bits as a seed.
            dropout_seed: dropout.cast_signed(),
        })
    }

    /// A number for each example's caption: equal where the captions are.
    fn concepts(&self, rows: &[(usize, usize)]) -> Tensor {
        let number = |&(example, _): &(usize, usize)| {
            let digest = blake3::hash(self.corpus.examples[example].caption.as_bytes());
            digest.as_bytes()[..8].iter().fold(0i64, |number, &byte| (number << 8) | i64::from(byte))
        };
        let numbers: Vec<i64> = rows.iter().map(number).collect();
        Tensor::from_slice(&numbers).to_device(self.device)
    }

    /// Named by the pair's position in the whole run, so any world size draws the same.
    fn uniforms(&self, position: u64, count: usize) -> Tensor {
        let draw = |which: u64| {
            (0..count as u64)
                .map(move |i| Rng::new(self.seed, Stream::HardNegative, &[position + i, which]).uniform())
        };
        let values: Vec<f64> = draw(0).chain(draw(1)).collect();
        Tensor::from_slice(&values).view([2, count as i64]).to_device(self.device)
    }
}

impl StageTokenizer<'_> {
    fn tokenise(&self, texts: &[String], device: Device) -> Result<StageText, TrainError> {
        match self {
            Self::One(tokenizer, max_tokens) => {
                let batch = tokenizer.encode_tight(texts, *max_tokens)?;
                let all: Vec<usize> = (0..texts.len()).collect();
                Ok(StageText::One(text_input(&batch, &all).to_device(device)))
            }
            Self::Two(captions) => Ok(StageText::Two(captions.tokenise(texts)?.to_device(device))),
        }
    }
}

impl LmCaptions {
    /// Prompt, caption and end of text, padded on the right to the longest. Behind a caption that was cut there is no end:
    /// the model is not to learn that captions end in the middle.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn tokenise(&self, texts: &[String]) -> Result<LmText, TrainError> {
        let row = |text: &String| -> Result<Vec<i64>, TrainError> {
            let mut ids = self.tokenizer.encode_plain(text)?;
            ids.push(self.eos);
            ids.truncate(self.max_tokens);
            Ok(self.prompt.iter().copied().chain(ids).collect())
        };
        let rows = texts.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(LmText::padded(&rows, self.prompt.len(), self.eos))
    }

    /// The caption that generated ids stand for.
    ///
    /// # Errors
    /// [`TrainError::Data`] for ids that the tokenizer refuses.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TrainError> {
        Ok(self.tokenizer.decode(ids)?.trim().to_owned())
    }
}

/// Some rows of a tokenised batch, no wider than the longest of them.
pub(crate) fn text_input(batch: &TextBatch, rows: &[usize]) -> TextInput {
    let row = |values: &[i64], i: usize| values[i * batch.cols..(i + 1) * batch.cols].to_vec();
    let lengths = rows.iter().map(|&i| row(&batch.mask, i).iter().sum::<i64>());
    let width = lengths.max().unwrap_or(0);
    let shape = [rows.len() as i64, batch.cols as i64];
    let gather = |values: &[i64]| {
        let flat: Vec<i64> = rows.iter().flat_map(|&i| row(values, i)).collect();
        Tensor::from_slice(&flat).view(shape).narrow(1, 0, width).contiguous()
    };
    TextInput { ids: gather(&batch.ids), mask: gather(&batch.mask) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a word: `<end>` is 0, `a` to `d` are 1 to 4.
    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "Whitespace" }, "added_tokens": [],
        "model": { "type": "WordLevel", "vocab": {"<end>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "unk_token": "<end>" }
    }"#;

    #[test]
    fn a_caption_that_was_cut_has_no_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, TOKENIZER).expect("a file");
        let tokenizer = LmTokenizer::bare(&path).expect("a tokenizer");
        let captions = LmCaptions { tokenizer, opening: vec![], prompt: vec![4], eos: 0, max_tokens: 3 };
        let text = captions.tokenise(&["a b".into(), "a b c".into(), "a".into()]).expect("tokens");
        let labels: Vec<i64> = Vec::try_from(text.labels.view([-1])).expect("labels");
        let ignored = LmText::IGNORED;
        assert_eq!(labels, [[ignored, 1, 2, 0], [ignored, 1, 2, 3], [ignored, 1, 0, ignored]].concat());
    }
}
