//! Which pairs meet in which step, turned into tensors: a pure function of (seed, step, rank).

use data::{Counters, Drawn, Order, Rng, Stream, rank_slice};
use tch::{Device, Tensor};

use crate::corpus::Corpus;
use crate::error::TrainError;
use crate::plan::StagePlan;
use crate::stage::random_name;
use crate::state::TrainState;
use crate::stream::Streamed;
use crate::texts::{StageText, StageTokenizer, TextDraws};
use crate::upload::Upload;

/// One forward's input on the device.
pub struct MicroBatch {
    /// The pictures.
    pub image: Image,
    /// The texts, as this stage reads them.
    pub text: StageText,
    /// Which concept each pair shows, `[B]` (stage 1, where the config groups pairs).
    pub concepts: Option<Tensor>,
    /// Numbers in `[0, 1)` for the draw of hard negatives, `[2, B]` (stage 1).
    pub uniforms: Tensor,
    /// Seed of this forward's dropout.
    pub dropout_seed: i64,
}

/// Pictures on the device.
pub enum Image {
    /// Raw features of the frozen encoder, `[B, P, V]`.
    Features(Tensor),
    /// Normalised pixels that it has yet to see, `[B, 3, S, S]`.
    Pixels(Tensor),
}

/// The training pairs of one phase, for one rank. Closed: features are kept, or they are not.
pub enum PairSource<'a> {
    /// Features of a set that was encoded before.
    Cached(Cached<'a>),
    /// Pictures out of shards, encoded in each step.
    Streamed(Streamed<'a>),
}

impl PairSource<'_> {
    /// The micro-batches of the step that `state` stands before. `alive` is called now and then while a stream waits for
    /// a server that has yet to use up its time.
    ///
    /// # Errors
    /// [`TrainError::Read`] when cached features cannot be read, [`TrainError::Data`] when a stream ends.
    pub fn next_step(
        &mut self,
        plan: &StagePlan,
        state: &TrainState,
        alive: &dyn Fn(),
    ) -> Result<Vec<MicroBatch>, TrainError> {
        match self {
            Self::Cached(cached) => cached.next_step(plan, state),
            Self::Streamed(streamed) => streamed.next_step(plan, state, alive),
        }
    }

    /// Raw features `[B, P, V]` of a micro-batch's pictures.
    pub fn features(&self, image: &Image) -> Tensor {
        match (self, image) {
            (_, Image::Features(features)) => features.shallow_clone(),
            (Self::Streamed(streamed), Image::Pixels(pixels)) => streamed.encode(pixels),
            (Self::Cached(_), Image::Pixels(_)) => unreachable!("a cache gives features"),
        }
    }

    /// `SHARD: KEY` of the `count` pairs from `position` of the phase.
    #[must_use]
    pub fn keys(&self, position: u64, count: usize) -> Vec<String> {
        match self {
            Self::Cached(cached) => cached.keys(position, count),
            Self::Streamed(streamed) => streamed.keys(position, count),
        }
    }

    /// Samples and passes of each set of a stream before `position` of the phase.
    #[must_use]
    pub fn drawn(&self, position: u64) -> Vec<Drawn> {
        match self {
            Self::Cached(_) => Vec::new(),
            Self::Streamed(streamed) => streamed.drawn(position),
        }
    }

    /// What this rank left out in the last step, by shard and reason; what a cache leaves out was told when it was filled.
    #[must_use]
    pub fn left_out(&self) -> Counters {
        match self {
            Self::Cached(_) => Counters::default(),
            Self::Streamed(streamed) => streamed.left_out.clone(),
        }
    }
}

/// What makes several pairs one concept, and so no negatives of each other. Closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concept {
    /// One caption.
    Caption,
    /// One `image_id`, as in LAVIS.
    ImageId,
}

/// A name for the picture that a sample of a set shows. Other sets number other pictures alike.
pub(crate) fn image_name(set: usize, image_id: Option<&str>, sample: usize) -> String {
    image_id.map_or_else(|| format!("sample {sample}"), |id| format!("image {set} {id}"))
}

/// A number for each name: equal where the names are, on every rank.
pub(crate) fn numbered(names: impl Iterator<Item = String>, device: Device) -> Tensor {
    let number = |name: String| {
        let digest = blake3::hash(name.as_bytes());
        digest.as_bytes()[..8].iter().fold(0i64, |number, &byte| (number << 8) | i64::from(byte))
    };
    let numbers: Vec<i64> = names.map(number).collect();
    Tensor::from_slice(&numbers).to_device(device)
}

/// What both sources draw and tokenise alike.
pub struct Draws<'a> {
    /// Turns texts into ids.
    pub tokenizer: StageTokenizer<'a>,
    /// The run's seed.
    pub seed: u64,
    /// This rank.
    pub rank: usize,
    /// All ranks.
    pub world_size: usize,
    /// Where the tensors go.
    pub device: Device,
    /// What makes pairs one concept, if anything.
    pub concept: Option<Concept>,
}

impl Draws<'_> {
    /// Everything of a micro-batch whose pictures and texts are there; its first pair stands at `position` of the run.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a text that the tokenizer refuses.
    pub fn micro_batch(
        &self,
        (plan, step, micro_step): (&StagePlan, u64, usize),
        position: u64,
        image: Image,
        texts: &[String],
        concepts: Option<Tensor>,
    ) -> Result<MicroBatch, TrainError> {
        let dropout_name = [random_name(plan.phase), step, micro_step as u64, self.rank as u64];
        let dropout = Rng::new(self.seed, Stream::Dropout, &dropout_name).bits();
        Ok(MicroBatch {
            image,
            text: self.tokenizer.tokenise(texts, TextDraws { seed: self.seed, position }, self.device)?,
            concepts,
            uniforms: self.uniforms(position, texts.len()),
            // libtorch takes any 64 bits as a seed.
            dropout_seed: dropout.cast_signed(),
        })
    }

    /// Where this rank's part of a micro-step begins, and how many pairs it has.
    ///
    /// A rank's share of a contrast batch is one piece, whatever the micro-batch: rows and columns of ITC then stand in the
    /// order of one large batch, and the same negatives are drawn.
    #[must_use]
    pub fn own(&self, plan: &StagePlan, state: &TrainState, micro_step: usize) -> (u64, usize) {
        let (contrast, part) = (micro_step / plan.contrast_parts, micro_step % plan.contrast_parts);
        let own = rank_slice(plan.contrast_batch, self.rank, self.world_size);
        let count = own.len() / plan.contrast_parts;
        (state.pairs_seen + (contrast * plan.contrast_batch + own.start + part * count) as u64, count)
    }

    /// Named by the pair's position in the whole run, so any world size draws the same.
    fn uniforms(&self, position: u64, count: usize) -> Tensor {
        let draw = |which: u64| {
            (0..count as u64)
                .map(move |i| Rng::new(self.seed, Stream::HardNegative, &[position + i, which]).uniform())
        };
        let values: Vec<f64> = draw(0).chain(draw(1)).collect();
        Tensor::from_slice(&values).view([2, count as i64]).to_device(self.device)
    }
}

/// Pairs whose features lie on the disk.
pub struct Cached<'a> {
    /// The training split.
    pub corpus: &'a Corpus,
    /// Its order.
    pub order: Order,
    /// What a training text is made of.
    pub texts: &'a data::TextPolicy,
    /// Tokens and random numbers.
    pub draws: Draws<'a>,
}

impl Cached<'_> {
    fn keys(&self, position: u64, count: usize) -> Vec<String> {
        let key = |number: usize| self.corpus.index.full_key(self.corpus.examples[number].sample);
        self.order.slice(position, count).iter().map(|sample| key(sample.index)).collect()
    }

    fn next_step(&self, plan: &StagePlan, state: &TrainState) -> Result<Vec<MicroBatch>, TrainError> {
        (0..plan.grad_accum_steps)
            .map(|micro_step| {
                let (position, count) = self.draws.own(plan, state, micro_step);
                self.micro_batch((plan, state.step, micro_step), position, count)
            })
            .collect()
    }

    fn micro_batch(
        &self,
        at: (&StagePlan, u64, usize),
        position: u64,
        count: usize,
    ) -> Result<MicroBatch, TrainError> {
        let seed = self.draws.seed;
        let samples = self.order.slice(position, count);
        let mut rows = Vec::with_capacity(count);
        let mut texts = Vec::with_capacity(count);
        for sample in &samples {
            let id = self.corpus.examples[sample.index].sample as u64;
            let view = Rng::new(seed, Stream::View, &[id, sample.epoch]).below(self.corpus.views() as u64);
            rows.push((sample.index, view as usize));
            let captions = &self.corpus.examples[sample.index].captions;
            let text = self.texts.draw(captions, seed, id, sample.epoch);
            texts.push(data::blip_caption(&text, data::MAX_WORDS));
        }
        let features = Upload::start(&self.corpus.features(&rows)?, self.draws.device).finish();
        let concepts = self.draws.concept.map(|concept| {
            let names = rows.iter().map(|&(example, _)| self.name(concept, example));
            numbered(names, self.draws.device)
        });
        self.draws.micro_batch(at, position, Image::Features(features), &texts, concepts)
    }

    /// The concept that an example shows.
    fn name(&self, concept: Concept, example: usize) -> String {
        let example = &self.corpus.examples[example];
        match concept {
            Concept::Caption => example.caption.clone(),
            Concept::ImageId => image_name(0, example.captions.image_id.as_deref(), example.sample),
        }
    }
}
