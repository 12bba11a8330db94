//! A run as one process goes through it: what it loads once, and its parts, begun anew with whoever is there after a rank was
//! lost.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use launch::WorkerPhase;
use monitor::Phase;

use crate::agree::all;
use crate::build::{self, Tools};
use crate::checkpoints;
use crate::corpus::Corpus;
use crate::error::TrainError;
use crate::evaluate::{self, Split};
use crate::features::Encoder;
use crate::session::Session;
use crate::stream::StreamedSet;

/// What the phases share.
pub(crate) struct Run<'a> {
    pub session: &'a mut Session,
    pub tools: Rc<Tools>,
    pub train: TrainingSet,
    pub splits: Vec<Split>,
    /// Digest of the frozen image encoder's weights.
    pub vision_digest: String,
}

/// What is loaded once in a process, whoever it trains with.
struct Kept {
    tools: Rc<Tools>,
    encoder: Rc<Encoder>,
}

/// Where training pictures come from. Closed: their features are kept, or they are not.
pub(crate) enum TrainingSet {
    Cached(Corpus),
    Streamed(StreamedSet),
}

impl TrainingSet {
    /// All its samples, bad ones too.
    pub(crate) fn index(&self) -> &data::Index {
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
    let mut session = Session::open(path, overrides)?;
    let mut kept = None;
    if session.is_spare() {
        kept = Some(Kept::load(&session)?);
        session.wait_for_place()?;
    }
    loop {
        match together(&mut session, &mut kept) {
            Err(TrainError::Peer(lost)) => session.leave(lost)?,
            ended => return ended,
        }
    }
}

/// The whole run with the ranks that there are now, from where it stands.
fn together(session: &mut Session, kept: &mut Option<Kept>) -> Result<(), TrainError> {
    session.meet()?;
    let done = evaluate::already_done(session);
    // A disk that is slow to tell must not let one rank go home while others wait for it.
    if let (Some(summary), true) = (&done, all(session.group.as_ref(), done.is_some())?) {
        session.metrics.line(summary);
        return Ok(());
    }
    let mut run = Run::prepare(session, kept)?;
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

impl Kept {
    fn load(session: &Session) -> Result<Self, TrainError> {
        let tools = Rc::new(build::tools(&session.plan, session.group.as_ref())?);
        Ok(Self { tools, encoder: Rc::new(build::encoder(&session.plan)?) })
    }
}

impl<'a> Run<'a> {
    /// Loads the frozen models, unless they are there, and computes the features of every picture that the run will look at.
    fn prepare(session: &'a mut Session, kept: &mut Option<Kept>) -> Result<Self, TrainError> {
        let started = Instant::now();
        session.progress.write(WorkerPhase::Load, 0);
        let config = session.plan.config.clone();
        let Kept { tools, encoder } = match kept {
            Some(kept) => kept,
            None => kept.insert(Kept::load(session)?),
        };
        let (tools, encoder) = (Rc::clone(tools), Rc::clone(encoder));
        let views = session.plan.features.views;
        let cached = match config.data.features {
            Some(_) => Some(encoder.corpus(session, &config.data.train, views)?),
            None => None,
        };
        let splits = splits(session, &encoder, &tools)?;
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
}

/// The evaluation's splits, with the features of their pictures.
fn splits(session: &mut Session, encoder: &Encoder, tools: &Tools) -> Result<Vec<Split>, TrainError> {
    let config = session.plan.config.clone();
    let mut splits = Vec::new();
    for split in &config.evaluation.splits {
        let corpus = encoder.corpus(session, &split.shards, 0)?;
        let split = Split::new(split, corpus, &tools.wordpiece, config.data.max_text_tokens)?;
        if split.is_empty() {
            return Err(TrainError::Config {
                path: config.run.dir.join("config.toml"),
                detail: format!("evaluation.splits: {} holds no sample with that key_prefix", split.name),
            });
        }
        splits.push(split);
    }
    Ok(splits)
}
