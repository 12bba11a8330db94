//! A language model's tokenizer, from the files that its folder holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::error::DataError;
use crate::tokenizer::encode;

/// Everything in one file, as today's programs write it.
const WHOLE: &str = "tokenizer.json";
/// GPT-2's byte-level BPE in two files, as OPT's folders have it.
const BPE_FILES: [&str; 2] = ["vocab.json", "merges.txt"];
/// Tokens added to it, where there are any: `{"token": id}`.
const ADDED: &str = "added_tokens.json";
/// What stands for no text in vocabularies of GPT-2's kind.
const SPECIAL: [&str; 6] = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>"];

/// A language model's tokenizer.
#[derive(Debug, Clone)]
pub struct LmTokenizer {
    inner: Inner,
    path: String,
}

impl LmTokenizer {
    /// Reads a folder's `tokenizer.json`, or else `vocab.json` and `merges.txt` (GPT-2's, OPT's). A post-processor is not
    /// used: the caller frames texts. Nor are a length or a padding that the file may ask for.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for a folder without these files, or with one that is none of a tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Self, DataError> {
        let name = folder.display().to_string();
        let failed = |problem: String| DataError::Tokenizer { path: name.clone(), problem };
        let files = Self::files(folder);
        let inner = match files.as_slice() {
            [whole] => Inner::from_file(whole).map_err(|error| error.to_string()),
            [vocabulary, merges, added @ ..] => byte_level(vocabulary, merges, added.first()),
            [] => Err("neither tokenizer.json nor vocab.json with merges.txt is here; where there is only a \
                       spiece.model, transformers makes the former: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                .to_owned()),
        };
        let mut inner = inner.map_err(failed)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        Ok(Self { inner, path: name })
    }

    /// The files of a folder that say how text becomes ids; none where it has no tokenizer.
    #[must_use]
    pub fn files(folder: &Path) -> Vec<PathBuf> {
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        match (there(WHOLE), BPE_FILES.map(there)) {
            (Some(whole), _) => vec![whole],
            (None, [Some(vocabulary), Some(merges)]) => {
                [vocabulary, merges].into_iter().chain(there(ADDED)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Ids of the bare text: neither framed nor cut.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for a text that the tokenizer refuses.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>, DataError> {
        encode(&self.inner, &self.path, text)
    }

    /// Text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for ids that the tokenizer refuses.
    pub fn decode(&self, ids: &[i64]) -> Result<String, DataError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let failed = |error: tokenizers::Error| DataError::Tokenizer {
            path: self.path.clone(),
            problem: format!("decoding failed: {error}"),
        };
        self.inner.decode(&ids, true).map_err(failed)
    }
}

/// GPT-2's rules (Radford et al. 2019): bytes as letters, words with the space before them, no space put in front.
fn byte_level(vocabulary: &Path, merges: &Path, added: Option<&PathBuf>) -> Result<Inner, String> {
    let name = |path: &Path| path.display().to_string();
    let said = |error: tokenizers::Error| error.to_string();
    let model = BPE::from_file(&name(vocabulary), &name(merges)).build().map_err(said)?;
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let is_there = |token: &&&str| inner.token_to_id(token).is_some();
    let mut special: Vec<String> = SPECIAL.iter().filter(is_there).map(|token| (*token).to_owned()).collect();
    if let Some(added) = added {
        let text = fs::read_to_string(added).map_err(|error| format!("{}: {error}", name(added)))?;
        let tokens: BTreeMap<String, u32> =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", name(added)))?;
        let mut tokens: Vec<(u32, String)> = tokens.into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        special.extend(tokens.into_iter().map(|(_, token)| token));
    }
    let tokens: Vec<AddedToken> = special.into_iter().map(|token| AddedToken::from(token, true)).collect();
    inner.add_special_tokens(tokens).map_err(said)?;
    Ok(inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn opts_two_files_are_read_as_gpt2_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = r#"{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "c": 5, "t": 6, "Ġ": 7, "Ġa": 8,
            "Ċ": 9, "ca": 10, "cat": 11, "Ġcat": 12}"#;
        fs::write(folder.path().join("vocab.json"), vocabulary).unwrap();
        let merges = "#version: 0.2\nĠ a\nc a\nca t\nĠ cat\n";
        fs::write(folder.path().join("merges.txt"), merges).unwrap();
        let tokenizer = LmTokenizer::from_folder(folder.path()).unwrap();
        let ids = |text: &str| tokenizer.encode_plain(text).unwrap();
        assert_eq!(ids("a cat\n"), [4, 12, 9], "no space is put in front, and no </s>");
        assert_eq!(ids("cat</s>"), [11, 2], "a special token by its name");
        assert_eq!(tokenizer.decode(&[2, 8, 12, 9, 2, 1]).unwrap(), " a cat\n");
        fs::write(folder.path().join("added_tokens.json"), r#"{"<image>": 13}"#).unwrap();
        let tokenizer = LmTokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode_plain("<image>a").unwrap(), [13, 4]);
        fs::write(folder.path().join("merges.txt"), "Ġ zebra\n").unwrap();
        LmTokenizer::from_folder(folder.path()).unwrap_err();
    }

    #[test]
    fn a_length_and_a_padding_of_the_file_are_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let json = r#"{
            "version": "1.0", "normalizer": null, "post_processor": null, "decoder": null, "added_tokens": [],
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "?"},
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"?": 0, "a": 1}, "unk_token": "?"}
        }"#;
        fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = LmTokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode_plain("a a a").unwrap(), [1, 1, 1]);
    }

    #[test]
    fn a_folder_without_a_tokenizer_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("spiece.model"), "x").unwrap();
        let error = LmTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("save_pretrained"), "{error}");
    }
}
