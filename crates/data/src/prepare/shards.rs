//! Emoji and stamps become WebDataset shards: which sample goes where, and the bytes of a tar.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::emoji::{Emoji, Style};
use super::error::PrepareError;
use super::family::Split;
use super::tuxpaint::Stamp;

/// Samples in one training shard at most, so that there are several.
const MAX_SHARD_SAMPLES: usize = 700;

/// A set of shards: the emoji of one split in one style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Name of the set, the start of its shards' names.
    pub name: &'static str,
    /// Which emoji.
    pub split: Split,
    /// Drawn how.
    pub style: Style,
}

impl Set {
    const fn new(name: &'static str, split: Split, style: Style) -> Self {
        Self { name, split, style }
    }
}

/// Everything that is made of emoji. A concept of [`Split::Test`] is in no training shard, and nor is a Fluent picture.
pub const SETS: [Set; 9] = [
    Set::new("train-google", Split::Train, Style::Google),
    Set::new("train-twitter", Split::Train, Style::Twitter),
    Set::new("val", Split::Val, Style::Google),
    Set::new("val_twitter", Split::Val, Style::Twitter),
    Set::new("val_fluent", Split::Val, Style::Fluent),
    Set::new("concept_google", Split::Test, Style::Google),
    Set::new("concept_twitter", Split::Test, Style::Twitter),
    // A concept that was never seen in a style that was never seen; then a seen concept in that style.
    Set::new("both", Split::Test, Style::Fluent),
    Set::new("style", Split::Train, Style::Fluent),
];

/// The shards of one set, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Name of the set.
    pub name: &'static str,
    /// Its shards, in order.
    pub shards: Vec<PathBuf>,
    /// Samples over all of them.
    pub samples: usize,
}

/// The sets of stamps (Tux Paint), by the same rule as emoji: a concept is on the same side in both.
pub const TUXPAINT_SETS: [(&str, Split); 3] =
    [("train-tuxpaint", Split::Train), ("val_tuxpaint", Split::Val), ("concept_tuxpaint", Split::Test)];

/// One sample as it is written: `KEY.EXTENSION`, then `KEY.json`.
pub struct Sample<'a> {
    key: String,
    extension: &'static str,
    picture: Option<&'a Vec<u8>>,
    sidecar: Sidecar<'a>,
}

/// A sample's `.json`. The reader knows `caption` and `tags`; the rest says where the picture is from.
#[derive(Serialize)]
struct Sidecar<'a> {
    caption: &'a str,
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    hexcode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    style: &'static str,
}

/// The samples of `set`.
pub fn emoji_samples(set: Set, emoji: &[Emoji]) -> impl Iterator<Item = Sample<'_>> {
    emoji.iter().filter(move |emoji| emoji.item.split == set.split).map(move |emoji| {
        let Emoji { item, tags, .. } = emoji;
        Sample {
            key: emoji.key(set.style),
            extension: set.style.extension(),
            picture: emoji.pictures.get(&set.style),
            sidecar: Sidecar {
                caption: &item.caption,
                tags,
                hexcode: Some(&item.hexcode),
                path: None,
                style: set.style.name(),
            },
        }
    })
}

/// The samples of a split of stamps.
pub fn stamp_samples(split: Split, stamps: &[Stamp]) -> impl Iterator<Item = Sample<'_>> {
    stamps.iter().filter(move |stamp| stamp.split == split).map(|stamp| Sample {
        key: stamp.key(),
        extension: "png",
        picture: Some(&stamp.picture),
        sidecar: Sidecar {
            caption: &stamp.caption,
            tags: &[],
            hexcode: None,
            path: Some(&stamp.path),
            style: "tuxpaint",
        },
    })
}

/// Writes the shards of the set `name` into `dir`, each whole under its name or not at all.
pub fn write<'a>(
    name: &'static str,
    samples: impl Iterator<Item = Sample<'a>>,
    dir: &Path,
) -> Result<Written, PrepareError> {
    let samples: Vec<Sample<'_>> = samples.collect();
    // Only what is trained on is cut into several shards.
    let is_numbered = name.starts_with("train");
    let size = if is_numbered { shard_size(samples.len()) } else { samples.len().max(1) };
    let mut shards = Vec::new();
    for (number, chunk) in samples.chunks(size).enumerate() {
        let path =
            dir.join(if is_numbered { format!("{name}-{number:06}.tar") } else { format!("{name}.tar") });
        replace(&path, |file| write_tar(chunk, file))?;
        shards.push(path);
    }
    Ok(Written { name, shards, samples: samples.len() })
}

/// The size that spreads `samples` evenly over as few shards as [`MAX_SHARD_SAMPLES`] allows.
fn shard_size(samples: usize) -> usize {
    samples.div_ceil(samples.div_ceil(MAX_SHARD_SAMPLES).max(1)).max(1)
}

/// Picture and sidecar of each sample; the same bytes for the same samples on any machine.
fn write_tar(samples: &[Sample<'_>], sink: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(sink);
    for Sample { key, extension, picture, sidecar } in samples {
        let picture = picture.ok_or_else(|| io::Error::other("a picture is missing"))?;
        append(&mut tar, &format!("{key}.{extension}"), picture)?;
        append(&mut tar, &format!("{key}.json"), &serde_json::to_vec(sidecar)?)?;
    }
    tar.finish()
}

fn append(tar: &mut tar::Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, bytes)
}

/// Writes a file beside `path`, makes it durable and renames it.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), PrepareError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let attempt = || {
        let mode = std::fs::Permissions::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(dir)?;
        {
            let mut buffered = io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
            write(&mut buffered)?;
            buffered.flush()?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(PrepareError::io("write", path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Index;
    use crate::prepare::Item;

    fn emoji(number: u32, split: Split) -> Emoji {
        let item = Item {
            hexcode: format!("{number:X}-FE0F"),
            caption: format!("thing {number}"),
            family: "thing".into(),
            group: 1,
            split,
        };
        let pictures = [Style::Google, Style::Twitter, Style::Fluent]
            .map(|style| (style, format!("{number} {}", style.name()).into_bytes()));
        Emoji { item, tags: vec!["tag".into()], pictures: BTreeMap::from(pictures) }
    }

    #[test]
    fn what_is_written_is_what_the_reader_reads() {
        let all: Vec<Emoji> = (0..6)
            .map(|number| emoji(0x1f600 + number, if number < 4 { Split::Train } else { Split::Test }))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let set = Set::new("both", Split::Test, Style::Fluent);
        let written = write(set.name, emoji_samples(set, &all), dir.path()).unwrap();
        assert_eq!(written.shards, [dir.path().join("both.tar")]);
        let index = Index::open(&[written.shards[0].display().to_string()]).unwrap();
        assert_eq!((index.len(), index.problems().total()), (2, 0));
        let sample = index.read(1).unwrap();
        assert_eq!(&*sample.key, "fluent-1f605");
        assert_eq!(sample.image, b"128517 fluent");
        assert_eq!(
            (sample.captions.captions, sample.captions.tags),
            (vec!["thing 128517".into()], vec!["tag".into()])
        );
    }

    #[test]
    fn training_shards_are_numbered_even_and_the_same_again() {
        assert_eq!([0, 1, 700, 701, 1364].map(shard_size), [1, 1, 700, 351, 682]);
        let all: Vec<Emoji> = (0..701).map(|number| emoji(number, Split::Train)).collect();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let written = write("train-google", emoji_samples(SETS[0], &all), first.path()).unwrap();
        assert_eq!(written.samples, 701);
        write("train-google", emoji_samples(SETS[0], &all), second.path()).unwrap();
        for name in ["train-google-000000.tar", "train-google-000001.tar"] {
            let bytes = std::fs::read(first.path().join(name)).unwrap();
            assert_eq!(bytes, std::fs::read(second.path().join(name)).unwrap());
        }
        assert_eq!(std::fs::read_dir(first.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let error = replace(&path, |_| Err(io::Error::other("full"))).unwrap_err();
        assert!(matches!(error, PrepareError::Io { action: "write", .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
