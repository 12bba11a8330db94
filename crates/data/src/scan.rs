//! One pass over the headers of a tar: which samples lie where.
//!
//! Members are grouped by key as WebDataset does: the key is the name up to the first dot of its base name, what
//! follows is the kind (`jpg`, `png`, `webp`; `txt`; `json`). Nothing is ever unpacked, so a name is only a key. What is
//! wrong is counted, and what came before it is kept.

mod headers;
mod pax;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::SkipReason;
use headers::{Headers, Kind, Stop};

/// Size of a tar header and unit of its padding.
const BLOCK: u64 = 512;
/// Members of one shard; a scan of a hostile one ends here, at some 50 MB.
pub const MAX_MEMBERS: usize = 200_000;

/// Bytes of one member inside its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Span {
    /// First byte, from the start of the shard.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

impl From<(u64, u64)> for Span {
    fn from((offset, size): (u64, u64)) -> Self {
        Self { offset, size }
    }
}

impl From<Span> for (u64, u64) {
    fn from(span: Span) -> Self {
        (span.offset, span.size)
    }
}

/// The image kinds taken, by file name; what the bytes are is decided when decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// `.jpg`, `.jpeg`
    Jpeg,
    /// `.png`
    Png,
    /// `.webp`
    Webp,
}

/// The members of one usable sample.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Members {
    /// Name of the sample, unique in the shard.
    pub key: Box<str>,
    /// The image.
    pub image: Span,
    /// What the image's name says it is.
    pub image_kind: ImageKind,
    /// The `.txt`, if there is one.
    pub text: Option<Span>,
    /// The `.json`, if there is one.
    pub json: Option<Span>,
}

/// What one shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardScan {
    /// Usable samples, in the order of their first members.
    pub samples: Vec<Members>,
    /// Keys found, usable or not.
    pub seen: u64,
    /// What was left out.
    pub problems: BTreeMap<SkipReason, u64>,
}

impl ShardScan {
    fn add(&mut self, reason: SkipReason, count: u64) {
        if count > 0 {
            *self.problems.entry(reason).or_default() += count;
        }
    }
}

/// Reads the headers of the tar in `file`. Errors are the disk's; whatever the bytes are, they are read or counted.
pub fn scan(file: &File) -> io::Result<ShardScan> {
    scan_bytes(file, file.metadata()?.len())
}

fn scan_bytes(file: &dyn FileExt, length: u64) -> io::Result<ShardScan> {
    let mut found = ShardScan::default();
    let mut groups = Groups::default();
    if let Some(reason) = read_members(Headers::new(file, length), length, &mut groups, &mut found)? {
        found.add(reason, 1);
    }
    for group in groups.list {
        found.seen += 1;
        found.add(SkipReason::DuplicateKey, group.duplicates());
        match group.members() {
            Ok(members) => found.samples.push(members),
            Err(reason) => found.add(reason, 1),
        }
    }
    Ok(found)
}

/// Fills `groups`; the answer says why the archive ended before its end.
fn read_members(
    mut headers: Headers<'_>,
    length: u64,
    groups: &mut Groups,
    found: &mut ShardScan,
) -> io::Result<Option<SkipReason>> {
    if length < BLOCK {
        return Ok(Some(SkipReason::ShardNotTar));
    }
    for number in 0.. {
        let member = match headers.next() {
            Ok(_) if number == MAX_MEMBERS => return Ok(Some(SkipReason::ShardTooLarge)),
            Ok(member) => member,
            Err(Stop::End) => break,
            // Without one good header it is something else.
            Err(Stop::Broken(SkipReason::ShardCorrupt)) if number == 0 => {
                return Ok(Some(SkipReason::ShardNotTar));
            }
            Err(Stop::Broken(reason)) => return Ok(Some(reason)),
            Err(Stop::Disk(error)) => return Err(error),
        };
        match member.kind {
            Kind::File => {
                if let Some((key, role)) = key_and_role(&member.name) {
                    groups.add(key, role, member.span);
                }
            }
            Kind::Folder => {}
            Kind::Other => found.add(SkipReason::EntryUnsupported, 1),
        }
    }
    Ok(None)
}

/// What a member is, by the part of its name after the key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Image(ImageKind),
    Text,
    Json,
}

/// Key and role of a member called `name`; `None` for names that are no part of a sample.
fn key_and_role(name: &[u8]) -> Option<(&[u8], Role)> {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].iter().position(|&byte| byte == b'.')?;
    if dot == base {
        return None;
    }
    let role = match name[dot + 1..].to_ascii_lowercase().as_slice() {
        b"jpg" | b"jpeg" => Role::Image(ImageKind::Jpeg),
        b"png" => Role::Image(ImageKind::Png),
        b"webp" => Role::Image(ImageKind::Webp),
        b"txt" => Role::Text,
        b"json" => Role::Json,
        _ => return None,
    };
    Some((&name[..dot], role))
}

/// A key as text; bytes that are no UTF-8 are shown as `\xff`, so that names that differ stay apart.
fn shown(key: &[u8]) -> Box<str> {
    let mut text = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text.into()
}

/// Members of one key inside one shard, wherever they stand: members of several keys may interleave.
struct Group {
    key: Box<[u8]>,
    image: Option<(Span, ImageKind)>,
    text: Option<Span>,
    json: Option<Span>,
    /// How often the key has an image, a text and a json.
    counts: [u64; 3],
}

impl Group {
    /// Whole samples beyond the first under one key.
    fn duplicates(&self) -> u64 {
        self.counts.into_iter().max().unwrap_or(0).saturating_sub(1)
    }

    fn members(self) -> Result<Members, SkipReason> {
        let (image, image_kind) = self.image.ok_or(SkipReason::ImageMissing)?;
        if self.text.is_none() && self.json.is_none() {
            return Err(SkipReason::CaptionMissing);
        }
        Ok(Members { key: shown(&self.key), image, image_kind, text: self.text, json: self.json })
    }
}

#[derive(Default)]
struct Groups {
    list: Vec<Group>,
    places: HashMap<Box<[u8]>, usize>,
}

impl Groups {
    /// The first member of each kind wins.
    fn add(&mut self, key: &[u8], role: Role, span: Span) {
        // Nearly always the members of a key stand together, so the last group is the right one.
        let place = match self.list.last() {
            Some(last) if *last.key == *key => self.list.len() - 1,
            _ => *self.places.entry(key.into()).or_insert_with(|| {
                self.list.push(Group {
                    key: key.into(),
                    image: None,
                    text: None,
                    json: None,
                    counts: [0; 3],
                });
                self.list.len() - 1
            }),
        };
        let group = &mut self.list[place];
        let count = match role {
            Role::Image(kind) => {
                group.image.get_or_insert((span, kind));
                &mut group.counts[0]
            }
            Role::Text => {
                group.text.get_or_insert(span);
                &mut group.counts[1]
            }
            Role::Json => {
                group.json.get_or_insert(span);
                &mut group.counts[2]
            }
        };
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn scanned(bytes: &[u8]) -> ShardScan {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        scan(&file).unwrap()
    }

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, size) in
            [("a.jpg", 700), ("a.txt", 5), (&*"long/".repeat(60), 0), ("b.png", 512), ("b.json", 20)]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(size as u64);
            builder.append_data(&mut header, name, &vec![7; size][..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// A disk that fails behind its first `good` bytes.
    struct Failing {
        bytes: Vec<u8>,
        good: usize,
    }

    impl FileExt for Failing {
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
            let at = offset as usize;
            if at + into.len() > self.good {
                return Err(io::ErrorKind::StaleNetworkFileHandle.into());
            }
            into.copy_from_slice(&self.bytes[at..at + into.len()]);
            Ok(into.len())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    #[test]
    fn a_disk_that_fails_is_an_error_and_never_the_end_of_a_shard() {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..40 {
            let mut header = tar::Header::new_gnu();
            header.set_size(6000);
            builder.append_data(&mut header, format!("{number}.jpg"), &vec![7; 6000][..]).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        for good in (0..bytes.len()).step_by(1111) {
            let disk = Failing { bytes: bytes.clone(), good };
            let error = scan_bytes(&disk, bytes.len() as u64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StaleNetworkFileHandle);
        }
        let disk = Failing { good: bytes.len(), bytes };
        assert_eq!(scan_bytes(&disk, disk.good as u64).unwrap().seen, 40);
    }

    #[test]
    fn names_that_are_no_utf8_stay_apart() {
        let mut bytes = Vec::new();
        for name in
            [&b"\xff.txt"[..], b"\xfe.txt", b"\xff.jpg", b"\xfe.jpg", "é.jpg".as_bytes(), "é.txt".as_bytes()]
        {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_size(0);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
        }
        bytes.extend([0; 1024]);
        let found = scanned(&bytes);
        let keys: Vec<&str> = found.samples.iter().map(|sample| &*sample.key).collect();
        assert_eq!(keys, ["\\xff", "\\xfe", "é"]);
        assert_eq!(found.problems, BTreeMap::new());
    }

    proptest! {
        /// The `tar` crate wrote it; what its own reader finds is what is found here.
        #[test]
        fn members_are_where_another_reader_finds_them(
            members in prop::collection::vec(("[a-z./]{1,140}", 0usize..3000, any::<bool>()), 0..12),
        ) {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, size, ustar) in &members {
                let mut header = if *ustar { tar::Header::new_ustar() } else { tar::Header::new_gnu() };
                header.set_size(*size as u64);
                // Names that the writer refuses (`..`) are left out.
                let _ = builder.append_data(&mut header, name, &vec![7; *size][..]);
            }
            let bytes = builder.into_inner().unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let mut headers = Headers::new(&file, bytes.len() as u64);
            let mut archive = tar::Archive::new(&bytes[..]);
            for entry in archive.entries().unwrap() {
                let (entry, member) = (entry.unwrap(), headers.next().unwrap());
                let span = Span { offset: entry.raw_file_position(), size: entry.size() };
                prop_assert_eq!((&*entry.path_bytes(), span), (&*member.name, member.span));
            }
            prop_assert!(matches!(headers.next(), Err(Stop::End)));
        }

        #[test]
        fn any_bytes_are_scanned(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            scanned(&bytes);
        }

        #[test]
        fn a_damaged_archive_is_scanned_and_no_span_leaves_the_file(
            cut in 0usize..8000, flips in prop::collection::vec((0usize..8000, any::<u8>()), 0..8),
        ) {
            let mut bytes = archive();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(cut.max(1));
            for members in scanned(&bytes).samples {
                for span in [Some(members.image), members.text, members.json].into_iter().flatten() {
                    prop_assert!(span.offset + span.size <= bytes.len() as u64);
                }
            }
        }
    }
}
