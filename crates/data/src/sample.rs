//! The bytes of one key: the image as it is stored, the captions as text.

use std::sync::Arc;

use crate::error::{SampleError, SkipReason};
use crate::index::{Index, SampleEntry, Span};

/// A caption file above this size is no caption.
pub const MAX_CAPTION_BYTES: u64 = 1 << 20;

/// Captions of one sample, and words that go with the picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captions {
    /// At least one; white space at the ends as stored.
    pub captions: Vec<String>,
    /// `tags` of the `.json`: synonyms, categories; may be empty.
    pub tags: Vec<String>,
}

/// One sample as it lies in its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Name of the sample.
    pub key: Box<str>,
    /// The image file's bytes.
    pub image: Vec<u8>,
    /// What is said about it.
    pub captions: Captions,
}

impl Index {
    /// Image and captions of sample `number`. The caption is read first: it is cheap, and decides as often.
    pub fn read(&self, number: usize) -> Result<Sample, SampleError> {
        let captions = self.read_captions(number)?;
        let image = self.read_image(number)?;
        Ok(Sample { key: self.entries()[number].key.clone(), image, captions })
    }

    /// The image file's bytes of sample `number`.
    pub fn read_image(&self, number: usize) -> Result<Vec<u8>, SampleError> {
        let entry = &self.entries()[number];
        self.read_span(entry.shard, entry.image)
            .map_err(|_| self.sample_error(number, SkipReason::Unreadable))
    }

    /// The captions of sample `number`, without touching its image.
    ///
    /// `.json` with a `caption` (a string or a list of strings) wins, because it can hold several captions and
    /// `tags`; else the `.txt` is the caption. A broken `.json` beside a `.txt` costs nothing but its tags.
    pub fn read_captions(&self, number: usize) -> Result<Captions, SampleError> {
        self.captions(&self.entries()[number]).map_err(|reason| self.sample_error(number, reason))
    }

    /// Names sample `number` as skipped for `reason`.
    pub fn sample_error(&self, number: usize, reason: SkipReason) -> SampleError {
        let entry = &self.entries()[number];
        SampleError { shard: Arc::clone(self.shard(entry.shard)), key: entry.key.to_string(), reason }
    }

    fn captions(&self, entry: &SampleEntry) -> Result<Captions, SkipReason> {
        let bytes = |span: Span| {
            if span.size > MAX_CAPTION_BYTES {
                return Err(SkipReason::CaptionTooLarge);
            }
            self.read_span(entry.shard, span).map_err(|_| SkipReason::Unreadable)
        };
        let from_json = entry.json.map(|span| bytes(span).and_then(|bytes| parse_json(&bytes)));
        let mut found = match (from_json, entry.text) {
            (Some(Ok(found)), _) if !found.captions.is_empty() => found,
            (Some(Err(reason)), None) => return Err(reason),
            (Some(Ok(_)), None) => return Err(SkipReason::CaptionJsonInvalid),
            (from_json, Some(span)) => {
                let tags = from_json.and_then(Result::ok).unwrap_or_default().tags;
                Captions { captions: vec![parse_text(bytes(span)?)?], tags }
            }
            (None, None) => return Err(SkipReason::CaptionMissing),
        };
        found.captions.retain(|caption| !caption.trim().is_empty());
        if found.captions.is_empty() { Err(SkipReason::CaptionEmpty) } else { Ok(found) }
    }
}

/// A `.txt` caption: UTF-8; a byte order mark at the start is no part of it.
pub fn parse_text(bytes: Vec<u8>) -> Result<String, SkipReason> {
    let mut text = String::from_utf8(bytes).map_err(|_| SkipReason::CaptionNotUtf8)?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// `caption` and `tags` of a `.json`; no captions when the key is absent or null.
pub fn parse_json(bytes: &[u8]) -> Result<Captions, SkipReason> {
    #[derive(serde::Deserialize)]
    struct Fields {
        caption: Option<OneOrMany>,
        tags: Option<OneOrMany>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let list = |field: Option<OneOrMany>| match field {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    let fields: Fields = serde_json::from_slice(bytes).map_err(|_| SkipReason::CaptionJsonInvalid)?;
    Ok(Captions { captions: list(fields.caption), tags: list(fields.tags) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_takes_one_or_many() {
        let one = parse_json(br#"{"caption": "a cat", "tags": ["pet"], "other": {"deep": 1}}"#).unwrap();
        assert_eq!((one.captions, one.tags), (vec!["a cat".to_owned()], vec!["pet".to_owned()]));
        assert_eq!(parse_json(br#"{"caption": ["a", "b"]}"#).unwrap().captions, ["a", "b"]);
        assert_eq!(parse_json(br#"{"url": "x"}"#).unwrap(), Captions::default());
        assert_eq!(parse_json(br#"{"caption": 3}"#), Err(SkipReason::CaptionJsonInvalid));
        assert_eq!(parse_json(b"{"), Err(SkipReason::CaptionJsonInvalid));
    }

    #[test]
    fn text_is_utf8_without_its_mark() {
        assert_eq!(parse_text("\u{feff}a cat\n".into()).unwrap(), "a cat\n");
        assert_eq!(parse_text(vec![0xff, 0xfe, 0x41]), Err(SkipReason::CaptionNotUtf8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_json(&bytes);
            let _ = parse_text(bytes);
        }
    }
}
