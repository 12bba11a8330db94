//! The headers of a tar, member by member: names and sizes as Python's `tarfile` (and so WebDataset) sees them.
//!
//! Old, ustar, GNU and PAX archives. Where a member's contents end decides what the next header is, so a size is taken
//! from where it counts most, and what readers disagree about ends the archive.

use std::io;
use std::os::unix::fs::FileExt;

use super::pax::records;
use super::{BLOCK, Span};
use crate::error::SkipReason;

/// Bytes that one member may have in front of its contents: headers, long names. Ends the reading of hostile names.
const MAX_HEADER_BYTES: u64 = 256 << 10;
/// Read at once around a header: the caption between two pictures comes with it.
const WINDOW: u64 = 4096;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A link, a device, a sparse file.
    Other,
}

/// One member.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Its contents, inside the file.
    pub(super) span: Span,
}

/// Why there is no next member.
#[derive(Debug)]
pub(super) enum Stop {
    /// The archive has ended as it should.
    End,
    /// The archive has ended otherwise.
    Broken(SkipReason),
    /// The disk failed: that says nothing of the archive.
    Disk(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

const CORRUPT: Stop = Stop::Broken(SkipReason::ShardCorrupt);

/// See the module.
pub(super) struct Headers<'a> {
    file: &'a dyn FileExt,
    length: u64,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
}

/// What headers of their own said of the member behind them.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    records: bool,
    size: Option<u64>,
    sparse: bool,
}

impl<'a> Headers<'a> {
    /// Of the tar in `file`, which has `length` bytes.
    pub(super) fn new(file: &'a dyn FileExt, length: u64) -> Self {
        Self { file, length, position: 0, window: Vec::new(), window_start: 0 }
    }

    /// The next member; its contents are skipped.
    pub(super) fn next(&mut self) -> Result<Member, Stop> {
        let start = self.position;
        let mut said = Said::default();
        loop {
            if self.position - start > MAX_HEADER_BYTES {
                return Err(CORRUPT);
            }
            let Some(header) = self.header()? else {
                // What was said was of a member that is not there.
                let said_any = said.name.is_some() || said.records;
                return Err(if said_any { CORRUPT } else { Stop::End });
            };
            let size = header.entry_size().map_err(|_| CORRUPT)?;
            match header.entry_type().as_byte() {
                b'L' => said.long_name(self.body(size)?)?,
                b'K' => drop(self.body(size)?), // where a link leads
                b'x' | b'X' => said.records(self.body(size)?)?,
                b'g' => of_all_members(self.body(size)?)?,
                _ => return self.member(&header, said.size.unwrap_or(size), said),
            }
        }
    }

    fn member(&mut self, header: &tar::Header, size: u64, said: Said) -> Result<Member, Stop> {
        let kind = header.entry_type();
        if kind.is_gnu_sparse() && header.as_bytes()[482] != 0 {
            self.skip_sparse_map()?;
        }
        // A size beside these is of what they stand for; nothing lies behind the header.
        let empty = kind.is_dir() || kind.is_hard_link() || kind.is_symlink() || is_device(kind);
        let span = Span { offset: self.position, size: if empty { 0 } else { size } };
        let after = span.offset.checked_add(span.size).filter(|&after| after <= self.length);
        let after = after.ok_or(Stop::Broken(SkipReason::MemberTruncated))?;
        // Beyond the end of the file: then there is no next header, and that is what is told.
        self.position = after.checked_next_multiple_of(BLOCK).ok_or(CORRUPT)?;
        let kind = match () {
            () if kind.is_dir() => Kind::Folder,
            () if (kind.is_file() || kind.is_contiguous()) && !said.sparse => Kind::File,
            () => Kind::Other,
        };
        let name = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
        Ok(Member { name, kind, span })
    }

    /// The header here; `None` for the zeros that end an archive.
    fn header(&mut self) -> Result<Option<tar::Header>, Stop> {
        if self.length < self.position.saturating_add(BLOCK) {
            return Err(Stop::Broken(SkipReason::ShardTruncated));
        }
        let block = self.bytes(BLOCK)?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = block[148..156].iter().map(|&byte| u32::from(byte)).sum();
        // The sum counts its own field as spaces.
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(CORRUPT);
        }
        Ok(Some(header))
    }

    /// The contents of a header that speaks of another one.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, Stop> {
        if size > MAX_HEADER_BYTES {
            return Err(CORRUPT);
        }
        if self.position + size > self.length {
            return Err(Stop::Broken(SkipReason::MemberTruncated));
        }
        let start = self.position;
        let bytes = self.bytes(size)?.to_vec();
        self.position = (start + size).next_multiple_of(BLOCK);
        Ok(bytes)
    }

    /// The rest of the map of an old GNU sparse file stands in blocks of their own behind its header.
    fn skip_sparse_map(&mut self) -> Result<(), Stop> {
        let start = self.position;
        loop {
            if self.position + BLOCK > self.length {
                return Err(Stop::Broken(SkipReason::MemberTruncated));
            }
            if self.bytes(BLOCK)?[504] == 0 {
                return Ok(());
            }
            if self.position - start > MAX_HEADER_BYTES {
                return Err(CORRUPT);
            }
        }
    }

    /// The next `count` bytes, which lie inside the file. Small reads come out of a window.
    fn bytes(&mut self, count: u64) -> io::Result<&[u8]> {
        let inside = self.position.checked_sub(self.window_start);
        let inside = inside.filter(|at| at + count <= self.window.len() as u64);
        if inside.is_none() {
            let ahead = (self.length - self.position).min(WINDOW.max(count));
            self.window.resize(ahead as usize, 0);
            self.file.read_exact_at(&mut self.window, self.position)?;
            self.window_start = self.position;
        }
        self.position += count;
        let from = inside.unwrap_or(0) as usize;
        Ok(&self.window[from..from + count as usize])
    }
}

fn is_device(kind: tar::EntryType) -> bool {
    kind.is_character_special() || kind.is_block_special() || kind.is_fifo()
}

/// A header of records for all members that are to come: comments, times. It cannot name them all, nor say how long they
/// all are, and readers disagree about one that does.
fn of_all_members(body: Vec<u8>) -> Result<(), Stop> {
    let records = records(&body).ok_or(CORRUPT)?;
    let harmless = records.path.is_none() && records.size.is_none() && !records.sparse;
    if harmless { Ok(()) } else { Err(CORRUPT) }
}

impl Said {
    /// What stands first counts: it speaks of all that is behind it.
    fn long_name(&mut self, mut body: Vec<u8>) -> Result<(), Stop> {
        body.truncate(body.iter().position(|&byte| byte == 0).unwrap_or(body.len()));
        self.name.get_or_insert(body);
        Ok(())
    }

    fn records(&mut self, body: Vec<u8>) -> Result<(), Stop> {
        // Two for one member: readers disagree about which one counts.
        if self.records {
            return Err(CORRUPT);
        }
        let found = records(&body).ok_or(CORRUPT)?;
        self.records = true;
        (self.size, self.sparse) = (found.size, found.sparse);
        if let Some(path) = found.path {
            self.name.get_or_insert_with(|| path.to_vec());
        }
        Ok(())
    }
}
