//! One pass over the headers of a tar: which samples lie where.
//!
//! Members are grouped by key as WebDataset does: the key is the name up to the first dot of its base name, what
//! follows is the kind (`jpg`, `png`, `webp`; `txt`; `json`). Nothing is ever unpacked, so a name is only a key. The
//! `tar` crate reads the headers, GNU and PAX names included; it takes an empty file and a cut on a member boundary
//! for a clean end, so those are checked here. What is wrong is counted, and what came before it is kept.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::error::SkipReason;

/// Size of a tar header and unit of its padding.
const BLOCK: u64 = 512;
/// Members of one shard; a scan of a hostile one ends here, at some 50 MB.
pub const MAX_MEMBERS: usize = 200_000;
/// Bytes that one member may have in front of its contents: headers, long names. Ends the reading of hostile names.
const MAX_HEADER_BYTES: u64 = 256 << 10;
/// Read at once around a header: the caption between two pictures comes with it.
const WINDOW: usize = 4096;

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
    let length = file.metadata()?.len();
    let mut found = ShardScan::default();
    if !starts_like_a_tar(file, length)? {
        found.add(SkipReason::ShardNotTar, 1);
        return Ok(found);
    }
    let mut groups = Groups::default();
    let ended_by = read_members(Headers::new(file, length), length, &mut groups, &mut found)?;
    if let Some(reason) = ended_by {
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
    headers: Headers<'_>,
    length: u64,
    groups: &mut Groups,
    found: &mut ShardScan,
) -> io::Result<Option<SkipReason>> {
    let mut archive = tar::Archive::new(headers);
    // Where the next header must stand; the end of the last whole member.
    let mut end = 0;
    for (number, entry) in archive.entries_with_seek()?.enumerate() {
        let Ok(entry) = entry else {
            return Ok(Some(match () {
                () if number == 0 => SkipReason::ShardNotTar,
                () if length < end + BLOCK => SkipReason::ShardTruncated,
                () => SkipReason::ShardCorrupt,
            }));
        };
        if number == MAX_MEMBERS {
            return Ok(Some(SkipReason::ShardTooLarge));
        }
        let kind = entry.header().entry_type();
        // Of a sparse file the size is that of the file it stands for.
        let stored = if kind.is_gnu_sparse() { entry.header().entry_size().ok() } else { Some(entry.size()) };
        let span = Span { offset: entry.raw_file_position(), size: stored.unwrap_or(u64::MAX) };
        let Some(after) = span.offset.checked_add(span.size).filter(|&after| after <= length) else {
            return Ok(Some(SkipReason::MemberTruncated));
        };
        end = after.next_multiple_of(BLOCK);
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            found.add(SkipReason::EntryUnsupported, 1);
            continue;
        }
        let name = entry.path_bytes();
        if let Some((key, role)) = key_and_role(&String::from_utf8_lossy(&name)) {
            groups.add(key, role, span);
        }
    }
    // The crate takes the end of the file for the end of the archive; a whole archive ends with a zero block.
    Ok((length < end + BLOCK).then_some(SkipReason::ShardTruncated))
}

/// Whether the file can be a tar, by its length and first block. An archive of nothing (zero blocks) can.
fn starts_like_a_tar(file: &File, length: u64) -> io::Result<bool> {
    if length < BLOCK {
        return Ok(false);
    }
    let mut block = [0; BLOCK as usize];
    file.read_exact_at(&mut block, 0)?;
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { byte.into() })
        .sum();
    let digits: String =
        block[148..156].iter().map(|&byte| byte as char).filter(|digit| digit.is_digit(8)).collect();
    Ok(block == [0; BLOCK as usize] || u32::from_str_radix(&digits, 8).is_ok_and(|stored| stored == sum))
}

/// The file as the `tar` crate reads it: seeking costs nothing, small reads come out of a window, and what stands
/// before one member has a bound.
struct Headers<'a> {
    file: &'a File,
    length: u64,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
    /// Read since the last jump over contents.
    run: u64,
}

impl<'a> Headers<'a> {
    fn new(file: &'a File, length: u64) -> Self {
        Self { file, length, position: 0, window: Vec::new(), window_start: 0, run: 0 }
    }
}

impl Read for Headers<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let inside = self.position.checked_sub(self.window_start).filter(|&at| at < self.window.len() as u64);
        if inside.is_none() {
            let left = self.length.saturating_sub(self.position).min(WINDOW as u64);
            self.window.resize(left as usize, 0);
            self.file.read_exact_at(&mut self.window, self.position)?;
            self.window_start = self.position;
        }
        let from = &self.window[inside.unwrap_or(0) as usize..];
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        self.position += count as u64;
        self.run += count as u64;
        if self.run > MAX_HEADER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a name is too long"));
        }
        Ok(count)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        self.run = 0;
        Ok(self.position)
    }
}

/// What a member is, by the part of its name after the key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Image(ImageKind),
    Text,
    Json,
}

/// Key and role of a member called `name`; `None` for names that are no part of a sample.
fn key_and_role(name: &str) -> Option<(&str, Role)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    if dot == base {
        return None;
    }
    let role = match name[dot + 1..].to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => Role::Image(ImageKind::Jpeg),
        "png" => Role::Image(ImageKind::Png),
        "webp" => Role::Image(ImageKind::Webp),
        "txt" => Role::Text,
        "json" => Role::Json,
        _ => return None,
    };
    Some((&name[..dot], role))
}

/// Members of one key inside one shard, wherever they stand: members of several keys may interleave.
struct Group {
    key: Box<str>,
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
        Ok(Members { key: self.key, image, image_kind, text: self.text, json: self.json })
    }
}

#[derive(Default)]
struct Groups {
    list: Vec<Group>,
    places: HashMap<Box<str>, usize>,
}

impl Groups {
    /// The first member of each kind wins.
    fn add(&mut self, key: &str, role: Role, span: Span) {
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

    proptest! {
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
