//! Every sample of some shards is read and decoded once: what is bad, what is there, what is there twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::ToolError;
use super::make::jpeg;
use super::statistics::Statistics;
use crate::counters::Counters;
use crate::decode::{DecodeOptions, Decoded, decode};
use crate::error::SampleError;
use crate::index::Index;
use crate::ordered::Ordered;
use crate::resize::{Crop, bicubic};
use crate::sample::Captions;

/// Finished samples that each thread may hold.
const SAMPLES_AHEAD: usize = 16;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Bad samples, and groups of duplicates, that are kept by name.
const NAMED: usize = 50;
/// Longest side of a thumbnail.
const THUMBNAIL: usize = 160;

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// Numbers over the good samples.
    pub statistics: Statistics,
    /// What is wrong, by shard and reason: what the index found, and what did not decode. `seen` counts all.
    pub problems: Counters,
    /// The first bad samples.
    pub bad: Vec<SampleError>,
    /// Pictures that are there more than once.
    pub duplicates: Duplicates,
    /// The samples that were asked for by number, where they are good.
    pub shown: Vec<Shown>,
}

/// Pictures that are there more than once.
#[derive(Debug, Default)]
pub struct Duplicates {
    /// Samples whose image file has the bytes of an earlier one.
    pub same_bytes: u64,
    /// Samples whose picture looks like an earlier one (equal 64-bit difference hash), with other bytes.
    pub same_look: u64,
    /// The first of both, as (key, key of the earlier one).
    pub pairs: Vec<(String, String)>,
}

/// One sample for the page.
#[derive(Debug)]
pub struct Shown {
    /// Its key.
    pub key: String,
    /// Columns and rows.
    pub size: [usize; 2],
    /// What is said about it.
    pub captions: Captions,
    /// A small JPEG.
    pub thumbnail: Vec<u8>,
}

/// One good sample.
struct Facts {
    size: [usize; 2],
    bytes: u64,
    captions: Captions,
    digest: [u8; 32],
    look: u64,
    thumbnail: Option<Vec<u8>>,
}

/// Looks at every sample on `workers` threads. `show` samples, evenly spread, are kept with thumbnails.
///
/// Errors: a thread that panicked. Whatever the data is, it is counted.
pub fn survey(
    index: &Arc<Index>,
    workers: usize,
    show: usize,
    say: &dyn Fn(&str),
) -> Result<Survey, ToolError> {
    let mut found = Survey { problems: index.problems().clone(), ..Survey::default() };
    found.statistics.shards = index.num_shards() as u64;
    let every = index.len().div_ceil(show.max(1)).max(1);
    let shown = move |number: usize| show > 0 && number.is_multiple_of(every);
    let samples = {
        let index = Arc::clone(index);
        let look = move |number: u64| {
            let number = usize::try_from(number).ok().filter(|&number| number < index.len())?;
            Some(look_at(&index, number, shown(number)))
        };
        Ordered::start("survey", workers, SAMPLES_AHEAD, look)?
    };
    let mut earlier = Earlier::default();
    let (start, mut said) = (Instant::now(), Instant::now());
    for (number, sample) in samples.enumerate() {
        match sample? {
            Ok(facts) => found.add(index, number, facts, &mut earlier),
            Err(error) => {
                found.problems.add_error(&error);
                if found.bad.len() < NAMED {
                    found.bad.push(error);
                }
            }
        }
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let rate = (number + 1) as f64 / start.elapsed().as_secs_f64();
            say(&format!("{} of {} samples, {rate:.0} a second", number + 1, index.len()));
        }
    }
    Ok(found)
}

/// First samples by content and by look.
#[derive(Default)]
struct Earlier {
    bytes: HashMap<[u8; 32], usize>,
    looks: HashMap<u64, usize>,
}

impl Survey {
    /// Numbers, problems and duplicates as one JSON object.
    pub fn json(&self) -> serde_json::Value {
        let mut all = self.problems_json();
        all["statistics"] = self.statistics.json();
        let Duplicates { same_bytes, same_look, .. } = self.duplicates;
        all["duplicates"] = serde_json::json!({"same_bytes": same_bytes, "same_look": same_look});
        all
    }

    /// What is wrong, by reason and by shard, as one JSON object.
    pub fn problems_json(&self) -> serde_json::Value {
        let by_shard: Vec<_> = self.problems.skipped.iter()
            .map(|((shard, reason), count)| serde_json::json!({"shard": &**shard, "reason": reason, "count": count}))
            .collect();
        let by_reason: serde_json::Map<_, _> = self
            .problems
            .by_reason()
            .into_iter()
            .map(|(reason, count)| (reason.to_string(), count.into()))
            .collect();
        serde_json::json!({
            "good": self.statistics.samples, "left_out": self.problems.total(),
            "by_reason": by_reason, "by_shard": by_shard,
        })
    }

    fn add(&mut self, index: &Index, number: usize, facts: Facts, earlier: &mut Earlier) {
        let entry = index.entry(number);
        self.statistics.add(facts.size, facts.bytes, entry.image_kind, &facts.captions);
        let same_bytes = *earlier.bytes.entry(facts.digest).or_insert(number);
        let same_look = *earlier.looks.entry(facts.look).or_insert(number);
        let before = if same_bytes < number {
            self.duplicates.same_bytes += 1;
            Some(same_bytes)
        } else if same_look < number {
            self.duplicates.same_look += 1;
            Some(same_look)
        } else {
            None
        };
        if let Some(before) = before.filter(|_| self.duplicates.pairs.len() < NAMED) {
            self.duplicates.pairs.push((entry.key.to_string(), index.entry(before).key.to_string()));
        }
        if let Some(thumbnail) = facts.thumbnail {
            let (key, size, captions) = (entry.key.to_string(), facts.size, facts.captions);
            self.shown.push(Shown { key, size, captions, thumbnail });
        }
    }
}

fn look_at(index: &Index, number: usize, shown: bool) -> Result<Facts, SampleError> {
    let sample = index.read(number)?;
    let decoded = decode(&sample.image, &DecodeOptions::default())
        .map_err(|reason| index.sample_error(number, reason))?;
    Ok(Facts {
        size: [decoded.width, decoded.height],
        bytes: sample.image.len() as u64,
        captions: sample.captions,
        digest: Sha256::digest(&sample.image).into(),
        look: difference_hash(&decoded),
        thumbnail: if shown { thumbnail(&decoded) } else { None },
    })
}

fn whole(decoded: &Decoded) -> Crop {
    Crop { top: 0, left: 0, height: decoded.height, width: decoded.width }
}

/// One bit for each neighbouring pair of a 9x8 grey picture: whether it gets lighter to the right.
fn difference_hash(decoded: &Decoded) -> u64 {
    let small = bicubic(&decoded.rgb, decoded.width, whole(decoded), 9, 8);
    let grey: Vec<u32> =
        small.chunks_exact(3).map(|pixel| pixel.iter().map(|&value| u32::from(value)).sum()).collect();
    let pairs = grey.chunks_exact(9).flat_map(|row| row.windows(2));
    pairs.fold(0, |bits, pair| bits << 1 | u64::from(pair[0] < pair[1]))
}

fn thumbnail(decoded: &Decoded) -> Option<Vec<u8>> {
    let long = decoded.width.max(decoded.height);
    let side = |length: usize| (length * THUMBNAIL.min(long) / long).max(1);
    let (width, height) = (side(decoded.width), side(decoded.height));
    jpeg(&bicubic(&decoded.rgb, decoded.width, whole(decoded), width, height), width, height, 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_sees_the_picture_and_not_its_size() {
        let picture = |side: usize, slope: usize| {
            let rgb = (0..side * side)
                .flat_map(|at| [(at % side * slope / side) as u8, 0, (at / side * 90 / side) as u8]);
            Decoded { width: side, height: side, rgb: rgb.collect() }
        };
        assert_eq!(difference_hash(&picture(90, 200)), difference_hash(&picture(45, 200)));
        let mirrored = {
            let mut picture = picture(90, 200);
            crate::augment::flip(&mut picture.rgb, 90);
            picture
        };
        assert_ne!(difference_hash(&picture(90, 200)), difference_hash(&mirrored));
    }
}
