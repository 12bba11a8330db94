//! The stream of one rank's batches, made ahead by threads and delivered in order.
//!
//! Batch `k` of the run covers the positions `[start + k G, start + (k + 1) G)` with `G = global_batch`; each rank
//! takes its [`rank_slice`]. A bad sample is counted once, where the order asked for it, and replaced by a good one of
//! its set: which one that is depends on the sample alone, so it is the same at any world size, and every rank keeps its
//! batch size.

use std::cell::RefCell;
use std::fs::File;
use std::iter::once;
use std::sync::Arc;

use crate::batch::{Batch, Cursor};
use crate::caption::{MAX_WORDS, TextPolicy, blip_caption};
use crate::counters::Counters;
use crate::error::{DataError, SkipReason};
use crate::index::Index;
use crate::order::{Order, SampleRef, rank_slice};
use crate::ordered::Ordered;
use crate::prefetch::Prefetch;
use crate::room::Rooms;
use crate::sample::{self, Failed};
use crate::stand_in::{KnownBad, stand_ins};
use crate::transform::Transform;

/// Finished batches that each thread may hold.
const BATCHES_AHEAD: usize = 2;

/// What a loader reads, and which part of it is ours.
#[derive(Debug, Clone)]
pub struct LoaderSpec {
    /// The samples.
    pub index: Arc<Index>,
    /// Their order, over exactly `index.len()` samples.
    pub order: Arc<Order>,
    /// Names the random draws, see [`crate::rng`].
    pub seed: u64,
    /// How pictures become pixels; `None` leaves them alone (the caller has cached features).
    pub transform: Option<Arc<Transform>>,
    /// Which text a sample shows.
    pub text: TextPolicy,
    /// Of a list of captions, only the first so many are drawn from (2 for BLIP-2's CapFilt lists); `None`: all.
    pub first_captions: Option<usize>,
    /// Words kept of a text.
    pub max_words: usize,
    /// Our rank, below `world_size`.
    pub rank: usize,
    /// Ranks that read this stream together.
    pub world_size: usize,
    /// Samples of all ranks together in one batch, at least one for each rank. Ranks whose shares differ differ by
    /// one sample.
    pub global_batch: usize,
    /// Where to start: 0, or the position of a [`Cursor`].
    pub start_position: u64,
    /// Threads; at least one is started.
    pub workers: usize,
    /// Remote shards fetched ahead of the order, block by block; 0 fetches each when it is needed.
    pub shards_ahead: usize,
    /// The run ends when more than this share of the samples seen was skipped.
    pub max_skipped_ratio: f64,
    /// Whether this loader ends it. Where several ranks share a stream, their caller sums what each has skipped
    /// ([`Batch::counters`]) and judges for all, so that the number of ranks decides nothing.
    pub judges: bool,
}

/// A stream of one rank's batches; endless, unless the order has an end.
#[derive(Debug)]
pub struct Loader {
    batches: Ordered<Result<Batch, DataError>>,
    counters: Counters,
    /// `None`: the caller judges.
    max_skipped_ratio: Option<f64>,
    prefetch: Prefetch,
    index: Arc<Index>,
}

impl Loader {
    /// Starts the threads.
    ///
    /// Errors: a spec that names no batch; an index with more problems than `max_skipped_ratio` allows
    /// ([`Index::check`]).
    pub fn start(spec: LoaderSpec) -> Result<Self, DataError> {
        spec.check()?;
        spec.index.check(spec.max_skipped_ratio)?;
        let max_skipped_ratio = spec.judges.then_some(spec.max_skipped_ratio);
        let mut prefetch = Prefetch::start(&spec.index, &spec.order, spec.shards_ahead)?;
        prefetch.reach(spec.start_position);
        let (workers, index) = (spec.workers, Arc::clone(&spec.index));
        // Of each thread one batch is being made and one is in use.
        let rooms = Rooms::new(workers.max(1) * (BATCHES_AHEAD + 2));
        let known = KnownBad::default();
        let make = move |number| Some(spec.batch(number, &rooms, &known));
        let batches = Ordered::start("data", workers, BATCHES_AHEAD, make)?;
        Ok(Self { batches, counters: Counters::default(), max_skipped_ratio, prefetch, index })
    }

    /// The next batch. Errors end the stream: [`DataError::TooManySkipped`] names the worst shards,
    /// [`DataError::Exhausted`] says that the order has ended, [`DataError::Unreadable`] that a disk or a server
    /// gave up.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        self.next_batch_while(&|| {})
    }

    /// As [`Loader::next_batch`]; `alive` is called after each second in which the thread that makes the batch waits for
    /// a remote shard that has yet to use up its time. Who is silent hangs elsewhere.
    pub fn next_batch_while(&mut self, alive: &dyn Fn()) -> Result<Batch, DataError> {
        let ended = || DataError::Worker { worker: "data".into(), message: "the stream has ended".into() };
        self.batches.wait(&|thread| self.index.waits_for_server(thread), alive);
        let batch = self.batches.next().unwrap_or_else(|| Err(ended()))??;
        self.prefetch.reach(batch.cursor.position);
        self.counters.merge(&batch.counters);
        self.max_skipped_ratio.map_or(Ok(()), |limit| self.counters.check(limit))?;
        Ok(batch)
    }

    /// What was skipped in the batches delivered so far, of this rank.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// What a sample shows beside its picture.
struct Shown {
    text: String,
    image_id: Option<String>,
}

impl LoaderSpec {
    /// One rank, one thread, one sample a batch, captions as they are, no pixels, no bad sample borne; the rest is
    /// for the caller to set.
    pub fn new(index: Arc<Index>, order: Arc<Order>, seed: u64) -> Self {
        Self {
            index,
            order,
            seed,
            transform: None,
            text: TextPolicy::Label,
            first_captions: None,
            max_words: MAX_WORDS,
            rank: 0,
            world_size: 1,
            global_batch: 1,
            start_position: 0,
            workers: 1,
            shards_ahead: 0,
            max_skipped_ratio: 0.0,
            judges: true,
        }
    }

    fn check(&self) -> Result<(), DataError> {
        self.text.check()?;
        let rules = [
            (self.rank < self.world_size, "rank", "must be below world_size"),
            (
                self.global_batch >= self.world_size.max(1),
                "global_batch",
                "must hold a sample for each rank; make it larger or start fewer ranks",
            ),
            (self.first_captions != Some(0), "first_captions", "must not be 0"),
            (
                self.order.num_samples() == self.index.len(),
                "order",
                "is over another number of samples than the index",
            ),
            ((0.0..=1.0).contains(&self.max_skipped_ratio), "max_skipped_ratio", "must be 0 to 1"),
        ];
        for (holds, key, problem) in rules {
            if !holds {
                return Err(DataError::Config { key: format!("data.{key}"), problem: problem.to_owned() });
            }
        }
        Ok(())
    }

    /// Our part of batch `number`.
    fn batch(&self, number: u64, rooms: &Rooms, known: &KnownBad) -> Result<Batch, DataError> {
        let first = self.start_position + number * self.global_batch as u64;
        let end = first + self.global_batch as u64;
        if let Some(samples) = self.order.end().filter(|&samples| samples < end) {
            // All ranks see the same end, so none goes on alone with a part of a batch.
            return Err(DataError::Exhausted { samples });
        }
        let ours = rank_slice(self.global_batch, self.rank, self.world_size);
        let image_size = self.transform.as_ref().map_or(0, |transform| transform.config().image_size);
        let values = ours.len() * 3 * image_size * image_size;
        let room = self.transform.as_ref().map(|_| rooms.take(values));
        let mut batch = Batch {
            cursor: Cursor { position: end },
            image_size,
            pixels: room
                .transpose()
                .map_err(|source| DataError::Memory { bytes: values * size_of::<f32>(), source })?,
            ..Batch::default()
        };
        for place in self.order.slice(first + ours.start as u64, ours.len()) {
            self.add_sample(place, known, &mut batch)?;
        }
        Ok(batch)
    }

    /// Adds the sample at `place`, or what stands in for it.
    fn add_sample(&self, place: SampleRef, known: &KnownBad, batch: &mut Batch) -> Result<(), DataError> {
        batch.counters.seen += 1;
        let set = self.order.neighbours(place.index);
        let candidates = once(place.index).chain(stand_ins(&self.index, set, place.index));
        for (number, sample) in candidates.enumerate() {
            // Behind those of the samples that are there.
            let values = 3 * batch.image_size * batch.image_size;
            let first = batch.samples.len() * values;
            let pixels = batch.pixels.as_mut().map(|pixels| &mut pixels[first..first + values]);
            match self.try_sample(sample, place.epoch, known, pixels)? {
                Ok(Shown { text, image_id }) => {
                    batch.texts.push(text);
                    batch.image_ids.push(image_id);
                    batch.keys.push(self.index.entry(sample).key.to_string());
                    batch.samples.push(sample);
                    batch.drawn.push(place.index);
                    batch.epochs.push(place.epoch);
                    return Ok(());
                }
                Err(reason) if number == 0 => {
                    batch.counters.add(self.index.shard(self.index.entry(sample).shard), reason);
                }
                // Counted where the order asks for it.
                Err(_) => {}
            }
        }
        Err(batch.counters.too_many(self.max_skipped_ratio))
    }

    /// As [`LoaderSpec::example`], or why the sample is bad. Errors end the run: bytes that cannot be had make no bad
    /// sample, because other ranks may have them, and would see other batches.
    fn try_sample(
        &self,
        sample: usize,
        epoch: u64,
        known: &KnownBad,
        pixels: Option<&mut [f32]>,
    ) -> Result<Result<Shown, SkipReason>, DataError> {
        if let Some(reason) = known.reason(sample) {
            return Ok(Err(reason));
        }
        let shard = self.index.entry(sample).shard;
        let file = self.index.open_shard(shard)?;
        match self.example(&file, sample, epoch, pixels) {
            Ok(shown) => Ok(Ok(shown)),
            Err(Failed::Bad(reason)) => {
                known.add(sample, reason);
                Ok(Err(reason))
            }
            Err(Failed::Disk(source)) => {
                Err(DataError::Unreadable { shard: self.index.shard(shard).to_string(), source })
            }
        }
    }

    /// Text and name of one sample's picture in one epoch; that epoch's view is written to `pixels` `[3, S, S]`.
    fn example(
        &self,
        file: &File,
        number: usize,
        epoch: u64,
        pixels: Option<&mut [f32]>,
    ) -> Result<Shown, Failed> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::default();
        }
        let wanted = self.transform.as_ref().zip(pixels);
        BUFFER.with_borrow_mut(|buffer| {
            let members = self.index.members(file, number, [wanted.is_some(), true], buffer);
            let members = members.map_err(Failed::Disk)?;
            let mut captions = sample::captions(members)?;
            captions.captions.truncate(self.first_captions.unwrap_or(usize::MAX));
            let text = self.text.draw(&captions, self.seed, number as u64, epoch);
            let text = blip_caption(&text, self.max_words);
            if let Some((transform, pixels)) = wanted {
                transform.train_file(sample::image(members)?, self.seed, number as u64, epoch, pixels)?;
            }
            Ok(Shown { text, image_id: captions.image_id })
        })
    }
}
