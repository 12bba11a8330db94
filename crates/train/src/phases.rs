//! One phase of training, whose result the next one starts from.
//!
//! It goes on from what is on the disk, or from what a rank that outlived another holds in memory where that is newer: so
//! a run that was disturbed goes on where it was.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::Loaded;
use collectives::ProcessGroup;
use launch::{StopFlag, WorkerPhase};
use monitor::Phase;
use tch::Tensor;

use crate::agree::{self, same_weights};
use crate::build::Tools;
use crate::checkpoints::{self, Checkpoints, HandedOver};
use crate::config::Config;
use crate::error::TrainError;
use crate::evaluate::{self, Rerank, Split};
use crate::frozen::{Frozen, Origin};
use crate::held::{Furthest, Held, Rest, newer_on_disk};
use crate::pairs::{Cached, Concept, Draws, PairSource};
use crate::plan::StagePlan;
use crate::reduction;
use crate::run::{Run, TrainingSet};
use crate::session::Session;
use crate::stage::{Stage, random_name};
use crate::state::TrainState;
use crate::texts::StageTokenizer;
use crate::trainer::{Ended, Trainer, Validation};

impl Run<'_> {
    /// The weights of a folder that the config names as the start of a phase.
    pub(crate) fn named(&mut self, phase: Phase, folder: &Path) -> Result<HandedOver, TrainError> {
        let named = checkpoints::named(folder, &self.vision_digest)?;
        if phase == Phase::Stage1 && !named.weights.contains_key("temperature") {
            self.session.metrics.warn(format!(
                "{} has no temperature and no LM head (Hugging Face's files have none): stage 1 starts with fresh ones",
                folder.display()
            ));
        }
        Ok(named)
    }

    /// Trains one phase to its end, from its newest checkpoint or what a rank holds of it where there is any, else from
    /// `start`.
    pub(crate) fn stage(&mut self, plan: &StagePlan, start: Option<&HandedOver>) -> Result<(), TrainError> {
        self.session.progress.write(WorkerPhase::Load, 0);
        let furthest = self.session.furthest;
        let held = furthest.and_then(|furthest| furthest.step_of(plan.phase));
        let resumed = newer_on_disk(plan, held)?;
        let step = resumed.as_ref().map_or(0, |(_, state)| state.step);
        // They have read it, too, before rank 0 tidies its folder.
        agree::on_step(self.session.group.as_ref(), step, &plan.checkpoint_dir)?;
        let origin = self.origin(plan.phase, start);
        if let Some((loaded, _)) = &resumed {
            origin.check(loaded)?;
        }
        let checkpoints = Checkpoints::open(plan, self.session.is_rank0(), origin)?;
        if let Some((loaded, state)) = &resumed {
            checkpoints.pin_best(state)?;
            if state.step >= plan.steps && !state.validation_due {
                // The launch that took its last step may not have lived to write down what it cost.
                let parameters = loaded.snapshot.model.values().map(|p| p.numel() as u64).sum();
                return self.close(plan.phase, parameters, state);
            }
        }
        let mut held = match furthest.filter(|_| held.is_some() && resumed.is_none()) {
            Some(furthest) => self.shared(plan, start, furthest)?,
            None => self.begun(plan, start, resumed)?,
        };
        self.agree_on_weights(plan, &held.stage)?;
        let trained = self.steps(plan, &mut held, checkpoints);
        if let Err(TrainError::Peer(_)) = trained {
            self.session.held = Some(held);
            return trained;
        }
        trained?;
        self.session.metrics.end_phase();
        // Rank 0's last checkpoint is on the disk before anybody reads it.
        self.session.group.barrier()?;
        self.close(plan.phase, parameters(&held.stage), &held.rest.state)
    }

    /// A phase as all ranks go on with it from what one of them holds.
    fn shared(
        &mut self,
        plan: &StagePlan,
        start: Option<&HandedOver>,
        furthest: Furthest,
    ) -> Result<Held, TrainError> {
        let own = self.session.held.take().filter(|held| held.phase == plan.phase);
        let mut held = match own {
            Some(held) => held,
            None => Held::fresh(&self.session.plan, &self.tools, plan, start)?,
        };
        let is_there = held.is(&furthest);
        if let Err(lost) = held.share(self.session.group.as_ref(), &furthest) {
            self.session.held = is_there.then_some(held);
            return Err(lost);
        }
        Ok(held)
    }

    /// A phase as its checkpoint left it, or before its first step.
    fn begun(
        &mut self,
        plan: &StagePlan,
        start: Option<&HandedOver>,
        resumed: Option<(Loaded, TrainState)>,
    ) -> Result<Held, TrainError> {
        self.session.held = None;
        let mut held = Held::fresh(&self.session.plan, &self.tools, plan, start)?;
        if let Some((loaded, state)) = resumed {
            loaded.warnings.iter().for_each(|warning| self.session.metrics.warn(warning));
            held.restore(&loaded, state)?;
        }
        Ok(held)
    }

    /// Takes the steps that are left of a phase, and tells what was drawn for them.
    fn steps(
        &mut self,
        plan: &StagePlan,
        held: &mut Held,
        checkpoints: Checkpoints,
    ) -> Result<(), TrainError> {
        let Self { session, tools, train, splits, .. } = self;
        let Held { stage, optimizer, rest: Rest { state, owed, told }, .. } = held;
        let parameters = parameters(stage);
        session.metrics.line(&format!(
            "{}: {parameters} trainable parameters, {:.1} MB reduced per step and rank, from step {}",
            plan.phase.name(),
            1e-6 * session.plan.reduce.dtype.bytes(parameters) as f64,
            state.step
        ));
        let reducer = reduction::reducer(session, stage)?;
        session.metrics.begin_phase(plan.phase, plan.steps, state.step);
        // Those that are in the file already stay there once.
        told.iter().for_each(|record| session.metrics.record(record));
        let (device, autocast) = (session.plan.device, session.plan.autocast);
        let how = Rerank::of(&session.plan.config.evaluation);
        let stop = session.stop.clone();
        let validate = |stage: &Stage, group: &dyn ProcessGroup| {
            torch_bridge::autocast(device, autocast, || selection_score(stage, splits, how, group, &stop))
        };
        let config = session.plan.config.clone();
        let pairs = pair_source(session, &config, tools, train, (plan, &*state))?;
        let validate = &validate;
        let mut trainer = Trainer {
            session,
            plan,
            stage,
            optimizer,
            reducer,
            pairs,
            checkpoints,
            validate,
            state,
            owed,
            told,
        };
        while trainer.run()? == Ended::Lost {
            trainer.roll_back()?;
        }
        tell_drawn(&trainer, &config);
        Ok(())
    }

    /// What the phase's checkpoints tell of where they come from. Stage 1 knows no language model.
    fn origin(&self, phase: Phase, start: Option<&HandedOver>) -> Origin {
        let (tools, samples) = (&self.tools, self.train.index().digest());
        let mut frozen = vec![(Frozen::Vision, self.vision_digest.as_str()), (Frozen::Data, samples)];
        match phase {
            Phase::Stage1 => frozen.push((Frozen::Words, &tools.words_digest)),
            _ => frozen.extend([
                (Frozen::Language, tools.language_digest.as_str()),
                (Frozen::Tokens, &tools.tokens_digest),
            ]),
        }
        let frozen =
            frozen.into_iter().map(|(what, digest)| (what.name().to_owned(), digest.to_owned())).collect();
        Origin { config: self.session.config_text.clone(), parent: start.map(HandedOver::name), frozen }
    }

    /// All ranks begin with the same weights, to the bit. A rank that read an older checkpoint, or another start, would put
    /// its gradients into those of another model, and nobody would see it.
    fn agree_on_weights(&self, plan: &StagePlan, stage: &Stage) -> Result<(), TrainError> {
        let group = self.session.group.as_ref();
        if same_weights(group, &stage.trainable())? {
            return Ok(());
        }
        let detail = format!(
            "rank {} begins {} with other weights than the others: all ranks need one disk",
            group.rank(),
            plan.phase.name()
        );
        Err(TrainError::NotShared { path: plan.checkpoint_dir.clone(), detail })
    }

    /// Tells of what a finished stage left out, and enters it into the ledger.
    fn close(&mut self, phase: Phase, parameters: u64, state: &TrainState) -> Result<(), TrainError> {
        self.session.tell_left_out(phase.name(), &state.left_out);
        let ledger = &mut self.session.ledger;
        ledger.trainable.insert(phase, parameters);
        ledger.bytes_per_step.insert(phase, self.session.plan.reduce.dtype.bytes(parameters));
        if state.step > 0 {
            ledger.pairs_per_second.insert(phase, state.pairs_seen as f64 / state.train_seconds);
        }
        self.account(phase, state.train_seconds)
    }

    /// Writes a phase's seconds, over all launches, and the memory of all ranks so far.
    pub(crate) fn account(&mut self, phase: Phase, seconds: f64) -> Result<(), TrainError> {
        let peak = monitor::memory::peak_rss_bytes().unwrap_or(0) as f64;
        let mut sum = Tensor::from_slice(&[peak]).to_device(self.session.plan.device);
        self.session.group.all_reduce_sum(&mut sum)?;
        let ledger = &mut self.session.ledger;
        ledger.peak_rss_bytes = ledger.peak_rss_bytes.max(sum.double_value(&[0]) as u64);
        ledger.seconds.insert(phase, seconds);
        if self.session.is_rank0() { self.session.ledger.save() } else { Ok(()) }
    }
}

/// Says how much of each set of a stream the phase has drawn.
fn tell_drawn(trainer: &Trainer<'_>, config: &Config) {
    let drawn = trainer.pairs.drawn(trainer.state.pairs_seen);
    for (set, drawn) in config.data.source.sets.iter().zip(drawn) {
        let shards = set.shards.join(", ");
        let line = format!("{shards}: {} samples drawn, {:.2} epochs", drawn.samples, drawn.epochs);
        trainer.session.metrics.line(&line);
    }
}

/// Numbers that a stage trains.
fn parameters(stage: &Stage) -> u64 {
    stage.trainable().values().map(|parameter| parameter.numel() as u64).sum()
}

/// What stage 2 reads: the language model is to say the caption, not the tags.
static CAPTION: data::TextPolicy = data::TextPolicy::Label;

fn pair_source<'a>(
    session: &Session,
    config: &'a Config,
    tools: &'a Tools,
    train: &'a TrainingSet,
    (plan, state): (&StagePlan, &TrainState),
) -> Result<PairSource<'a>, TrainError> {
    let (texts, tokenizer) = match plan.phase {
        Phase::Stage1 => {
            (&config.data.texts, StageTokenizer::One(&tools.wordpiece, config.data.max_text_tokens))
        }
        _ => (&CAPTION, StageTokenizer::Two(&tools.lm_captions)),
    };
    let seed = config.run.seed;
    let order_seed = seed.wrapping_add(random_name(plan.phase));
    let draws = Draws {
        tokenizer,
        seed,
        rank: session.plan.world.rank,
        world_size: session.plan.world.world_size,
        device: session.plan.device,
        concept: match (config.data.group_by_caption, config.data.group_by_image_id) {
            _ if plan.phase != Phase::Stage1 => None,
            (true, _) => Some(Concept::Caption),
            (_, true) => Some(Concept::ImageId),
            (false, false) => None,
        },
    };
    Ok(match train {
        TrainingSet::Cached(corpus) => PairSource::Cached(Cached {
            corpus,
            order: data::Order::new(order_seed, corpus.examples.len()),
            texts,
            draws,
        }),
        TrainingSet::Streamed(set) => {
            PairSource::Streamed(set.start(&config.data, texts, order_seed, (plan, state), draws)?)
        }
    })
}

/// Mean over the selection splits of R@1, both ways, after re-ranking: the figure that the report shows first.
fn selection_score(
    stage: &Stage,
    splits: &[Split],
    how: Rerank,
    group: &dyn ProcessGroup,
    stop: &StopFlag,
) -> Result<Validation, TrainError> {
    let progress = |_| match stop.requested() {
        true => Err(evaluate::interrupted()),
        false => Ok(()),
    };
    let mut metrics = BTreeMap::new();
    let mut scores = Vec::new();
    if let Stage::One(stage1, _) = stage {
        for split in splits.iter().filter(|split| split.select) {
            let found = evaluate::reranked(stage1, split, how, group, &progress)?;
            for (way, itc, itm) in
                [("i2t", found.itc.i2t, found.itm.i2t), ("t2i", found.itc.t2i, found.itm.t2i)]
            {
                metrics.insert(format!("{}_itc_{way}_r1", split.name), itc.r1);
                metrics.insert(format!("{}_itc_{way}_r10", split.name), itc.r10);
                metrics.insert(format!("{}_{way}_r1", split.name), itm.r1);
                metrics.insert(format!("{}_{way}_r10", split.name), itm.r10);
                scores.push(itm.r1);
            }
        }
    }
    let score = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    metrics.insert("selection_score".into(), score);
    Ok(Validation { score, metrics })
}
