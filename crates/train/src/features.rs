//! The frozen encoder's features of every picture, computed once and kept on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use data::{Index, Pixels, SampleError, Transform};
use model::VisionEncoder;
use monitor::Phase;
use tch::{Device, Kind, Tensor};

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
    pub transform: Transform,
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
        let index = Arc::new(Index::open(patterns)?);
        let path = self.path(session, &index, views);
        let features = match FeatureFile::open(&path)? {
            Some(features) => features,
            None => self.fill(session, &index, views + 1, &path)?,
        };
        let limit = session.plan.config.data.max_skipped_ratio;
        let corpus = Corpus::new(index, features, &self.transform, limit)?;
        if corpus.skipped.total() > 0 {
            let (count, worst) = (corpus.skipped.total(), corpus.skipped.worst(5));
            session.metrics.warn(format!("{count} of {} samples left out: {worst}", corpus.skipped.seen));
        }
        Ok(corpus)
    }

    fn path(&self, session: &Session, index: &Index, views: usize) -> PathBuf {
        let transform = serde_json::to_string(self.transform.config()).unwrap_or_default();
        let seed = if views > 0 { session.plan.config.run.seed } else { 0 };
        let all = format!("{} {transform} {} {views} {seed}", self.digest, index.digest());
        let name = &blake3::hash(all.as_bytes()).to_hex()[..24];
        session.plan.config.data.features.dir.join(format!("{name}.features"))
    }

    /// Every rank encodes its share of the samples into one file.
    fn fill(
        &self,
        session: &mut Session,
        index: &Arc<Index>,
        views: usize,
        path: &Path,
    ) -> Result<FeatureFile, TrainError> {
        let (rank, world_size) = (session.plan.world.rank, session.plan.world.world_size);
        let own: Vec<usize> = (0..index.len()).filter(|sample| sample % world_size == rank).collect();
        let [tokens, width] = self.vision.output_shape(session.plan.config.data.transform.image_size as i64);
        let mut shape = FeatureShape { samples: index.len(), views, tokens, width, bad: Vec::new() };
        let file = FeatureFile::create(path, shape.clone())?;
        session.metrics.begin_phase(Phase::Features, (own.len() * views) as u64, 0);
        let bad = self.encode(session, index, &own, views, &file)?;
        session.metrics.end_phase();
        shape.bad = gather_bad(session, index.len(), &bad)?;
        if session.is_rank0() {
            file.seal(&shape)?;
        }
        session.group.barrier()?;
        FeatureFile::open(path)?.ok_or_else(|| TrainError::Read {
            path: path.to_owned(),
            source: std::io::Error::other(
                "the feature file is not seen by every rank: put it on a shared disk",
            ),
        })
    }

    /// Decodes on worker threads, encodes in batches here; returns the samples that could not be decoded.
    fn encode(
        &self,
        session: &mut Session,
        index: &Arc<Index>,
        own: &[usize],
        views: usize,
        file: &FeatureFile,
    ) -> Result<Vec<usize>, TrainError> {
        let config = session.plan.config.data.clone();
        let (seed, device) = (session.plan.config.run.seed, session.plan.device);
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
            let mut sink = Sink { encoder: self, file, device, batch: Vec::new(), bad: Vec::new(), done: 0 };
            let started = Instant::now();
            for view in &views_out {
                if sink.take(view, config.features.batch)? {
                    session.metrics.progress(sink.done, sink.done as f64 / started.elapsed().as_secs_f64());
                }
            }
            sink.flush()?;
            sink.bad.sort_unstable();
            sink.bad.dedup();
            Ok(sink.bad)
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
    bad: Vec<usize>,
    done: u64,
}

impl Sink<'_> {
    /// True where a batch was encoded.
    fn take(&mut self, (sample, view, pixels): View, batch: usize) -> Result<bool, TrainError> {
        match pixels {
            Ok(pixels) => self.batch.push((sample, view, pixels)),
            Err(_) => self.bad.push(sample),
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

/// The union of all ranks' bad samples.
fn gather_bad(session: &Session, samples: usize, own: &[usize]) -> Result<Vec<usize>, TrainError> {
    let mut flags = vec![0f32; samples];
    for &sample in own {
        flags[sample] = 1.0;
    }
    let mut flags = Tensor::from_slice(&flags).to_device(session.plan.device);
    session.group.all_reduce_sum(&mut flags)?;
    let flags = Vec::<f32>::try_from(flags.to_device(Device::Cpu)).unwrap_or_default();
    Ok((0..samples).filter(|&sample| flags[sample] > 0.0).collect())
}
