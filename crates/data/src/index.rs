//! Where every sample lies: shard, offsets and sizes, found by one scan of the tar headers.
//!
//! Members are grouped by key as WebDataset does: the key is the name up to the first dot of its base name, what
//! follows is the kind (`jpg`, `png`, `webp`; `txt`; `json`). Nothing is ever unpacked, so a name is only a key. The
//! `tar` crate reads the headers, GNU and PAX names included; it takes an empty file and a cut on a member boundary
//! for a clean end, so those are checked here. What is wrong inside a shard is counted and the rest is used; a file
//! that is no tar at all ends the run, because then the config names the wrong thing.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::counters::Counters;
use crate::error::{DataError, SkipReason};
use crate::pattern;

/// Size of a tar header and unit of its padding.
const BLOCK: u64 = 512;
/// Shards kept open at once for reading.
const MAX_OPEN_SHARDS: usize = 64;

/// Bytes of one member inside its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte, from the start of the shard.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// The image kinds taken, by file name; what the bytes are is decided when decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// `.jpg`, `.jpeg`
    Jpeg,
    /// `.png`
    Png,
    /// `.webp`
    Webp,
}

/// One usable sample: an image and at least one source of captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleEntry {
    /// Name of the sample, unique over the index.
    pub key: Box<str>,
    /// Number of its shard, see [`Index::shard`].
    pub shard: u32,
    /// The image.
    pub image: Span,
    /// What the image's name says it is.
    pub image_kind: ImageKind,
    /// The `.txt`, if there is one.
    pub text: Option<Span>,
    /// The `.json`, if there is one.
    pub json: Option<Span>,
}

/// All usable samples of a list of shards, in the order in which they lie there.
#[derive(Debug)]
pub struct Index {
    shards: Vec<Shard>,
    entries: Vec<SampleEntry>,
    problems: Counters,
    digest: String,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    name: Arc<str>,
}

impl Index {
    /// Scans the shards that `patterns` name ([`pattern::shards`]).
    ///
    /// Problems inside shards are counted in [`Index::problems`]. Errors: a shard is missing, unreadable or no tar;
    /// no usable sample is left over all shards.
    pub fn open(patterns: &[String]) -> Result<Self, DataError> {
        let shards: Vec<Shard> = pattern::shards(patterns)?
            .into_iter()
            .map(|path| Shard { name: path.display().to_string().into(), path })
            .collect();
        let mut index = Self {
            shards,
            entries: Vec::new(),
            problems: Counters::default(),
            digest: String::new(),
            open: Mutex::default(),
        };
        let mut keys = HashSet::new();
        for number in 0..index.shards.len() {
            index.add_shard(number, &mut keys)?;
        }
        if index.entries.is_empty() {
            let problems = index.problems.worst(5);
            return Err(DataError::Empty {
                patterns: patterns.to_vec(),
                shards: index.shards.len(),
                problems,
            });
        }
        index.digest = digest(&index.entries);
        Ok(index)
    }

    /// Number of usable samples.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true of an index that [`Index::open`] returned.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The samples, in shard order.
    pub fn entries(&self) -> &[SampleEntry] {
        &self.entries
    }

    /// Path of shard `number` as it is shown in messages and counters.
    pub fn shard(&self, number: u32) -> &Arc<str> {
        &self.shards[number as usize].name
    }

    /// Number of shards.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// What the scan found wrong, by shard and reason; `seen` counts all keys, usable or not.
    pub fn problems(&self) -> &Counters {
        &self.problems
    }

    /// SHA-256 over keys, shard numbers, offsets and sizes, in hex: two runs with equal digests see equal samples.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Reads the bytes of `span` of shard `number`.
    pub fn read_span(&self, number: u32, span: Span) -> std::io::Result<Vec<u8>> {
        let file = self.file(number)?;
        // The scan checked that the span lies inside the file, so its size is no promise of a header.
        let mut bytes = vec![0; span.size as usize];
        file.read_exact_at(&mut bytes, span.offset)?;
        Ok(bytes)
    }

    fn file(&self, number: u32) -> std::io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= MAX_OPEN_SHARDS {
            open.clear();
        }
        let file = Arc::new(File::open(&self.shards[number as usize].path)?);
        open.insert(number, Arc::clone(&file));
        Ok(file)
    }

    fn add_shard(&mut self, number: usize, keys: &mut HashSet<Box<str>>) -> Result<(), DataError> {
        let Shard { path, name } = &self.shards[number];
        let scan = scan(path)?;
        for reason in scan.problems {
            self.problems.add(name, reason);
        }
        for group in scan.groups {
            self.problems.seen += 1;
            for _ in 0..group.duplicates() {
                self.problems.add(name, SkipReason::DuplicateKey);
            }
            match group.entry(number as u32) {
                Ok(entry) if keys.insert(entry.key.clone()) => self.entries.push(entry),
                Ok(_) => self.problems.add(name, SkipReason::DuplicateKey),
                Err(reason) => self.problems.add(name, reason),
            }
        }
        Ok(())
    }
}

fn digest(entries: &[SampleEntry]) -> String {
    let mut hash = Sha256::new();
    let number = |hash: &mut Sha256, value: u64| hash.update(value.to_le_bytes());
    for entry in entries {
        number(&mut hash, entry.key.len() as u64);
        hash.update(entry.key.as_bytes());
        number(&mut hash, u64::from(entry.shard));
        for span in [Some(entry.image), entry.text, entry.json] {
            let span = span.unwrap_or(Span { offset: 0, size: 0 });
            number(&mut hash, span.offset);
            number(&mut hash, span.size);
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
    images: Vec<(Span, ImageKind)>,
    texts: Vec<Span>,
    jsons: Vec<Span>,
}

impl Group {
    fn duplicates(&self) -> usize {
        self.images.len().max(self.texts.len()).max(self.jsons.len()).saturating_sub(1)
    }

    fn entry(self, shard: u32) -> Result<SampleEntry, SkipReason> {
        let Some(&(image, image_kind)) = self.images.first() else { return Err(SkipReason::ImageMissing) };
        let (text, json) = (self.texts.first().copied(), self.jsons.first().copied());
        if text.is_none() && json.is_none() {
            return Err(SkipReason::CaptionMissing);
        }
        Ok(SampleEntry { key: self.key, shard, image, image_kind, text, json })
    }
}

#[derive(Default)]
struct Scan {
    groups: Vec<Group>,
    places: HashMap<Box<str>, usize>,
    problems: Vec<SkipReason>,
}

impl Scan {
    fn add(&mut self, key: &str, role: Role, span: Span) {
        let place = *self.places.entry(key.into()).or_insert_with(|| {
            self.groups.push(Group { key: key.into(), images: vec![], texts: vec![], jsons: vec![] });
            self.groups.len() - 1
        });
        let group = &mut self.groups[place];
        match role {
            Role::Image(kind) => group.images.push((span, kind)),
            Role::Text => group.texts.push(span),
            Role::Json => group.jsons.push(span),
        }
    }
}

/// Reads the headers of one shard.
fn scan(path: &Path) -> Result<Scan, DataError> {
    let shard = || path.display().to_string();
    let mut file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::ShardMissing { shard: shard(), source },
        _ => DataError::Unreadable { shard: shard(), source },
    })?;
    let unreadable = |source| DataError::Unreadable { shard: shard(), source };
    let length = file.metadata().map_err(unreadable)?.len();
    if let Some(found) = first_bytes_problem(&mut file, length).map_err(unreadable)? {
        return Err(DataError::NotATar { shard: shard(), found });
    }
    let mut scan = Scan::default();
    let mut archive = tar::Archive::new(file);
    // Where the next header must stand; the end of the last whole member.
    let mut end = 0;
    for (number, entry) in archive.entries_with_seek().map_err(unreadable)?.enumerate() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(_) if number == 0 => {
                let found = "its first header has a wrong checksum".to_owned();
                return Err(DataError::NotATar { shard: shard(), found });
            }
            Err(error) => {
                let cut = error.kind() == std::io::ErrorKind::UnexpectedEof || length < end + BLOCK;
                scan.problems.push(if cut { SkipReason::ShardTruncated } else { SkipReason::ShardCorrupt });
                return Ok(scan);
            }
        };
        let span = Span { offset: entry.raw_file_position(), size: entry.size() };
        let Some(after) = span.offset.checked_add(span.size).filter(|&after| after <= length) else {
            scan.problems.push(SkipReason::MemberTruncated);
            return Ok(scan);
        };
        end = after.next_multiple_of(BLOCK);
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            scan.problems.push(SkipReason::EntryUnsupported);
            continue;
        }
        let name = entry.path_bytes();
        if let Some((key, role)) = key_and_role(&String::from_utf8_lossy(&name)) {
            scan.add(key, role, span);
        }
    }
    // The crate takes the end of the file for the end of the archive; a whole archive ends with a zero block.
    if length < end + BLOCK {
        scan.problems.push(SkipReason::ShardTruncated);
    }
    Ok(scan)
}

/// What the file is instead of a tar, if its first block says so; leaves the file at its start.
fn first_bytes_problem(file: &mut File, length: u64) -> std::io::Result<Option<String>> {
    if length == 0 {
        return Ok(Some("the file is empty".into()));
    }
    let mut block = Vec::new();
    file.by_ref().take(BLOCK).read_to_end(&mut block)?;
    file.rewind()?;
    let problem = match block.as_slice() {
        [0x1f, 0x8b, ..] => Some("it is compressed with gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("it is compressed with zstd"),
        [b'P', b'K', 3 | 5, ..] => Some("it is a zip file"),
        _ if (block.len() as u64) < BLOCK => Some("it is shorter than one header"),
        _ if !header_checksum_matches(&block) => Some("its first header has a wrong checksum"),
        _ => None,
    };
    Ok(problem.map(str::to_owned))
}

/// The checksum rule of a tar header; a zero block (an empty archive) passes.
fn header_checksum_matches(block: &[u8]) -> bool {
    if block.iter().all(|&byte| byte == 0) {
        return true;
    }
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { byte.into() })
        .sum();
    let digits: String =
        block[148..156].iter().map(|&byte| byte as char).filter(|digit| digit.is_digit(8)).collect();
    u32::from_str_radix(&digits, 8).is_ok_and(|stored| stored == sum)
}
