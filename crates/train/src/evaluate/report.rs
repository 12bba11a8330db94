//! The figures as files: `eval.json`, `report.html`, and a few lines for the terminal.

use std::collections::BTreeMap;
use std::path::Path;

use monitor::report::{
    GalleryItem, Mime, PhaseFacts, REPORT_FILE, ReferenceRow, ReportData, RunFacts, SplitFacts, write_report,
};
use monitor::{EVAL_FILE, EvalFile, METRICS_FILE, MonitorError, Phase, Recalls, read_records};

use super::SplitResult;
use crate::error::TrainError;
use crate::plan::StagePlan;
use crate::run::Run;

/// Writes `eval.json`, `report.json` and `report.html` into `dir`.
pub(super) fn write(
    run: &Run<'_>,
    eval: &EvalFile,
    results: &BTreeMap<String, SplitResult>,
    dir: &Path,
) -> Result<(), TrainError> {
    let refuse = |error: MonitorError| TrainError::Write {
        path: dir.to_owned(),
        source: std::io::Error::other(error.to_string()),
    };
    eval.write(&dir.join(EVAL_FILE)).map_err(refuse)?;
    let mut data = report_data(run, eval, results)?;
    data.write(dir).map_err(refuse)?;
    data.records = read_records(&dir.join(METRICS_FILE)).map_err(refuse)?;
    write_report(&dir.join(REPORT_FILE), &data).map_err(refuse)
}

/// What a run prints at its end.
pub(super) fn headline(eval: &EvalFile, dir: &Path) -> String {
    let mut text = String::new();
    for (split, scores) in &eval.retrieval {
        let candidates = eval.candidates.get(split).copied().unwrap_or_default();
        let (itc, itm) = (scores.itc.i2t, scores.itm.i2t);
        text += &format!(
            "{split:16} image to text of {candidates}: R@1 {:.3} R@10 {:.3} (ITC alone {:.3} {:.3})",
            itm.r1, itm.r10, itc.r1, itc.r10
        );
        if let Some(captions) = eval.captions.get(split) {
            text +=
                &format!("; CIDEr {:.3}, shuffled pictures {:.3}", captions.cider, captions.cider_shuffled);
            if let Some(without) = captions.cider_without_stage1 {
                text += &format!(", without stage 1 {without:.3}");
            }
        }
        text.push('\n');
    }
    for (phase, seconds) in &eval.seconds {
        text += &format!("{phase}: {seconds:.0} s");
        if let Some(rate) = eval.pairs_per_second.get(phase) {
            text += &format!(", {rate:.1} pairs/s");
        }
        text.push('\n');
    }
    let report = dir.join(REPORT_FILE);
    text + &format!(
        "peak memory of the workers {:.2} GiB\nreport: {}",
        eval.peak_rss_bytes as f64 / f64::from(1 << 30),
        report.display()
    )
}

fn report_data(
    run: &Run<'_>,
    eval: &EvalFile,
    results: &BTreeMap<String, SplitResult>,
) -> Result<ReportData, TrainError> {
    let config = &run.session.plan.config;
    let mut notes = config.run.notes.clone();
    notes.extend(run.session.metrics.warnings().iter().cloned());
    let licences = config.data.licences.as_ref().map(std::fs::read_to_string);
    let attributions = match licences {
        Some(Ok(text)) => text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Ok(ReportData {
        title: config.run.name.clone(),
        summary: format!(
            "{}; {} learned queries.",
            run.train.summary(),
            config.model.qformer.num_query_tokens
        ),
        facts: facts(run),
        eval: eval.clone(),
        splits: splits(run),
        references: references(run),
        gallery_choice: "Held-out pictures in a random order that every run shares, split by split.".into(),
        gallery: gallery(run, results)?,
        notes,
        attributions,
        records: Vec::new(),
    })
}

fn facts(run: &Run<'_>) -> RunFacts {
    let plan = &run.session.plan;
    let stages = [Some(&plan.stage1), Some(&plan.stage2), plan.stage2_without_stage1.as_ref()];
    let autocast = plan.autocast.map_or("fp32".to_owned(), |kind| format!("{kind:?} autocast"));
    RunFacts {
        config_name: plan.config.run.name.clone(),
        seed: plan.config.run.seed,
        world_size: plan.world.world_size,
        device: format!("{:?}, {autocast}", plan.device),
        phases: stages.into_iter().flatten().map(|stage| phase_facts(run, stage)).collect(),
        more: Vec::new(),
    }
}

fn phase_facts(run: &Run<'_>, stage: &StagePlan) -> PhaseFacts {
    let ledger = &run.session.ledger;
    let of = |map: &BTreeMap<Phase, u64>| map.get(&stage.phase).copied().unwrap_or_default();
    PhaseFacts {
        phase: stage.phase,
        steps: stage.steps,
        pairs: stage.steps * stage.global_batch as u64,
        trainable_parameters: of(&ledger.trainable),
        bytes_reduced_per_step: of(&ledger.bytes_per_step),
    }
}

fn splits(run: &Run<'_>) -> Vec<SplitFacts> {
    let shown = run.splits.iter().filter(|split| !split.hidden);
    shown
        .map(|split| SplitFacts { name: split.name.clone(), description: split.description.clone() })
        .collect()
}

fn references(run: &Run<'_>) -> Vec<ReferenceRow> {
    let recalls = |[r1, r5, r10]: [f64; 3]| Recalls { r1, r5, r10 };
    let rows = run.session.plan.config.evaluation.references.iter();
    rows.map(|row| ReferenceRow {
        name: row.system.clone(),
        split: row.split.clone(),
        i2t: Some(recalls(row.i2t)),
        t2i: row.t2i.map(recalls),
    })
    .collect()
}

/// Pictures of the held-out splits in turn, until there are enough.
fn gallery(run: &Run<'_>, results: &BTreeMap<String, SplitResult>) -> Result<Vec<GalleryItem>, TrainError> {
    let held_out: Vec<_> = run.splits.iter().filter(|split| !split.hidden && !split.select).collect();
    let mut items = Vec::new();
    let wanted = run.session.plan.config.evaluation.gallery;
    let most = results.values().map(|result| result.captions.pictures.len()).max().unwrap_or(0);
    for place in 0..most {
        for split in &held_out {
            let Some(result) = results.get(&split.name) else { continue };
            let captions = &result.captions;
            let Some(&pair) = captions.pictures.get(place) else { continue };
            if items.len() >= wanted {
                return Ok(items);
            }
            let picture = split.picture(pair)?;
            let Some(mime) = Mime::of(&picture) else { continue };
            items.push(GalleryItem {
                picture,
                mime,
                split: split.name.clone(),
                reference: captions.references[place].clone(),
                generated: captions.generated[place].clone(),
                generated_without_stage1: captions.without_stage1.as_ref().map(|texts| texts[place].clone()),
                nearest_by_itc: result
                    .retrieval
                    .best_text
                    .get(pair)
                    .map(|&text| split.caption(text).to_owned()),
            });
        }
    }
    Ok(items)
}
