//! The bytes of one key: the image as it is stored, the captions as text.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{SampleError, SkipReason};
use crate::index::{Index, Span};

/// A caption file above this size is no caption.
pub const MAX_CAPTION_BYTES: u64 = 1 << 20;
/// An image file above this size is not read.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Members of one sample that lie no farther apart are read at once.
const MAX_GAP: u64 = 64 << 10;

/// Captions of one sample, and words that go with the picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captions {
    /// At least one; white space at the ends as stored.
    pub captions: Vec<String>,
    /// `tags` of the `.json`: synonyms, categories; may be empty.
    pub tags: Vec<String>,
    /// `image_id` of the `.json`, a number or a text: samples that have one in common show one picture (COCO).
    pub image_id: Option<String>,
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

/// One sample's bytes, as they lie in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSample<'a> {
    /// The image file.
    pub image: &'a [u8],
    /// The `.txt`.
    pub text: Option<&'a [u8]>,
    /// The `.json`.
    pub json: Option<&'a [u8]>,
}

/// Why the members of a sample give nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// They are what they are, on every rank and for ever.
    Bad(SkipReason),
    /// The disk gave no bytes, here and now; another rank may have read them.
    Disk(io::Error),
}

impl From<SkipReason> for Failed {
    fn from(reason: SkipReason) -> Self {
        Self::Bad(reason)
    }
}

/// Members of one sample: image, text, json. `None`: there is none, or it was not asked for.
pub(crate) type Members<'a> = [Option<Result<&'a [u8], SkipReason>>; 3];
/// Sizes above which a member is not read, and what is said then.
const LIMITS: [(u64, SkipReason); 3] = [
    (MAX_IMAGE_BYTES, SkipReason::ImageTooLarge),
    (MAX_CAPTION_BYTES, SkipReason::CaptionTooLarge),
    (MAX_CAPTION_BYTES, SkipReason::CaptionTooLarge),
];

impl Index {
    /// Image and captions of sample `number`. The caption is judged first: it decides as often.
    pub fn read(&self, number: usize) -> Result<Sample, SampleError> {
        let mut buffer = Vec::new();
        let members = self.members_of(number, true, true, &mut buffer)?;
        let captions = captions(members).map_err(|reason| self.sample_error(number, reason))?;
        let image = image(members).map_err(|reason| self.sample_error(number, reason))?.to_vec();
        Ok(Sample { key: self.entry(number).key.into(), image, captions })
    }

    /// The image file's bytes of sample `number`.
    pub fn read_image(&self, number: usize) -> Result<Vec<u8>, SampleError> {
        let mut buffer = Vec::new();
        let members = self.members_of(number, true, false, &mut buffer)?;
        let length = image(members).map_err(|reason| self.sample_error(number, reason))?.len();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// The captions of sample `number`, without touching its image.
    ///
    /// `.json` with a `caption` (a string or a list of strings; the whole file may be that list) wins, because it
    /// can hold several captions and `tags`; else the `.txt` is the caption. A broken `.json` beside a `.txt` costs
    /// nothing but its tags.
    pub fn read_captions(&self, number: usize) -> Result<Captions, SampleError> {
        let mut buffer = Vec::new();
        let members = self.members_of(number, false, true, &mut buffer)?;
        captions(members).map_err(|reason| self.sample_error(number, reason))
    }

    /// All bytes of sample `number` in one read, into a `buffer` that is used again: for measuring and copying.
    pub fn read_raw<'a>(&self, number: usize, buffer: &'a mut Vec<u8>) -> Result<RawSample<'a>, SampleError> {
        let members = self.members_of(number, true, true, buffer)?;
        let image = image(members).map_err(|reason| self.sample_error(number, reason))?;
        let [_, text, json] = members.map(|member| member.and_then(Result::ok));
        Ok(RawSample { image, text, json })
    }

    fn members_of<'a>(
        &self,
        number: usize,
        image: bool,
        captions: bool,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Members<'a>, SampleError> {
        let members = self.members(&*self.shard_of(number)?, number, [image, captions], buffer);
        members.map_err(|_| self.sample_error(number, SkipReason::Unreadable))
    }

    /// The image of sample `number`, its captions, or both, out of its open shard.
    pub(crate) fn members<'a>(
        &self,
        file: &File,
        number: usize,
        [image, captions]: [bool; 2],
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<Members<'a>> {
        let entry = self.entry(number);
        let asked =
            [image.then_some(entry.image), entry.text.filter(|_| captions), entry.json.filter(|_| captions)];
        let within = |at: usize| asked[at].filter(|span| span.size <= LIMITS[at].0);
        let bytes = read_spans(file, [0, 1, 2].map(within), buffer)?;
        Ok([0, 1, 2].map(|at| asked[at].map(|_| bytes[at].ok_or(LIMITS[at].1))))
    }

    /// The shard of sample `number`; what the loader takes for the end of a run is one sample's misfortune here.
    fn shard_of(&self, number: usize) -> Result<Arc<File>, SampleError> {
        self.open_shard(self.entry(number).shard)
            .map_err(|_| self.sample_error(number, SkipReason::Unreadable))
    }

    /// `SHARD: KEY` of sample `number`.
    pub fn full_key(&self, number: usize) -> String {
        let entry = self.entry(number);
        format!("{}: {}", self.shard(entry.shard), entry.key)
    }

    /// Names sample `number` as skipped for `reason`.
    pub fn sample_error(&self, number: usize, reason: SkipReason) -> SampleError {
        let entry = self.entry(number);
        SampleError { shard: Arc::clone(self.shard(entry.shard)), key: entry.key.to_string(), reason }
    }
}

/// Spans of an open shard, in one read where they lie near each other.
fn read_spans<'a>(
    file: &File,
    spans: [Option<Span>; 3],
    buffer: &'a mut Vec<u8>,
) -> io::Result<[Option<&'a [u8]>; 3]> {
    let present = || spans.iter().flatten();
    let start = present().map(|span| span.offset).min().unwrap_or(0);
    let end = present().map(|span| span.offset + span.size).max().unwrap_or(0);
    let needed: u64 = present().map(|span| span.size).sum();
    let near = end - start <= needed + MAX_GAP;
    // Where each begins in the buffer.
    let mut places = [0; 3];
    let mut length = 0;
    for (place, span) in places.iter_mut().zip(&spans) {
        let Some(span) = span else { continue };
        *place = if near { (span.offset - start) as usize } else { length };
        length += span.size as usize;
    }
    let length = if near { (end - start) as usize } else { length };
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    if near {
        file.read_exact_at(&mut buffer[..length], start)?;
    } else {
        for (span, place) in spans.iter().zip(places) {
            let Some(span) = span else { continue };
            file.read_exact_at(&mut buffer[place..place + span.size as usize], span.offset)?;
        }
    }
    let buffer: &'a [u8] = buffer;
    Ok([0, 1, 2].map(|at| spans[at].map(|span| &buffer[places[at]..places[at] + span.size as usize])))
}

pub(crate) fn image(members: Members<'_>) -> Result<&[u8], SkipReason> {
    members[0].unwrap_or(Ok(&[]))
}

/// As [`Index::read_captions`].
pub(crate) fn captions([_, text, json]: Members<'_>) -> Result<Captions, SkipReason> {
    let from_json = json.map(|json| json.and_then(parse_json));
    let mut found = match (from_json, text) {
        (Some(Ok(found)), _) if !found.captions.is_empty() => found,
        (Some(Err(reason)), None) => return Err(reason),
        (Some(Ok(_)), None) => return Err(SkipReason::CaptionJsonInvalid),
        (from_json, Some(text)) => {
            let beside = from_json.and_then(Result::ok).unwrap_or_default();
            Captions { captions: vec![text.and_then(parse_text)?], ..beside }
        }
        (None, None) => return Err(SkipReason::CaptionMissing),
    };
    found.captions.retain(|caption| !caption.trim().is_empty());
    if found.captions.is_empty() { Err(SkipReason::CaptionEmpty) } else { Ok(found) }
}

/// A `.txt` caption: UTF-8; a byte order mark at the start is no part of it.
pub fn parse_text(bytes: &[u8]) -> Result<String, SkipReason> {
    let text = std::str::from_utf8(bytes).map_err(|_| SkipReason::CaptionNotUtf8)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned())
}

/// What a `.json` says beside the caption. Of another kind it is nothing: that is no reason to lose a caption.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Is(T),
    Other(serde::de::IgnoredAny),
}

impl<T> Lenient<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

/// `caption`, `tags` and `image_id` of a `.json`; no captions when the key is absent or null. A file that is a list of texts is
/// the captions (LAVIS's reader of LAION takes such).
pub fn parse_json(bytes: &[u8]) -> Result<Captions, SkipReason> {
    #[derive(serde::Deserialize)]
    struct Fields {
        caption: Option<OneOrMany>,
        tags: Option<Lenient<OneOrMany>>,
        image_id: Option<Lenient<Id>>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Id {
        Number(i64),
        Text(String),
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
    let invalid = |_| SkipReason::CaptionJsonInvalid;
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        let captions = serde_json::from_slice(bytes).map_err(invalid)?;
        return Ok(Captions { captions, ..Captions::default() });
    }
    let fields: Fields = serde_json::from_slice(bytes).map_err(invalid)?;
    let image_id = fields.image_id.and_then(Lenient::known).map(|id| match id {
        Id::Number(number) => number.to_string(),
        Id::Text(text) => text,
    });
    let tags = list(fields.tags.and_then(Lenient::known));
    Ok(Captions { captions: list(fields.caption), tags, image_id })
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
        assert_eq!(parse_json(br#" ["a", "b"]"#).unwrap().captions, ["a", "b"]);
        assert_eq!(parse_json(br#"["a", 1]"#), Err(SkipReason::CaptionJsonInvalid));
        assert_eq!(parse_json(br#"{"url": "x"}"#).unwrap(), Captions::default());
        assert_eq!(parse_json(br#"{"caption": 3}"#), Err(SkipReason::CaptionJsonInvalid));
        assert_eq!(parse_json(b"{"), Err(SkipReason::CaptionJsonInvalid));
    }

    #[test]
    fn an_image_id_is_a_number_or_a_text() {
        let of = |id: &str| {
            parse_json(format!(r#"{{"caption": "a", "image_id": {id}}}"#).as_bytes()).unwrap().image_id
        };
        assert_eq!((of("391895").as_deref(), of(r#""coco_9""#).as_deref()), (Some("391895"), Some("coco_9")));
        assert_eq!((of("null"), of("[1]"), of("1.5")), (None, None, None));
    }

    #[test]
    fn tags_of_another_kind_cost_no_caption() {
        for tags in ["3", "[1, 2]", r#"{"a": ["b"]}"#, "true", "null", r#"["a", null]"#] {
            let found = parse_json(format!(r#"{{"tags": {tags}, "caption": "a cat"}}"#).as_bytes()).unwrap();
            assert_eq!(
                found,
                Captions { captions: vec!["a cat".to_owned()], ..Captions::default() },
                "{tags}"
            );
        }
    }

    #[test]
    fn text_is_utf8_without_its_mark() {
        assert_eq!(parse_text("\u{feff}a cat\n".as_bytes()).unwrap(), "a cat\n");
        assert_eq!(parse_text(&[0xff, 0xfe, 0x41]), Err(SkipReason::CaptionNotUtf8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_json(&bytes);
            let _ = parse_text(&bytes);
        }
    }
}
