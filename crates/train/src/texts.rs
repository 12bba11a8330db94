//! Texts as the model of a stage reads them.

use data::{LmTokenizer, PrefixSplit, Rng, Stream, TextBatch, TwoParts, WordPiece};
use model::{LmText, TextInput};
use tch::{Device, Tensor};

use crate::error::TrainError;

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

/// Names what is drawn for the texts of a micro-batch, so that any world size draws the same.
#[derive(Clone, Copy, Debug)]
pub struct TextDraws {
    /// The run's seed.
    pub seed: u64,
    /// Where the first pair stands in the phase.
    pub position: u64,
}

/// How the language model reads a caption. A decoder-only model: opening, image, prompt, caption, end of text. An
/// encoder-decoder: opening, image, prompt, first part, end of text in the encoder; second part, end of text from the decoder.
pub struct LmCaptions {
    /// The model's tokenizer.
    pub tokenizer: LmTokenizer,
    /// Ids of what is read before the image; may be empty.
    pub opening: Vec<i64>,
    /// Between image and caption; may be empty.
    pub prompt: LmPrompt,
    /// Ends every caption.
    pub eos: i64,
    /// Longest caption that is learnt, or part of one, in tokens; the end is counted, and so is a start token.
    pub max_tokens: usize,
    /// Longest caption that is generated, in tokens, the end included.
    pub max_new_tokens: usize,
    /// Where an encoder-decoder's captions are split; none for a decoder-only model, which says them whole.
    pub split: Option<PrefixSplit>,
}

/// What stands between image and caption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LmPrompt {
    /// As it stands before a caption: the two are tokenised together, for a word behind a space is another token.
    pub lead: String,
    /// Ids alone, behind `start`: what a caption is asked for with.
    pub ids: Vec<i64>,
    /// Begins every text, where the model's tokenizer has such a token (OPT's `</s>`).
    pub start: Option<i64>,
    /// So many tokens carry no loss.
    pub unscored: usize,
}

impl LmPrompt {
    /// A prompt that ends in a word is parted from the caption by a space; spaces at its end are not asked with.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn new(prompt: &str, tokenizer: &LmTokenizer, start: Option<i64>) -> Result<Self, TrainError> {
        let asked = prompt.trim_end_matches(' ');
        let is_parted = asked.is_empty() || asked.ends_with(char::is_whitespace);
        let ids: Vec<i64> = start.into_iter().chain(tokenizer.encode_plain(asked)?).collect();
        // LAVIS scores OPT's </s> where no prompt is set.
        let unscored = if asked.is_empty() { 0 } else { ids.len() };
        Ok(Self { lead: format!("{asked}{}", if is_parted { "" } else { " " }), ids, start, unscored })
    }
}

impl StageTokenizer<'_> {
    /// Ids and masks of `texts` on `device`.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn tokenise(
        &self,
        texts: &[String],
        draws: TextDraws,
        device: Device,
    ) -> Result<StageText, TrainError> {
        match self {
            Self::One(tokenizer, max_tokens) => {
                let batch = tokenizer.encode_tight(texts, *max_tokens)?;
                let all: Vec<usize> = (0..texts.len()).collect();
                Ok(StageText::One(text_input(&batch, &all).to_device(device)))
            }
            Self::Two(captions) => Ok(StageText::Two(captions.tokenise(texts, draws)?.to_device(device))),
        }
    }
}

impl LmCaptions {
    /// What the model reads and is scored on, padded on the right to the longest.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn tokenise(&self, texts: &[String], draws: TextDraws) -> Result<LmText, TrainError> {
        match self.split {
            None => self.whole(texts),
            Some(split) => self.in_two_parts(texts, split, draws),
        }
    }

    /// Prompt, caption and end of text. Behind a caption that was cut there is no end: the model is not to learn that
    /// captions end in the middle.
    fn whole(&self, texts: &[String]) -> Result<LmText, TrainError> {
        let LmPrompt { lead, ids: asked, start, unscored } = &self.prompt;
        let longest = asked.len() - start.iter().len() + self.max_tokens;
        let row = |text: &String| -> Result<Vec<i64>, TrainError> {
            let mut ids: Vec<i64> = start.iter().copied().collect();
            ids.extend(self.tokenizer.encode_plain(&format!("{lead}{text}"))?);
            ids.push(self.eos);
            ids.truncate(longest);
            Ok(ids)
        };
        let rows = texts.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(LmText::padded(&rows, *unscored, self.eos))
    }

    /// Prompt and first part for the encoder, second part for the decoder; both have their end, cut or not (LAVIS's
    /// `Blip2T5.forward`).
    fn in_two_parts(
        &self,
        texts: &[String],
        split: PrefixSplit,
        draws: TextDraws,
    ) -> Result<LmText, TrainError> {
        let (mut read, mut said) = (Vec::with_capacity(texts.len()), Vec::with_capacity(texts.len()));
        for (text, position) in texts.iter().zip(draws.position..) {
            let mut rng = Rng::new(draws.seed, Stream::PrefixSplit, &[position]);
            let TwoParts { prefix, suffix } = split.split(text, &self.tokenizer, &mut rng)?;
            read.push([self.prompt.ids.as_slice(), &self.ended(prefix)].concat());
            said.push(self.ended(suffix));
        }
        Ok(LmText::padded(&said, 0, self.eos).behind(TextInput::padded(&read, self.eos)))
    }

    /// With the end behind them, in front of which they are cut.
    fn ended(&self, mut ids: Vec<i64>) -> Vec<i64> {
        ids.truncate(self.max_tokens - 1);
        ids.push(self.eos);
        ids
    }

    /// Ids that stand behind a picture whose caption is asked for: the prompt, which an encoder reads with its end.
    #[must_use]
    pub fn question(&self) -> Vec<i64> {
        self.prompt.ids.iter().copied().chain(self.split.map(|_| self.eos)).collect()
    }

    /// The caption that generated ids stand for.
    ///
    /// # Errors
    /// [`TrainError::Data`] for ids that the tokenizer refuses.
    pub fn decode(&self, ids: &[i64]) -> Result<String, TrainError> {
        Ok(self.tokenizer.decode(ids)?.trim().to_owned())
    }
}

/// The one token of a line's end, which ends an OPT's captions instead of its end of text, as in LAVIS.
///
/// # Errors
/// [`TrainError::Data`] for a tokenizer that refuses it.
pub(crate) fn newline(tokenizer: &LmTokenizer) -> Result<Option<i64>, TrainError> {
    match tokenizer.encode_plain("\n")?[..] {
        [newline] => Ok(Some(newline)),
        _ => Ok(None),
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

    /// At most three tokens, behind the prompt `d`.
    fn captions(split: Option<PrefixSplit>) -> LmCaptions {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, TOKENIZER).expect("a file");
        let tokenizer = LmTokenizer::from_folder(dir.path()).expect("a tokenizer");
        let prompt = LmPrompt::new("d", &tokenizer, None).expect("ids");
        LmCaptions { tokenizer, opening: vec![], prompt, eos: 0, max_tokens: 3, max_new_tokens: 3, split }
    }

    fn tokenised(captions: &LmCaptions, texts: &[&str], position: u64) -> LmText {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        captions.tokenise(&texts, TextDraws { seed: 1, position }).expect("tokens")
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
        Vec::try_from(tensor).expect("two dimensions")
    }

    #[test]
    fn a_caption_that_was_cut_has_no_end() {
        let text = tokenised(&captions(None), &["a b", "a b c", "a"], 0);
        let ignored = LmText::IGNORED;
        assert_eq!(rows(&text.labels), [[ignored, 1, 2, 0], [ignored, 1, 2, 3], [ignored, 1, 0, ignored]]);
        assert_eq!(text.prefix.ids.size(), [3, 0]);
    }

    /// Words behind a space are tokens of their own, as in GPT-2's vocabulary; a lone space is 9.
    const SPACED: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": [],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": " ?[a-z]+|\\s" }, "behavior": "Isolated", "invert": false },
        "model": { "type": "WordLevel", "unk_token": "?",
                   "vocab": {"?": 0, "of": 1, "dog": 2, " dog": 3, " of": 4, "\n": 5, " ": 9} }
    }"#;

    #[test]
    fn a_prompt_and_its_caption_are_tokenised_together() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("tokenizer.json"), SPACED).expect("a file");
        let tokenizer = LmTokenizer::from_folder(dir.path()).expect("a tokenizer");
        let row = |prompt: &str, start: Option<i64>| {
            let prompt = LmPrompt::new(prompt, &tokenizer, start).expect("ids");
            let tokenizer = tokenizer.clone();
            let captions = LmCaptions {
                tokenizer,
                opening: vec![],
                prompt,
                eos: 5,
                max_tokens: 8,
                max_new_tokens: 8,
                split: None,
            };
            let text = tokenised(&captions, &["dog"], 0);
            (captions.question(), rows(&text.ids)[0].clone(), rows(&text.labels)[0].clone())
        };
        let ignored = LmText::IGNORED;
        // As LAVIS tokenises "a photo of a dog\n" behind </s>, whether the prompt is written with the space or without.
        let parted = (vec![7, 1], vec![7, 1, 3, 5], vec![ignored, ignored, 3, 5]);
        assert_eq!(row("of", Some(7)), parted);
        assert_eq!(row("of ", Some(7)), parted);
        assert_eq!(row("of\n", None), (vec![1, 5], vec![1, 5, 2, 5], vec![ignored, ignored, 2, 5]));
        assert_eq!(row("", Some(7)), (vec![7], vec![7, 2, 5], vec![7, 2, 5]));
    }

    #[test]
    fn an_encoder_reads_the_first_part_and_a_decoder_says_the_second() {
        for split in [PrefixSplit::Words, PrefixSplit::Tokens] {
            let captions = captions(Some(split));
            // Of two and three words the first is read, of one none.
            let text = tokenised(&captions, &["a b", "a", "c a b"], 0);
            assert_eq!(rows(&text.prefix.ids), [[4, 1, 0], [4, 0, 0], [4, 3, 0]], "{split:?}");
            assert_eq!(rows(&text.prefix.mask), [[1, 1, 1], [1, 1, 0], [1, 1, 1]]);
            let ignored = LmText::IGNORED;
            assert_eq!(rows(&text.labels), [[2, 0, ignored], [1, 0, ignored], [1, 2, 0]]);
            assert_eq!(rows(&text.mask), [[1, 1, 0], [1, 1, 0], [1, 1, 1]]);
            let cut = tokenised(&captions, &["a b c d a b c d"], 0);
            assert_eq!(cut.labels.size(), [1, 3]);
            assert_eq!(rows(&cut.labels)[0][2], 0, "the end is kept");
            assert!(cut.prefix.ids.size()[1] <= 4 && rows(&cut.prefix.ids)[0].ends_with(&[0]));
            assert_eq!(captions.question(), [4, 0]);
        }
        assert_eq!(captions(None).question(), [4]);
    }

    #[test]
    fn a_pair_is_split_by_its_place_in_the_phase_alone() {
        let captions = captions(Some(PrefixSplit::Words));
        let texts = ["a b c d"; 32];
        let read = |text: &LmText| -> Vec<i64> {
            rows(&text.prefix.mask).iter().map(|row| row.iter().sum()).collect()
        };
        let whole = read(&tokenised(&captions, &texts, 40));
        let (first, rest) = (tokenised(&captions, &texts[..5], 40), tokenised(&captions, &texts[5..], 45));
        let parts = [read(&first), read(&rest)].concat();
        assert_eq!(whole, parts, "however the pairs are dealt to ranks and micro-batches");
        assert_ne!(whole, read(&tokenised(&captions, &texts, 72)), "another epoch");
    }
}
