//! Pairs out of shards whose pictures are too many to keep features of: decoded ahead by threads, encoded in each step.

use std::rc::Rc;
use std::sync::Arc;

use collectives::ProcessGroup;
use data::{Batch, Counters, Drawn, Index, Loader, LoaderSpec, Order, TextPolicy};
use tch::Tensor;

use crate::agree::same_name;
use crate::config::DataConfig;
use crate::error::TrainError;
use crate::features::Encoder;
use crate::pairs::{Concept, Draws, Image, MicroBatch, image_name, numbered};
use crate::plan::StagePlan;
use crate::state::TrainState;
use crate::upload::{Ahead, Upload};

/// The training sets and the encoder that sees them.
pub struct StreamedSet {
    /// Their samples.
    pub index: Arc<Index>,
    /// Frozen.
    pub encoder: Rc<Encoder>,
}

/// One rank's stream.
pub struct Streamed<'a> {
    loader: Loader,
    order: Arc<Order>,
    index: Arc<Index>,
    encoder: &'a Encoder,
    draws: Draws<'a>,
    ahead: Ahead<Arriving, TrainError>,
    /// What this rank left out in the last step.
    pub left_out: Counters,
}

/// A batch whose pictures are on their way to the device.
struct Arriving {
    texts: Vec<String>,
    /// What picture each sample shows, where pairs of one picture are one concept.
    names: Option<Vec<String>>,
    counters: Counters,
    /// `[B, 3, S, S]`.
    pixels: Upload,
}

impl StreamedSet {
    /// Opens the shards; all ranks must see the same.
    ///
    /// # Errors
    /// [`TrainError::Data`] for shards that cannot be used, [`TrainError::NotShared`] where ranks see other ones, a lost peer.
    pub fn open(
        config: &DataConfig,
        encoder: Rc<Encoder>,
        group: &dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let index = Arc::new(config.source.open(&config.train)?);
        if same_name(group, index.digest().as_bytes())? {
            return Ok(Self { index, encoder });
        }
        let detail =
            format!("rank {} sees other samples than other ranks do: all need the same files", group.rank());
        Err(TrainError::NotShared { path: "data.train".into(), detail })
    }

    /// The stream of one phase from where `state` stands, in an order that `order_seed` names.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a mixture that cannot be, or that ends before the phase does.
    pub fn start<'a>(
        &'a self,
        config: &DataConfig,
        text: &TextPolicy,
        order_seed: u64,
        (plan, state): (&StagePlan, &TrainState),
        draws: Draws<'a>,
    ) -> Result<Streamed<'a>, TrainError> {
        let order = Arc::new(self.order(config, order_seed, plan)?);
        let spec = LoaderSpec {
            transform: Some(Arc::clone(&self.encoder.transform)),
            text: *text,
            first_captions: config.first_captions,
            rank: draws.rank,
            world_size: draws.world_size,
            global_batch: plan.contrast_batch,
            start_position: state.pairs_seen,
            workers: config.workers,
            shards_ahead: config.source.shards_ahead(),
            max_skipped_ratio: config.max_skipped_ratio,
            // The hub does, over all ranks.
            judges: false,
            // The hub tokenises: stage 2 reads other tokens than stage 1.
            ..LoaderSpec::new(Arc::clone(&self.index), Arc::clone(&order), draws.seed)
        };
        let (loader, index) = (Loader::start(spec)?, Arc::clone(&self.index));
        let left_out = Counters::default();
        Ok(Streamed {
            loader,
            order,
            index,
            encoder: &self.encoder,
            draws,
            ahead: Ahead::default(),
            left_out,
        })
    }

    fn order(&self, config: &DataConfig, seed: u64, plan: &StagePlan) -> Result<Order, TrainError> {
        let order = config.source.order(seed, &self.index, plan.contrast_batch)?;
        let wanted = plan.steps * plan.global_batch as u64;
        match order.end() {
            Some(end) if end < wanted => Err(data::DataError::Config {
                key: "data.source.sets".into(),
                problem: format!(
                    "hold {end} samples in their epochs, {} needs {wanted}; raise epochs, or leave it out of one set",
                    plan.phase.name()
                ),
            }
            .into()),
            _ => Ok(order),
        }
    }
}

impl Streamed<'_> {
    /// The micro-batches of the step that `state` stands before, which the stream has come to; see [`Loader::next_batch_while`]
    /// for `alive`.
    ///
    /// # Errors
    /// [`TrainError::Data`] when a shard cannot be had, or a set holds no good sample.
    pub fn next_step(
        &mut self,
        plan: &StagePlan,
        state: &TrainState,
        alive: &dyn Fn(),
    ) -> Result<Vec<MicroBatch>, TrainError> {
        let mut micro_batches = Vec::with_capacity(plan.grad_accum_steps);
        self.left_out = Counters::default();
        while micro_batches.len() < plan.grad_accum_steps {
            // A rank's share of a contrast batch, which may go through the model in parts.
            let batch = self.arrived(more(plan, state, micro_batches.len()), alive)?;
            self.left_out.merge(&batch.counters);
            let pixels = batch.pixels.finish();
            let count = batch.texts.len() / plan.contrast_parts;
            for (part, texts) in batch.texts.chunks(count).enumerate() {
                let micro_step = micro_batches.len();
                let (position, count) = self.draws.own(plan, state, micro_step);
                let pixels = pixels.narrow(0, (part * count) as i64, count as i64);
                let image = Image::Pixels(pixels);
                let at = (plan, state.step, micro_step);
                let names = batch.names.as_ref().map(|names| &names[part * count..(part + 1) * count]);
                let concepts = names.map(|names| numbered(names.iter().cloned(), self.draws.device));
                micro_batches.push(self.draws.micro_batch(at, position, image, texts, concepts)?);
            }
        }
        Ok(micro_batches)
    }

    /// The next batch; where there is `more` and the device copies on its own, the one behind it is sent on its way too.
    fn arrived(&mut self, more: bool, alive: &dyn Fn()) -> Result<Arriving, TrainError> {
        let (device, loader, order) = (self.draws.device, &mut self.loader, &self.order);
        let by_image = self.draws.concept == Some(Concept::ImageId);
        self.ahead.next(more && device.is_cuda(), || {
            let batch = loader.next_batch_while(alive)?;
            let pixels = Upload::start(&pixels(&batch), device);
            let names = by_image.then(|| {
                let shown = batch.samples.iter().zip(&batch.image_ids);
                // A set is called by its first sample.
                let name = |(&sample, id): (&usize, &Option<String>)| {
                    image_name(order.neighbours(sample).start, id.as_deref(), sample)
                };
                shown.map(name).collect()
            });
            Ok(Arriving { texts: batch.texts, names, counters: batch.counters, pixels })
        })
    }

    /// Raw features `[B, P, V]` of `pixels` `[B, 3, S, S]`.
    pub fn encode(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| self.encoder.vision.forward(pixels))
    }

    /// `SHARD: KEY` of the `count` pairs from `position` of the phase, as the order has them.
    pub fn keys(&self, position: u64, count: usize) -> Vec<String> {
        let slice = self.order.slice(position, count);
        slice.iter().map(|sample| self.index.full_key(sample.index)).collect()
    }

    /// What was drawn of each set before `position`: samples, and passes over the set.
    pub fn drawn(&self, position: u64) -> Vec<Drawn> {
        self.order.drawn(position)
    }
}

/// Whether the phase asks for a batch behind the one of `micro_step`. Not by position: after a return to a checkpoint the
/// phase goes on with the samples that follow.
fn more(plan: &StagePlan, state: &TrainState, micro_step: usize) -> bool {
    let batches = (plan.global_batch / plan.contrast_batch) as u64;
    let left = (plan.steps - state.step) * batches;
    (micro_step / plan.contrast_parts) as u64 + 1 < left
}

/// `[B, 3, S, S]` on the CPU.
fn pixels(batch: &Batch) -> Tensor {
    let side = batch.image_size as i64;
    Tensor::from_slice(batch.pixels.as_deref().unwrap_or_default()).view([-1, 3, side, side])
}
