//! What ends a run ([`DataError`]) and what costs one sample ([`SampleError`]).

use std::fmt;
use std::sync::Arc;

/// Errors that no skipping cures, named by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The config names shards in a way that cannot be read. Caller: give up, the config is wrong.
    #[error("shard pattern {pattern:?}: {problem}")]
    Pattern {
        /// The pattern as it was written.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A named shard is not there. Caller: give up, the config or the data set is wrong.
    #[error("shard {shard} does not exist")]
    ShardMissing {
        /// Path of the shard.
        shard: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A remote object, or a copy of one, is not what it was when the run first read it. Caller: give up, the data
    /// set was changed under the run.
    #[error("shard {shard} has changed: {problem}; restore it, or make the index again and start a new run")]
    ShardChanged {
        /// Name of the shard.
        shard: String,
        /// What differs.
        problem: String,
    },
    /// Every set of a mixture has given the epochs that it may. Caller: end the run, or lower its steps.
    #[error("the data ends after {samples} samples; raise `epochs` of a set, or train fewer steps")]
    Exhausted {
        /// How many samples the order holds.
        samples: u64,
    },
    /// A shard exists and could not be read. Caller: look at the disk or the server, then restart the run.
    #[error("shard {shard} could not be read")]
    Unreadable {
        /// Path of the shard.
        shard: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An index file or a cached shard cannot be written. Caller: look at the disk, then run again.
    #[error("{} could not be written", path.display())]
    Unwritable {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no memory for a batch. Caller: ask for less, or for a machine with more.
    #[error("no memory for a batch of {bytes} bytes; lower the batch size or `data.workers`")]
    Memory {
        /// What its pixels need.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The shards hold not one usable sample. Caller: give up, the data set is wrong.
    #[error("no usable sample in {shards} shard(s) of {patterns:?}; problems: {problems}")]
    Empty {
        /// The patterns that were opened.
        patterns: Vec<String>,
        /// How many shards they named.
        shards: usize,
        /// Counted problems, readable.
        problems: String,
    },
    /// More samples were bad than the config allows. Caller: do not retry, mend the named shards.
    #[error(
        "{skipped} of {seen} samples were skipped, more than max_skipped_ratio {limit}; by shard and reason: {worst}"
    )]
    TooManySkipped {
        /// Samples skipped so far.
        skipped: u64,
        /// Samples looked at so far.
        seen: u64,
        /// The configured `max_skipped_ratio`.
        limit: f64,
        /// The shards with the most skips, with reasons.
        worst: String,
    },
    /// More shards than the config allows samples gave nothing at all: nobody can count what was in them. Caller: do not
    /// retry, mend the named shards.
    #[error(
        "{lost} of {shards} shards hold nothing that can be read, more than max_skipped_ratio {limit}: {names}"
    )]
    ShardsLost {
        /// Shards that gave no sample because they are broken.
        lost: usize,
        /// All shards.
        shards: usize,
        /// The configured `max_skipped_ratio`.
        limit: f64,
        /// The first of them, with reasons.
        names: String,
    },
    /// A shard holds more members than are read of one. Caller: give up, split the shard.
    #[error("shard {shard} holds more than {most} files; split it")]
    ShardTooLarge {
        /// Name of the shard.
        shard: String,
        /// [`crate::scan::MAX_MEMBERS`].
        most: usize,
    },
    /// A value of this crate's config cannot be used. Caller: give up, the config is wrong.
    #[error("{key}: {problem}")]
    Config {
        /// Key of the config, dotted.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// A vocabulary or tokenizer file cannot be used. Caller: give up, the file is wrong.
    #[error("tokenizer {path}: {problem}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A loader thread panicked or vanished: our bug. Caller: end the run with this message.
    #[error("loader thread {worker} ended: {message}")]
    Worker {
        /// Name of the thread.
        worker: String,
        /// The panic's message.
        message: String,
    },
}

impl DataError {
    /// True where a disk or a server is the cause: another try may end well, and nobody need mend config or data.
    #[must_use]
    pub fn is_of_disk_or_server(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::Unwritable { .. })
    }
}

/// One sample that cannot be used; counted, then replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sample {} of shard {shard}: {reason}", key.escape_debug())]
pub struct SampleError {
    /// Path of the shard.
    pub shard: Arc<str>,
    /// Key of the sample inside the shard.
    pub key: String,
    /// Why it cannot be used.
    pub reason: SkipReason,
}

/// Why a sample, or a part of a shard, was left out. The names are stable: metrics and summaries carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// An image without a `.txt` or `.json` beside it.
    CaptionMissing,
    /// A caption without an image beside it.
    ImageMissing,
    /// A key that was seen before, in this shard or an earlier one; the first wins.
    DuplicateKey,
    /// The whole file is no tar: empty, compressed, or without a valid first header.
    ShardNotTar,
    /// The shard ends without its end-of-archive block; what was whole is kept.
    ShardTruncated,
    /// The last member of the shard is cut off.
    MemberTruncated,
    /// A header in the middle of the shard is broken; what came before it is kept.
    ShardCorrupt,
    /// The shard holds more members than [`crate::scan::MAX_MEMBERS`]; [`crate::Index::open`] refuses it.
    ShardTooLarge,
    /// A link, device or sparse entry.
    EntryUnsupported,
    /// The bytes could not be read from the disk.
    Unreadable,
    /// The `.txt` is not UTF-8.
    CaptionNotUtf8,
    /// The caption holds nothing but white space.
    CaptionEmpty,
    /// The caption file is larger than [`crate::sample::MAX_CAPTION_BYTES`].
    CaptionTooLarge,
    /// The `.json` cannot be parsed, or has no usable `caption`.
    CaptionJsonInvalid,
    /// The bytes are none of JPEG, PNG, WebP.
    ImageFormatUnknown,
    /// The image's header asks for more than `max_pixels`.
    ImageTooLarge,
    /// The image does not decode.
    ImageCorrupt,
}

impl SkipReason {
    /// True of what ends the reading of a shard: nobody can count what stood behind it.
    #[must_use]
    pub fn ends_a_shard(self) -> bool {
        matches!(self, Self::ShardNotTar | Self::ShardTruncated | Self::MemberTruncated | Self::ShardCorrupt)
    }

    /// The stable `snake_case` name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CaptionMissing => "caption_missing",
            Self::ImageMissing => "image_missing",
            Self::DuplicateKey => "duplicate_key",
            Self::ShardNotTar => "shard_not_tar",
            Self::ShardTruncated => "shard_truncated",
            Self::MemberTruncated => "member_truncated",
            Self::ShardCorrupt => "shard_corrupt",
            Self::ShardTooLarge => "shard_too_large",
            Self::EntryUnsupported => "entry_unsupported",
            Self::Unreadable => "unreadable",
            Self::CaptionNotUtf8 => "caption_not_utf8",
            Self::CaptionEmpty => "caption_empty",
            Self::CaptionTooLarge => "caption_too_large",
            Self::CaptionJsonInvalid => "caption_json_invalid",
            Self::ImageFormatUnknown => "image_format_unknown",
            Self::ImageTooLarge => "image_too_large",
            Self::ImageCorrupt => "image_corrupt",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
