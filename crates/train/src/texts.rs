//! Texts as the model of a stage reads them.

use data::{LmTokenizer, TextBatch, WordPiece};
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

impl StageTokenizer<'_> {
    /// Ids and masks of `texts` on `device`.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn tokenise(&self, texts: &[String], device: Device) -> Result<StageText, TrainError> {
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
