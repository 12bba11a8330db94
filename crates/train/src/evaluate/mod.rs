//! What the run is worth: retrieval and captions on held-out splits, written as `eval.json` and `report.html`.

mod captions;
mod report;
mod retrieval;
mod split;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use collectives::ProcessGroup;
use launch::WorkerPhase;
use monitor::{Directions, EVAL_FILE, EvalFile, Metrics, Phase, Recalls, RetrievalScores};

use crate::build;
use crate::checkpoints;
use crate::error::TrainError;
use crate::plan::StagePlan;
use crate::run::Run;
use crate::session::Session;
use crate::stage::Stage;
use crate::tensors::all_to_torch;

use captions::Captions;
pub(crate) use retrieval::{Rerank, rerank, reranked};
use retrieval::{Retrieval, TwoWays};
pub(crate) use split::Split;

/// What was measured on one split.
pub(crate) struct SplitResult {
    retrieval: Retrieval,
    captions: Captions,
}

/// Told of pictures that are done; ends the work where somebody asked for a stop.
type Progress<'a> = &'a dyn Fn(usize) -> Result<(), TrainError>;

/// Somebody asked for a stop; what was being scored is scored again.
pub(crate) fn interrupted() -> TrainError {
    TrainError::Interrupted { phase: Phase::Evaluation.name().into() }
}

/// Moves the bar of the evaluation, pictures by pictures.
struct Bar<'a> {
    metrics: RefCell<&'a mut Metrics>,
    done: Cell<u64>,
    started: Instant,
}

impl Bar<'_> {
    fn advance(&self, pictures: usize) {
        self.done.set(self.done.get() + pictures as u64);
        let per_second = self.done.get() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.metrics.borrow_mut().progress(self.done.get(), per_second);
    }
}

/// The closing lines of a run that ended earlier with the same config.
pub(crate) fn already_done(session: &Session) -> Option<String> {
    let dir = &session.plan.config.run.dir;
    let report = dir.join(monitor::report::REPORT_FILE);
    if !session.unchanged || !report.is_file() {
        return None;
    }
    let eval = EvalFile::read(&dir.join(EVAL_FILE)).ok()?;
    Some(format!(
        "this run has ended; remove {} to start over\n{}",
        dir.display(),
        report::headline(&eval, dir)
    ))
}

/// Scores the handed-over stages on every shown split and writes the report; ranks share the work.
///
/// # Errors
/// [`TrainError`] when a checkpoint, features or the run folder cannot be used, a peer is gone, or somebody asked for a stop.
pub(crate) fn evaluate(run: &mut Run<'_>) -> Result<(), TrainError> {
    let started = Instant::now();
    let stages = Stages::load(run)?;
    let (device, autocast) = (run.session.plan.device, run.session.plan.autocast);
    let results = torch_bridge::autocast(device, autocast, || score_all(run, &stages))?;
    run.account(Phase::Evaluation, started.elapsed().as_secs_f64())?;
    let eval = eval_file(run, &results);
    if run.session.is_rank0() {
        let dir = run.session.plan.config.run.dir.clone();
        report::write(run, &eval, &results, &dir)?;
        run.session.metrics.line(&report::headline(&eval, &dir));
    }
    // No rank leaves before the files are there.
    Ok(run.session.group.barrier()?)
}

/// The trained stages.
struct Stages {
    stage1: Stage,
    stage2: Stage,
    without_stage1: Option<Stage>,
}

impl Stages {
    fn load(run: &mut Run<'_>) -> Result<Self, TrainError> {
        let mut warnings = Vec::new();
        let mut load = |plan: &StagePlan| -> Result<Stage, TrainError> {
            let (stage, _) = build::stage(&run.session.plan, &run.tools, plan.phase, None)?;
            let handed = checkpoints::handed_over(plan)?;
            build::copy_weights(&stage.trainable(), &all_to_torch(&handed.weights), &handed.path)?;
            warnings.extend(handed.warnings);
            Ok(stage)
        };
        let plan = &run.session.plan;
        let stages = Self {
            stage1: load(&plan.stage1)?,
            stage2: load(&plan.stage2)?,
            without_stage1: plan.stage2_without_stage1.as_ref().map(load).transpose()?,
        };
        // Stage 1's have been told when it was handed to stage 2, if that was in this launch.
        warnings.retain(|warning| !run.session.metrics.warnings().contains(warning));
        warnings.into_iter().for_each(|warning| run.session.metrics.warn(warning));
        Ok(stages)
    }
}

/// Which of `count` pictures this rank looks at: every W-th, so that all are done at about the same time.
fn share_of(count: usize, group: &dyn ProcessGroup) -> impl Iterator<Item = usize> {
    (group.rank()..count).step_by(group.world_size())
}

fn score_all(run: &mut Run<'_>, stages: &Stages) -> Result<BTreeMap<String, SplitResult>, TrainError> {
    let Run { session, splits, tools, .. } = run;
    let config = &session.plan.config.evaluation;
    let shown: Vec<&Split> = splits.iter().filter(|split| !split.hidden).collect();
    let ours = |pictures: usize| share_of(pictures, session.group.as_ref()).count();
    let captioned = 1 + usize::from(config.without_stage1);
    let of_split =
        |split: &&Split| ours(split.len()) + captioned * ours(split.len().min(config.max_captions));
    let pictures: usize = shown.iter().map(of_split).sum();
    session.metrics.begin_phase(Phase::Evaluation, pictures as u64, 0);
    let bar =
        Bar { metrics: RefCell::new(&mut session.metrics), done: Cell::new(0), started: Instant::now() };
    let stop = &session.stop;
    let page = &session.progress;
    let progress = |pictures: usize| {
        bar.advance(pictures);
        page.tick(WorkerPhase::Evaluate);
        match stop.requested() {
            true => Err(interrupted()),
            false => Ok(()),
        }
    };
    let group = session.group.as_ref();
    let how = Rerank::of(config);
    let mut results = BTreeMap::new();
    for split in shown {
        let Stage::One(stage1, _) = &stages.stage1 else { unreachable!("loaded as stage 1") };
        let retrieval = retrieval::reranked(stage1, split, how, group, &progress)?;
        let pictures = split.subset(config.max_captions);
        let writer = captions::Writer {
            split,
            pictures,
            lm: &tools.lm_captions,
            generation: &config.generation,
            group,
            progress: &progress,
        };
        let captions = writer.captions(&stages.stage2, stages.without_stage1.as_ref())?;
        results.insert(split.name.clone(), SplitResult { retrieval, captions });
    }
    session.metrics.end_phase();
    Ok(results)
}

fn eval_file(run: &Run<'_>, results: &BTreeMap<String, SplitResult>) -> EvalFile {
    let of = |result: fn(&SplitResult) -> RetrievalScores| {
        results.iter().map(|(name, r)| (name.clone(), result(r))).collect::<BTreeMap<_, _>>()
    };
    let ledger = &run.session.ledger;
    let candidates = run.splits.iter().filter(|split| !split.hidden);
    EvalFile {
        retrieval: of(|r| RetrievalScores {
            itc: directions(r.retrieval.itc),
            itm: directions(r.retrieval.itm),
        }),
        candidates: candidates.map(|split| (split.name.clone(), split.len() as u64)).collect(),
        captions: results.iter().map(|(name, r)| (name.clone(), r.captions.scores())).collect(),
        seconds: ledger.seconds.clone(),
        peak_rss_bytes: ledger.peak_rss_bytes,
        pairs_per_second: ledger.pairs_per_second.clone(),
    }
}

fn directions(two: TwoWays) -> Directions {
    let recalls = |r: score::Recalls| Recalls { r1: r.r1, r5: r.r5, r10: r.r10 };
    Directions { i2t: recalls(two.i2t), t2i: recalls(two.t2i) }
}
