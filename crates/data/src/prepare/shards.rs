//! Emoji become WebDataset shards: which sample goes where, and the bytes of a tar.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::emoji::{Emoji, Style};
use super::error::PrepareError;
use super::family::Split;

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

    /// Only what is trained on is cut into several shards.
    fn numbered(self) -> bool {
        self.name.starts_with("train")
    }
}

/// Everything that is written. A concept of [`Split::Test`] is in no training shard, and nor is a Fluent picture.
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

/// Writes the shards of `set` into `dir`, each whole under its name or not at all.
pub fn write(set: Set, emoji: &[Emoji], dir: &Path) -> Result<Written, PrepareError> {
    let members: Vec<&Emoji> = emoji.iter().filter(|emoji| emoji.item.split == set.split).collect();
    let size = if set.numbered() { shard_size(members.len()) } else { members.len().max(1) };
    let mut shards = Vec::new();
    for (number, chunk) in members.chunks(size).enumerate() {
        let name = if set.numbered() {
            format!("{}-{number:06}.tar", set.name)
        } else {
            format!("{}.tar", set.name)
        };
        let path = dir.join(name);
        replace(&path, |file| write_tar(chunk, set.style, file))?;
        shards.push(path);
    }
    Ok(Written { name: set.name, shards, samples: members.len() })
}

/// The size that spreads `samples` evenly over as few shards as [`MAX_SHARD_SAMPLES`] allows.
fn shard_size(samples: usize) -> usize {
    samples.div_ceil(samples.div_ceil(MAX_SHARD_SAMPLES).max(1)).max(1)
}

/// A sample's `.json`. The reader knows `caption` and `tags`; the rest says where the picture is from.
#[derive(Serialize)]
struct Sidecar<'a> {
    caption: &'a str,
    tags: &'a [String],
    hexcode: &'a str,
    style: &'static str,
}

/// `KEY.png` or `KEY.webp`, then `KEY.json`, for each emoji; the same bytes for the same emoji on any machine.
fn write_tar(emoji: &[&Emoji], style: Style, sink: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(sink);
    for emoji in emoji {
        let picture = emoji.pictures.get(&style).ok_or_else(|| io::Error::other("a picture is missing"))?;
        let Emoji { item, tags, .. } = emoji;
        let sidecar = Sidecar { caption: &item.caption, tags, hexcode: &item.hexcode, style: style.name() };
        let key = emoji.key(style);
        append(&mut tar, &format!("{key}.{}", style.extension()), picture)?;
        append(&mut tar, &format!("{key}.json"), &serde_json::to_vec(&sidecar)?)?;
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
        let written = write(Set::new("both", Split::Test, Style::Fluent), &all, dir.path()).unwrap();
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
        let written = write(SETS[0], &all, first.path()).unwrap();
        assert_eq!(written.samples, 701);
        write(SETS[0], &all, second.path()).unwrap();
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
