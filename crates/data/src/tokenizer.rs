//! Texts become token ids: BERT's WordPiece for the Q-Former. Language models have [`crate::lm_tokenizer`].

use std::path::Path;

use tokenizers::models::wordpiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::error::DataError;

/// Tokens around a text: `[CLS]` and `[SEP]`.
const FRAME: usize = 2;

/// Token ids of some texts, right-padded to one width.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextBatch {
    /// `[rows, cols]`
    pub ids: Vec<i64>,
    /// `[rows, cols]`, 1 = token, 0 = padding.
    pub mask: Vec<i64>,
    /// Number of texts.
    pub rows: usize,
    /// Tokens a row, padding included.
    pub cols: usize,
}

impl TextBatch {
    fn new(texts: &[Vec<i64>], cols: usize, pad_id: i64) -> Self {
        let mut batch = Self { rows: texts.len(), cols, ..Self::default() };
        for ids in texts {
            let padding = cols - ids.len();
            batch.ids.extend(ids);
            batch.ids.extend(std::iter::repeat_n(pad_id, padding));
            batch.mask.extend(std::iter::repeat_n(1, ids.len()));
            batch.mask.extend(std::iter::repeat_n(0, padding));
        }
        batch
    }

    fn tight(texts: &[Vec<i64>], pad_id: i64) -> Self {
        Self::new(texts, texts.iter().map(Vec::len).max().unwrap_or(0), pad_id)
    }
}

/// BERT's uncased WordPiece as LAVIS uses it: `[CLS] tokens [SEP]`, with `[DEC]` as one more id.
///
/// The rules are those of transformers' slow `BertTokenizer`: special tokens in the raw text are recognised, the
/// rest is cleaned, lower-cased, stripped of accents and split at white space, punctuation and CJK characters; a
/// word of more than 100 characters, or with no split into pieces, is `[UNK]`.
#[derive(Debug, Clone)]
pub struct WordPiece {
    inner: Inner,
    path: String,
    special: WordPieceIds,
}

/// Ids of the special tokens: looked up, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordPieceIds {
    /// `[PAD]`
    pub pad: i64,
    /// `[UNK]`
    pub unk: i64,
    /// `[CLS]`, the first token of a text.
    pub cls: i64,
    /// `[SEP]`, the last token of a text.
    pub sep: i64,
    /// `[MASK]`, where the vocabulary has one.
    pub mask: Option<i64>,
    /// `[DEC]`, the first token of a text to be generated (LAVIS's `bos`); the last id unless the vocabulary has it.
    pub bos: i64,
}

impl WordPiece {
    /// Reads a `vocab.txt`: one token a line, the line number is the id; `[DEC]` is appended.
    pub fn from_vocab(path: &Path) -> Result<Self, DataError> {
        let problem = |problem: String| DataError::Tokenizer { path: path.display().to_string(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
        // Only line ends are cut: a token may be made of other white space.
        let lines = text.split_terminator('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        // An empty one of the crate's own maps, whose type it does not export.
        let mut vocab = wordpiece::WordPiece::read_bytes(b"").map_err(|error| problem(error.to_string()))?;
        vocab.extend(lines.zip(0..).map(|(token, id)| (token.to_owned(), id)));
        let builder = wordpiece::WordPiece::builder().vocab(vocab);
        let model = builder.build().map_err(|error| problem(error.to_string()))?;
        let mut inner = Inner::new(model);
        let normalizer = BertNormalizer::new(true, true, None, true);
        inner.with_normalizer(Some(normalizer)).map_err(|error| problem(error.to_string()))?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        let find = |inner: &Inner, token: &str| inner.token_to_id(token).map(i64::from);
        let needed = |inner: &Inner, token: &str| {
            find(inner, token).ok_or_else(|| problem(format!("the vocabulary has no {token}")))
        };
        let (pad, unk) = (needed(&inner, "[PAD]")?, needed(&inner, "[UNK]")?);
        let (cls, sep) = (needed(&inner, "[CLS]")?, needed(&inner, "[SEP]")?);
        let mask = find(&inner, "[MASK]");
        let mut names = vec!["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"];
        names.extend(mask.map(|_| "[MASK]"));
        let tokens = names.into_iter().map(|name| AddedToken::from(name, true));
        inner.add_special_tokens(tokens).map_err(|error| problem(error.to_string()))?;
        let special = WordPieceIds { pad, unk, cls, sep, mask, bos: needed(&inner, "[DEC]")? };
        Ok(Self { inner, path: path.display().to_string(), special })
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> WordPieceIds {
        self.special
    }

    /// Number of ids, `[DEC]` included: the height of the embedding table.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// `[CLS] tokens [SEP]`, cut to `max_len` (at least 2) with the `[SEP]` kept, padded to exactly `max_len`.
    pub fn encode(&self, texts: &[String], max_len: usize) -> Result<TextBatch, DataError> {
        Ok(TextBatch::new(&self.rows(texts, max_len)?, max_len, self.special.pad))
    }

    /// As [`WordPiece::encode`], padded to the longest of these texts only.
    pub fn encode_tight(&self, texts: &[String], max_len: usize) -> Result<TextBatch, DataError> {
        Ok(TextBatch::tight(&self.rows(texts, max_len)?, self.special.pad))
    }

    fn rows(&self, texts: &[String], max_len: usize) -> Result<Vec<Vec<i64>>, DataError> {
        check_max_len(max_len)?;
        let row = |text: &String| {
            let mut ids = vec![self.special.cls];
            ids.extend(encode(&self.inner, &self.path, text)?.into_iter().take(max_len - FRAME));
            ids.push(self.special.sep);
            Ok(ids)
        };
        texts.iter().map(row).collect()
    }

    /// Text of `ids` without special tokens, spaces before punctuation closed as transformers does.
    pub fn decode(&self, ids: &[i64]) -> String {
        let special = self.special;
        let skipped = [special.pad, special.unk, special.cls, special.sep, special.bos];
        let mut text = String::new();
        for &id in ids.iter().filter(|id| !skipped.contains(id) && Some(**id) != special.mask) {
            let token = u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id)).unwrap_or_default();
            match token.strip_prefix("##") {
                Some(piece) if !text.is_empty() => text.push_str(piece),
                _ => {
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(&token);
                }
            }
        }
        close_spaces(text.trim())
    }
}

/// `clean_up_tokenization` of transformers 4.26, which LAVIS decodes with. (The decoder in the `tokenizers` crate also makes " do not"
/// " don't".)
fn close_spaces(text: &str) -> String {
    const CLOSED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    CLOSED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Ids of the bare text: not framed, not cut.
pub(crate) fn encode(inner: &Inner, path: &str, text: &str) -> Result<Vec<i64>, DataError> {
    let failed = |error: tokenizers::Error| DataError::Tokenizer {
        path: path.to_owned(),
        problem: format!("encoding failed: {error}"),
    };
    let encoding = inner.encode_fast(text, false).map_err(failed)?;
    Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
}

fn check_max_len(max_len: usize) -> Result<(), DataError> {
    if max_len < FRAME {
        let problem = format!("{max_len} is less than the {FRAME} token(s) around a text");
        return Err(DataError::Config { key: "data.max_text_tokens".into(), problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::close_spaces;

    #[test]
    fn spaces_are_closed_as_the_peer_closes_them_and_no_word_is_changed() {
        assert_eq!(close_spaces("i do not , he is n't . it 's"), "i do not, he isn't. it's");
    }
}
