//! The frozen encoder's features of every picture, computed once and kept on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use collectives::{CommError, ProcessGroup};
use crossbeam_channel::{Receiver, Sender, bounded};
use data::{Index, Pixels, SampleError, SkipReason, Transform};
use model::VisionEncoder;
use monitor::Phase;
use tch::{Device, Kind, Tensor};

use crate::agree::{same_name, union};
use crate::corpus::Corpus;
use crate::error::TrainError;
use crate::feature_file::{FeatureFile, FeatureShape};
use crate::session::Session;

/// Decoded pictures that may wait for the encoder.
const PICTURES_AHEAD: usize = 64;

/// The encoder with all that its features depend on.
pub struct Encoder {
    /// Frozen.
    pub vision: VisionEncoder,
    /// Digest of its weights alone.
    pub weights_digest: String,
    /// Digest of all that its features depend on: weights, architecture, kind of device.
    pub digest: String,
    /// Decode, augment, normalise.
    pub transform: Arc<Transform>,
}

/// One view of one sample, or why there is none.
type View = (usize, usize, Result<Pixels, SampleError>);

impl Encoder {
    /// The samples of `patterns` with `views` augmented views beside the plain one; features come from the cache where
    /// they are in it, and are computed by all ranks together where not.
    ///
    /// # Errors
    /// [`TrainError::Data`] for shards that cannot be used, [`TrainError::Write`] when the cache cannot be kept.
    pub fn corpus(
        &self,
        session: &mut Session,
        patterns: &[String],
        views: usize,
    ) -> Result<Corpus, TrainError> {
        let cache = &session.plan.config.data.source.cache;
        let index = Arc::new(cache.open(&[patterns.to_vec()])?);
        let path = self.path(session, &index, views);
        agree_on_file(session.group.as_ref(), &path)?;
        let limit = session.plan.config.data.max_skipped_ratio;
        // All ranks see the same shards, and need not encode them for hours to be refused then.
        index.check(limit)?;
        let found = FeatureFile::open(&path)?;
        let missing = missing(session.group.as_ref(), index.len(), found.as_ref())?;
        let features = match found {
            Some(features) if missing.is_empty() => features,
            partial => {
                let known = partial.into_iter().flat_map(|features| features.shape.bad);
                let bad = known.filter(|sample| missing.binary_search(sample).is_err()).collect();
                let shape = self.shape(session, index.len(), views + 1, bad);
                self.fill(session, &index, &path, &missing, shape)?
            }
        };
        let corpus = Corpus::new(index, features, &self.transform, session.group.as_ref(), limit)?;
        session.tell_left_out("features", &corpus.skipped);
        Ok(corpus)
    }

    fn path(&self, session: &Session, index: &Index, views: usize) -> PathBuf {
        let transform = serde_json::to_string(self.transform.config()).unwrap_or_default();
        let seed = if views > 0 { session.plan.config.run.seed } else { 0 };
        let all = format!("{} {transform} {} {views} {seed}", self.digest, index.digest());
        let name = &blake3::hash(all.as_bytes()).to_hex()[..24];
        session.plan.features.dir.join(format!("{name}.features"))
    }

    fn shape(&self, session: &Session, samples: usize, views: usize, bad: Vec<usize>) -> FeatureShape {
        let [tokens, width] = self.vision.output_shape(session.plan.config.data.transform.image_size as i64);
        FeatureShape { samples, views, tokens, width, bad, unread: Vec::new() }
    }

    /// Every rank encodes its share of the missing samples into one file, which may hold the others already.
    fn fill(
        &self,
        session: &mut Session,
        index: &Arc<Index>,
        path: &Path,
        missing: &[usize],
        mut shape: FeatureShape,
    ) -> Result<FeatureFile, TrainError> {
        let (rank, world_size) = (session.plan.world.rank, session.plan.world.world_size);
        let own: Vec<usize> = missing.iter().copied().skip(rank).step_by(world_size).collect();
        let (samples, views) = (shape.samples, shape.views);
        let file = FeatureFile::create(path, shape.clone())?;
        session.metrics.begin_phase(Phase::Features, (own.len() * views) as u64, 0);
        let mut left_out = self.encode(session, index, &own, views, &file)?;
        session.metrics.end_phase();
        file.sync()?;
        left_out.bad.append(&mut shape.bad);
        shape.bad = union(session.group.as_ref(), samples, &left_out.bad)?;
        shape.unread = union(session.group.as_ref(), samples, &left_out.unread)?;
        if session.is_rank0() {
            file.seal(&shape)?;
        }
        session.group.barrier()?;
        FeatureFile::open(path)?.ok_or_else(|| TrainError::NotShared {
            path: path.to_owned(),
            detail: "the feature file is not seen by every rank: put it on a shared disk".into(),
        })
    }

    /// Decodes on worker threads, encodes in batches here; returns the samples that gave no picture.
    fn encode(
        &self,
        session: &mut Session,
        index: &Arc<Index>,
        own: &[usize],
        views: usize,
        file: &FeatureFile,
    ) -> Result<LeftOut, TrainError> {
        let config = session.plan.config.data.clone();
        let (seed, device) = (session.plan.config.run.seed, session.plan.device);
        let encode_batch = session.plan.features.batch;
        let (work_in, work_out) = bounded::<usize>(own.len().max(1));
        let (views_in, views_out) = bounded::<View>(PICTURES_AHEAD);
        for &sample in own {
            // The channel is as long as the work: this never waits.
            let _ = work_in.send(sample);
        }
        drop(work_in);
        std::thread::scope(|scope| {
            for _ in 0..config.workers.max(1) {
                let (work, done) = (work_out.clone(), views_in.clone());
                let transform = &self.transform;
                scope.spawn(move || decode_views(index, transform, seed, views, &work, &done));
            }
            drop(views_in);
            let mut sink = Sink {
                encoder: self,
                file,
                device,
                batch: Vec::new(),
                left_out: LeftOut::default(),
                done: 0,
            };
            let started = Instant::now();
            // By value: where this returns early, the channel ends with it, and so do the workers.
            for view in views_out {
                session.check_stop(Phase::Features)?;
                if sink.take(view, encode_batch)? {
                    session.metrics.progress(sink.done, sink.done as f64 / started.elapsed().as_secs_f64());
                }
            }
            sink.flush()?;
            Ok(sink.left_out)
        })
    }
}

/// A worker: one sample after another, all its views. A closed channel ends it.
fn decode_views(
    index: &Index,
    transform: &Transform,
    seed: u64,
    views: usize,
    work: &Receiver<usize>,
    done: &Sender<View>,
) {
    for sample in work {
        let decoded = match decode_sample(index, sample, transform) {
            Ok(decoded) => decoded,
            Err(error) => {
                if done.send((sample, 0, Err(error))).is_err() {
                    return;
                }
                continue;
            }
        };
        for view in 0..views {
            let pixels = match view {
                0 => transform.eval(&decoded),
                _ => transform.train(&decoded, seed, sample as u64, view as u64),
            };
            if done.send((sample, view, Ok(pixels))).is_err() {
                return;
            }
        }
    }
}

/// Collects views into batches for the encoder.
struct Sink<'a> {
    encoder: &'a Encoder,
    file: &'a FeatureFile,
    device: Device,
    batch: Vec<(usize, usize, Pixels)>,
    left_out: LeftOut,
    done: u64,
}

/// Samples that gave no picture.
#[derive(Default)]
struct LeftOut {
    /// Their bytes are no picture, now and for ever.
    bad: Vec<usize>,
    /// Their bytes could not be read this time.
    unread: Vec<usize>,
}

impl Sink<'_> {
    /// True where a batch was encoded.
    fn take(&mut self, (sample, view, pixels): View, batch: usize) -> Result<bool, TrainError> {
        match pixels {
            Ok(pixels) => self.batch.push((sample, view, pixels)),
            Err(error) if error.reason == SkipReason::Unreadable => self.left_out.unread.push(sample),
            Err(_) => self.left_out.bad.push(sample),
        }
        if self.batch.len() < batch {
            return Ok(false);
        }
        self.flush()?;
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        let Some((_, _, first)) = self.batch.first() else { return Ok(()) };
        let side = first.size as i64;
        let values: Vec<Tensor> = self
            .batch
            .iter()
            .map(|(_, _, pixels)| Tensor::from_slice(&pixels.values).view([3, side, side]))
            .collect();
        let pixels = Tensor::stack(&values, 0).to_device(self.device);
        let features = tch::no_grad(|| self.encoder.vision.forward(&pixels)).to_kind(Kind::Half);
        for (i, (sample, view, _)) in self.batch.iter().enumerate() {
            self.file.write(*sample, *view, &features.get(i as i64))?;
        }
        self.done += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

/// The picture of `sample`, or why it cannot be used.
pub(crate) fn decode_sample(
    index: &Index,
    sample: usize,
    transform: &Transform,
) -> Result<data::Decoded, SampleError> {
    let bytes = index.read_image(sample)?;
    data::decode(&bytes, &transform.decode_options()).map_err(|reason| index.sample_error(sample, reason))
}

/// All ranks see the same samples and the same encoder: else their rows would not belong together.
fn agree_on_file(group: &dyn ProcessGroup, path: &Path) -> Result<(), TrainError> {
    if same_name(group, path.file_name().unwrap_or_default().as_encoded_bytes())? {
        return Ok(());
    }
    let detail = format!(
        "rank {} names it so, others by other shards, weights or transforms: all ranks need the same files",
        group.rank()
    );
    Err(TrainError::NotShared { path: path.to_owned(), detail })
}

/// Samples whose rows some rank does not see: all without a complete file, else those that could not be read last time.
fn missing(
    group: &dyn ProcessGroup,
    samples: usize,
    found: Option<&FeatureFile>,
) -> Result<Vec<usize>, CommError> {
    match found {
        Some(features) => union(group, samples, &features.shape.unread),
        None => union(group, samples, &(0..samples).collect::<Vec<_>>()),
    }
}
