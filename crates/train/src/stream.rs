//! Pairs out of shards whose pictures are too many to keep features of: decoded ahead by threads, encoded in each step.

use std::collections::BTreeSet;
use std::sync::Arc;

use collectives::ProcessGroup;
use data::{Batch, Counters, Index, Loader, LoaderSpec, Order, TextPolicy};
use tch::Tensor;

use crate::agree::same;
use crate::config::DataConfig;
use crate::error::TrainError;
use crate::features::Encoder;
use crate::pairs::{Draws, Image, MicroBatch};
use crate::plan::StagePlan;
use crate::state::TrainState;

/// A training set and the encoder that sees it.
pub struct StreamedSet {
    /// Its samples.
    pub index: Arc<Index>,
    /// Frozen.
    pub encoder: Encoder,
}

/// One rank's stream.
pub struct Streamed<'a> {
    loader: Loader,
    encoder: &'a Encoder,
    draws: Draws<'a>,
}

impl StreamedSet {
    /// Opens the shards; all ranks must see the same.
    ///
    /// # Errors
    /// [`TrainError::Data`] for shards that cannot be used, [`TrainError::Config`] where ranks see other ones, a lost peer.
    pub fn open(patterns: &[String], encoder: Encoder, group: &dyn ProcessGroup) -> Result<Self, TrainError> {
        let index = Arc::new(Index::open(patterns)?);
        let digest = blake3::hash(index.digest().to_string().as_bytes());
        let own: Vec<i64> = digest.as_bytes().iter().take(8).map(|&byte| i64::from(byte)).collect();
        if same(group, &own)? {
            return Ok(Self { index, encoder });
        }
        let detail =
            format!("rank {} sees other samples than other ranks do: all need the same files", group.rank());
        Err(TrainError::Read { path: patterns.join(", ").into(), source: std::io::Error::other(detail) })
    }

    /// The stream of one phase from where `state` stands, in an order that `order_seed` names.
    ///
    /// # Errors
    /// [`TrainError::Data`] when no thread can be started.
    pub fn start<'a>(
        &'a self,
        config: &DataConfig,
        text: &TextPolicy,
        order_seed: u64,
        (plan, state): (&StagePlan, &TrainState),
        draws: Draws<'a>,
    ) -> Result<Streamed<'a>, TrainError> {
        let spec = LoaderSpec {
            index: Arc::clone(&self.index),
            order: Arc::new(Order::new(order_seed, self.index.len())),
            seed: draws.seed,
            transform: Some(Arc::clone(&self.encoder.transform)),
            num_views: None,
            text: text.clone(),
            first_captions: None,
            max_words: data::MAX_WORDS,
            // The hub tokenises: stage 2 reads other tokens than stage 1.
            tokenizer: None,
            max_text_len: config.max_text_tokens,
            unusable: Arc::new(BTreeSet::new()),
            rank: draws.rank,
            world_size: draws.world_size,
            global_batch: plan.contrast_batch,
            start_position: state.pairs_seen,
            workers: config.workers,
            shards_ahead: 0,
            max_skipped_ratio: config.max_skipped_ratio,
        };
        Ok(Streamed { loader: Loader::start(spec)?, encoder: &self.encoder, draws })
    }
}

impl Streamed<'_> {
    /// The micro-batches of the step that `state` stands before, which the stream has come to.
    ///
    /// # Errors
    /// [`TrainError::Data`] when too many samples are bad.
    pub fn next_step(&mut self, plan: &StagePlan, state: &TrainState) -> Result<Vec<MicroBatch>, TrainError> {
        let mut micro_batches = Vec::with_capacity(plan.grad_accum_steps);
        for micro_step in 0..plan.grad_accum_steps {
            let batch = self.loader.next_batch()?;
            let (position, _) = self.draws.own(plan, state, micro_step);
            let image = Image::Pixels(pixels(&batch).to_device(self.draws.device));
            let at = (plan, state.step, micro_step);
            micro_batches.push(self.draws.micro_batch(at, position, image, &batch.texts, None)?);
        }
        Ok(micro_batches)
    }

    /// Raw features `[B, P, V]` of `pixels` `[B, 3, S, S]`.
    pub fn encode(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| self.encoder.vision.forward(pixels))
    }

    /// Samples left out so far.
    pub fn counters(&self) -> &Counters {
        self.loader.counters()
    }
}

/// `[B, 3, S, S]` on the CPU.
fn pixels(batch: &Batch) -> Tensor {
    let side = batch.image_size as i64;
    Tensor::from_slice(batch.pixels.as_deref().unwrap_or_default()).view([-1, 3, side, side])
}
