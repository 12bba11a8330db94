//! The parts of a run, one after another: features, stage 1, stage 2, stage 2 without stage 1, evaluation, report.
//!
//! Each phase starts from what is on the disk, so a run that was killed goes on where it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use checkpoint::Loaded;
use collectives::ProcessGroup;
use launch::{StopFlag, WorkerPhase};
use monitor::Phase;
use tch::Tensor;

use crate::agree::same;
use crate::build::{self, Tools};
use crate::checkpoints::{self, Checkpoints, HandedOver};
use crate::config::Config;
use crate::corpus::Corpus;
use crate::error::TrainError;
use crate::evaluate::{self, Rerank, Split};
use crate::frozen::{Frozen, Origin};
use crate::optim::AdamW;
use crate::pairs::{Cached, Draws, PairSource};
use crate::plan::StagePlan;
use crate::reduction;
use crate::session::Session;
use crate::stage::{Stage, random_name};
use crate::state::TrainState;
use crate::stream::StreamedSet;
use crate::tensors::all_to_torch;
use crate::texts::StageTokenizer;
use crate::trainer::{Ended, Trainer, Validation};

/// What the phases share.
pub(crate) struct Run {
    pub session: Session,
    pub tools: Tools,
    pub train: TrainingSet,
    pub splits: Vec<Split>,
    vision_digest: String,
}

/// Where training pictures come from. Closed: their features are kept, or they are not.
pub(crate) enum TrainingSet {
    Cached(Corpus),
    Streamed(StreamedSet),
}

impl TrainingSet {
    /// All its samples, bad ones too.
    fn index(&self) -> &data::Index {
        match self {
            Self::Cached(corpus) => &corpus.index,
            Self::Streamed(set) => &set.index,
        }
    }

    /// As a phrase for the report.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Cached(corpus) => format!(
                "{} training pairs, {} augmented views of each picture",
                corpus.examples.len(),
                corpus.views() - 1
            ),
            Self::Streamed(set) => {
                format!("{} training pairs, a new view of each picture in each epoch", set.index.len())
            }
        }
    }
}

/// Trains, evaluates and reports, as one rank.
///
/// # Errors
/// See [`TrainError`]; its exit code tells the launcher what to do.
pub fn train(path: &Path, overrides: &[String]) -> Result<(), TrainError> {
    torch_bridge::keep_freed_memory();
    let session = Session::open(path, overrides)?;
    if let Some(summary) = evaluate::already_done(&session) {
        session.metrics.line(&summary);
        return Ok(());
    }
    let mut run = Run::prepare(session)?;
    let config = run.session.plan.config.clone();
    let stage1 = run.session.plan.stage1.clone();
    let start = config.stage1.from.as_deref().map(|folder| run.named(Phase::Stage1, folder)).transpose()?;
    run.stage(&stage1, start.as_ref())?;
    let start = match config.stage2.from.as_deref() {
        Some(folder) => run.named(Phase::Stage2, folder)?,
        None => checkpoints::handed_over(&stage1)?,
    };
    start.warnings.iter().for_each(|warning| run.session.metrics.warn(warning));
    let plan = run.session.plan.stage2.clone();
    run.stage(&plan, Some(&start))?;
    if let Some(plan) = run.session.plan.stage2_without_stage1.clone() {
        run.stage(&plan, None)?;
    }
    run.session.progress.write(WorkerPhase::Evaluate, 0);
    evaluate::evaluate(&mut run)?;
    run.session.progress.write(WorkerPhase::End, 0);
    Ok(())
}

impl Run {
    /// Loads the frozen models and computes the features of every picture that the run will look at.
    fn prepare(mut session: Session) -> Result<Self, TrainError> {
        let started = Instant::now();
        session.progress.write(WorkerPhase::Load, 0);
        let config = session.plan.config.clone();
        let tools = build::tools(&session.plan, session.group.as_ref())?;
        let encoder = build::encoder(&session.plan)?;
        let views = session.plan.features.views;
        let cached = match config.data.features {
            Some(_) => Some(encoder.corpus(&mut session, &config.data.train, views)?),
            None => None,
        };
        let mut splits = Vec::new();
        for split in &config.evaluation.splits {
            let corpus = encoder.corpus(&mut session, &split.shards, 0)?;
            let split = Split::new(split, corpus, &tools.wordpiece, config.data.max_text_tokens)?;
            if split.is_empty() {
                return Err(TrainError::Config {
                    path: config.run.dir.join("config.toml"),
                    detail: format!("evaluation.splits: {} holds no sample with that key_prefix", split.name),
                });
            }
            splits.push(split);
        }
        // Each launch loads the models again; what the launches before this one took is part of the cost too.
        let before = session.ledger.seconds.get(&Phase::Features).copied().unwrap_or(0.0);
        let seconds = before + started.elapsed().as_secs_f64();
        let vision_digest = encoder.weights_digest.clone();
        let train = match cached {
            Some(corpus) => TrainingSet::Cached(corpus),
            None => {
                let set = StreamedSet::open(&config.data, encoder, session.group.as_ref())?;
                session.tell_left_out("training shards", set.index.problems());
                TrainingSet::Streamed(set)
            }
        };
        let mut run = Self { session, tools, train, splits, vision_digest };
        run.account(Phase::Features, seconds)?;
        Ok(run)
    }

    /// The weights of a folder that the config names as the start of a phase.
    fn named(&mut self, phase: Phase, folder: &Path) -> Result<HandedOver, TrainError> {
        let named = checkpoints::named(folder, &self.vision_digest)?;
        if phase == Phase::Stage1 && !named.weights.contains_key("temperature") {
            self.session.metrics.warn(format!(
                "{} has no temperature and no LM head (Hugging Face's files have none): stage 1 starts with fresh ones",
                folder.display()
            ));
        }
        Ok(named)
    }

    /// Trains one phase to its end, from its newest checkpoint where there is one, else from `start`.
    fn stage(&mut self, plan: &StagePlan, start: Option<&HandedOver>) -> Result<(), TrainError> {
        self.session.progress.write(WorkerPhase::Load, 0);
        let resumed = checkpoints::latest(plan)?;
        self.agree_on_step(plan, resumed.as_ref().map_or(0, |(_, state)| state.step))?;
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
        let ready = ready(&mut self.session, &self.tools, plan, start, resumed)?;
        let parameters = ready.stage.trainable().values().map(|p| p.numel() as u64).sum();
        let state = self.steps(plan, ready, parameters, checkpoints)?;
        self.session.metrics.end_phase();
        // Rank 0's last checkpoint is on the disk before anybody reads it.
        self.session.group.barrier()?;
        self.close(plan.phase, parameters, &state)
    }

    /// Takes the steps that are left of a phase, and tells what was drawn for them.
    fn steps(
        &mut self,
        plan: &StagePlan,
        Ready { stage, optimizer, state }: Ready,
        parameters: u64,
        checkpoints: Checkpoints,
    ) -> Result<TrainState, TrainError> {
        let Self { session, tools, train, splits, .. } = self;
        session.metrics.line(&format!(
            "{}: {parameters} trainable parameters, {:.1} MB reduced per step and rank, from step {}",
            plan.phase.name(),
            1e-6 * session.plan.reduce.dtype.bytes(parameters) as f64,
            state.step
        ));
        let reducer = reduction::reducer(session, &stage)?;
        session.metrics.begin_phase(plan.phase, plan.steps, state.step);
        let (device, autocast) = (session.plan.device, session.plan.autocast);
        let how = Rerank::of(&session.plan.config.evaluation);
        let stop = session.stop.clone();
        let validate = |stage: &Stage, group: &dyn ProcessGroup| {
            torch_bridge::autocast(device, autocast, || selection_score(stage, splits, how, group, &stop))
        };
        let config = session.plan.config.clone();
        let pairs = pair_source(session, &config, tools, train, (plan, &state))?;
        let mut trainer = Trainer {
            session,
            plan,
            stage,
            optimizer,
            reducer,
            pairs,
            checkpoints,
            validate: &validate,
            state,
        };
        while trainer.run()? == Ended::Lost {
            trainer.roll_back()?;
        }
        let drawn = trainer.pairs.drawn(trainer.state.pairs_seen);
        for (set, drawn) in config.data.source.sets.iter().zip(drawn) {
            let shards = set.shards.join(", ");
            let line = format!("{shards}: {} samples drawn, {:.2} epochs", drawn.samples, drawn.epochs);
            trainer.session.metrics.line(&line);
        }
        Ok(trainer.state)
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

    /// All ranks found the same checkpoint, and have read it before rank 0 tidies its folder. On a shared disk that is
    /// slow to tell, one rank could find an older one; its gradients would then be of another model.
    fn agree_on_step(&self, plan: &StagePlan, step: u64) -> Result<(), TrainError> {
        let group = self.session.group.as_ref();
        if same(group, &[step as i64])? {
            return Ok(());
        }
        let detail = format!(
            "rank {} finds step {step}, others find other steps: all ranks need one disk",
            group.rank()
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

/// What a phase goes on with.
struct Ready {
    stage: Stage,
    optimizer: AdamW,
    state: TrainState,
}

/// The model and its optimizer: fresh, or as the checkpoint left them.
fn ready(
    session: &mut Session,
    tools: &Tools,
    plan: &StagePlan,
    start: Option<&HandedOver>,
    resumed: Option<(Loaded, TrainState)>,
) -> Result<Ready, TrainError> {
    let (stage, pretrained) = build::stage(&session.plan, tools, plan.phase, start)?;
    let trainable = stage.trainable();
    let mut optimizer = AdamW::new(&trainable, &pretrained, &plan.optim);
    let Some((loaded, state)) = resumed else {
        return Ok(Ready { stage, optimizer, state: TrainState::default() });
    };
    for warning in &loaded.warnings {
        session.metrics.warn(warning);
    }
    build::copy_weights(&trainable, &all_to_torch(&loaded.snapshot.model), &loaded.path)?;
    optimizer.restore(&loaded.snapshot.optimizer)?;
    Ok(Ready { stage, optimizer, state })
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
    };
    Ok(match train {
        TrainingSet::Cached(corpus) => PairSource::Cached(Cached {
            corpus,
            order: data::Order::new(order_seed, corpus.examples.len()),
            texts,
            by_caption: plan.phase == Phase::Stage1 && config.data.group_by_caption,
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
