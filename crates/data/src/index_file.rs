//! The index file beside a shard: its scan, kept.
//!
//! `00000.tar.index` is JSON lines: one [`Header`], one line a sample, and last the SHA-256 of all that stands
//! before. It is believed when that digest is right and the shard still has the size (and, on a local disk, the
//! modification time) that it had when it was scanned.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::SkipReason;
use crate::scan::{ImageKind, Members, ShardScan, Span};

/// Added to the shard's name.
pub const SUFFIX: &str = ".index";
/// Of the format and of what a scan finds; after another one shards are scanned anew.
const VERSION: u32 = 2;
/// What the first line says it is.
const FORMAT: &str = "blip2-index";

/// The shard that a scan was made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Bytes of the shard.
    pub size: u64,
    /// Its modification time in nanoseconds since 1970.
    pub modified_ns: u64,
    /// SHA-256 of its bytes in hex, when it was asked for; copies are then checked against it.
    pub sha256: Option<String>,
}

/// A scan and the shard that it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// What was scanned.
    pub stamp: Stamp,
    /// What was found.
    pub scan: ShardScan,
}

#[derive(serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    shard: Stamp,
    seen: u64,
    samples: usize,
    problems: BTreeMap<SkipReason, u64>,
}

/// One sample's line: key, image, kind of image, text, json.
#[derive(serde::Deserialize, serde::Serialize)]
struct Row(Box<str>, Span, ImageKind, Option<Span>, Option<Span>);

/// The index file of the shard at `path`.
pub fn path_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

impl ShardIndex {
    /// The file's text.
    pub fn encode(&self) -> String {
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            shard: self.stamp.clone(),
            seen: self.scan.seen,
            samples: self.scan.samples.len(),
            problems: self.scan.problems.clone(),
        };
        // Maps with string keys and numbers only: serde_json has nothing to refuse here, and a text without them
        // would not be believed when it is read.
        let mut text = serde_json::to_string(&header).unwrap_or_default();
        for sample in &self.scan.samples {
            let row = Row(sample.key.clone(), sample.image, sample.image_kind, sample.text, sample.json);
            text.push('\n');
            text.push_str(&serde_json::to_string(&row).unwrap_or_default());
        }
        text.push('\n');
        let digest = hex(&Sha256::digest(text.as_bytes()));
        text + &digest + "\n"
    }

    /// Reads what [`ShardIndex::encode`] wrote; `None` for anything else, damaged files included.
    pub fn decode(text: &str) -> Option<Self> {
        let (body, digest) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        if hex(&Sha256::digest(&text.as_bytes()[..=body.len()])) != digest {
            return None;
        }
        let mut lines = body.lines();
        let header: Header = serde_json::from_str(lines.next()?).ok()?;
        if header.format != FORMAT || header.version != VERSION {
            return None;
        }
        let size = header.shard.size;
        let samples = lines.map(|line| {
            let Row(key, image, image_kind, text, json) = serde_json::from_str(line).ok()?;
            let inside = |span: Span| span.offset.checked_add(span.size).is_some_and(|end| end <= size);
            let spans = [Some(image), text, json];
            spans.into_iter().flatten().all(inside).then_some(Members { key, image, image_kind, text, json })
        });
        let samples: Vec<Members> = samples.collect::<Option<_>>()?;
        (samples.len() == header.samples).then_some(Self {
            stamp: header.shard,
            scan: ShardScan { samples, seen: header.seen, problems: header.problems },
        })
    }

    /// Writes the file at `path`: beside it first, then by name, so that no reader finds half of it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().permissions(world_readable()).tempfile_in(folder)?;
        file.write_all(self.encode().as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// Reads the file at `path`; `None` if there is none that can be believed.
    pub fn read(path: &Path) -> Option<Self> {
        Self::decode(&std::fs::read_to_string(path).ok()?)
    }
}

/// Temporary files are private by default; an index is as public as its shard.
fn world_readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// The name in a cache folder of what `identity` names.
pub(crate) fn cache_name(identity: &[u8], suffix: &str) -> String {
    hex(&Sha256::digest(identity)[..16]) + suffix
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing into a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index() -> ShardIndex {
        let span = |offset, size| Span { offset, size };
        let members = |key: &str, json| Members {
            key: key.into(),
            image: span(512, 100),
            image_kind: ImageKind::Webp,
            text: Some(span(1536, 3)),
            json,
        };
        ShardIndex {
            stamp: Stamp { size: 4096, modified_ns: 1_700_000_000_123_456_789, sha256: Some("ab".into()) },
            scan: ShardScan {
                samples: vec![members("a\n\"<b>\u{0}", None), members("é", Some(span(4000, 96)))],
                seen: 3,
                problems: [(SkipReason::ImageMissing, 1)].into(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_beside(&dir.path().join("0.tar"));
        index().write(&path).unwrap();
        assert_eq!(path.file_name().unwrap(), "0.tar.index");
        assert_eq!(ShardIndex::read(&path).unwrap(), index());
    }

    #[test]
    fn a_span_outside_the_shard_is_refused() {
        let mut wrong = index();
        wrong.stamp.size = 4095;
        assert_eq!(ShardIndex::decode(&wrong.encode()), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}(\n\\PC{0,60}){0,3}\n?") {
            prop_assert_eq!(ShardIndex::decode(&text), None);
        }

        #[test]
        fn one_changed_byte_is_refused(at in 0usize..1000, to in 32u8..127) {
            let mut bytes = index().encode().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let read = String::from_utf8(bytes).ok().and_then(|text| ShardIndex::decode(&text));
            prop_assert_eq!(read, None);
        }
    }
}
