//! The curves of a run, out of its records: what is measured together is drawn together.

use std::collections::BTreeSet;

use super::chart::{Chart, Line, Tone};
use crate::itm_alarm::ITM_PRIOR_ENTROPY;
use crate::record::{Phase, RecordKind, StepRecord};

/// The charts of stage 1: one per loss (training and validation), then each further metric.
pub(super) fn stage1(records: &[StepRecord]) -> Vec<Chart> {
    let is_stage1 = |record: &&StepRecord| record.phase == Phase::Stage1;
    let records: Vec<&StepRecord> = records.iter().filter(is_stage1).collect();
    let losses = names(&records, |record| record.losses.keys()).into_iter().map(|name| {
        let lines = vec![
            line("training", Tone::Main, &records, RecordKind::Step, |record| {
                record.losses.get(&name).copied()
            }),
            line("validation", Tone::Second, &records, RecordKind::Validation, |r| {
                r.losses.get(&name).copied()
            }),
        ];
        let guides = match name.as_str() {
            "loss_itm" => vec![(ITM_PRIOR_ENTROPY, "0.6365: only the 1:2 prior learnt".to_owned())],
            _ => Vec::new(),
        };
        Chart { title: loss_title(&name), y_label: "nats".to_owned(), lines, guides, ..by_step("stage 1") }
    });
    let metrics = names(&records, |record| record.metrics.keys()).into_iter().map(|name| {
        let lines = vec![
            line("training", Tone::Main, &records, RecordKind::Step, |record| {
                record.metrics.get(&name).copied()
            }),
            line("validation", Tone::Second, &records, RecordKind::Validation, |r| {
                r.metrics.get(&name).copied()
            }),
        ];
        Chart { title: name.replace('_', " "), y_label: name.clone(), lines, ..by_step("stage 1") }
    });
    losses.chain(metrics).collect()
}

/// The charts of stage 2: each loss and metric with and without stage 1, training and validation apart.
pub(super) fn stage2(records: &[StepRecord]) -> Vec<Chart> {
    let phases = [
        (Phase::Stage2, "with stage 1", Tone::Main),
        (Phase::Stage2WithoutStage1, "without stage 1", Tone::Second),
    ];
    let of_stage2 = |record: &&StepRecord| matches!(record.phase, Phase::Stage2 | Phase::Stage2WithoutStage1);
    let records: Vec<&StepRecord> = records.iter().filter(of_stage2).collect();
    let kinds = [(RecordKind::Step, "training"), (RecordKind::Validation, "validation")];
    let mut charts = Vec::new();
    for (kind, kind_name) in kinds {
        let of_kind: Vec<&StepRecord> =
            records.iter().copied().filter(|record| record.kind == kind).collect();
        let named =
            |record: &StepRecord, name: &str| record.losses.get(name).or(record.metrics.get(name)).copied();
        // Stage 2 has one loss: its total would be the same curve once more.
        let all = names(&of_kind, |record| record.losses.keys().chain(record.metrics.keys()));
        for name in all.into_iter().filter(|name| name != "loss") {
            let lines = phases.map(|(phase, label, tone)| {
                line(label, tone, &of_kind, kind, |record| {
                    (record.phase == phase).then(|| named(record, &name))?
                })
            });
            let y_label = if name.starts_with("loss") { "nats".to_owned() } else { name.clone() };
            let title = format!("{}, {kind_name}", loss_title(&name));
            charts.push(Chart { title, y_label, lines: lines.into(), ..by_step("stage 2") });
        }
    }
    charts
}

/// Learning rate, gradient norm and speed, over the steps of each training phase.
pub(super) fn training(records: &[StepRecord]) -> Vec<Chart> {
    type Figure = fn(&StepRecord) -> Option<f64>;
    let figures: [(&str, &str, Figure); 4] = [
        ("learning rate", "lr", |record| record.lr),
        ("gradient norm before clipping", "grad norm", |record| record.grad_norm),
        ("speed, all ranks", "pairs/s", |record| Some(record.pairs_per_second)),
        ("waiting for data, share of the step", "share", |r| {
            (r.step_seconds > 0.0).then(|| r.data_wait_seconds / r.step_seconds)
        }),
    ];
    let phases = [
        (Phase::Stage1, "stage 1", Tone::Main),
        (Phase::Stage2, "stage 2", Tone::Second),
        (Phase::Stage2WithoutStage1, "stage 2 without stage 1", Tone::Third),
    ];
    let records: Vec<&StepRecord> = records.iter().collect();
    let chart = |(title, y_label, figure): (&str, &str, Figure)| {
        let lines = phases.map(|(phase, label, tone)| {
            line(label, tone, &records, RecordKind::Step, |record| {
                (record.phase == phase).then(|| figure(record))?
            })
        });
        let (title, y_label) = (title.to_owned(), y_label.to_owned());
        Chart { title, y_label, lines: lines.into(), from_zero: true, ..by_step("the phase") }
    };
    figures.map(chart).into()
}

/// Mean of a loss over the last tenth of a phase's steps, and how many steps that is.
pub(super) fn last_tenth(records: &[StepRecord], phase: Phase, loss: &str) -> Option<(f64, usize)> {
    let of_phase = records.iter().filter(|record| record.phase == phase && record.kind == RecordKind::Step);
    let values: Vec<f64> = of_phase.filter_map(|record| record.losses.get(loss).copied()).collect();
    let last = &values[values.len() - values.len().div_ceil(10)..];
    (!last.is_empty()).then(|| (last.iter().sum::<f64>() / last.len() as f64, last.len()))
}

fn by_step(phase: &str) -> Chart {
    Chart { x_label: format!("step of {phase}"), ..Chart::default() }
}

fn line(
    name: &str,
    tone: Tone,
    records: &[&StepRecord],
    kind: RecordKind,
    value: impl Fn(&StepRecord) -> Option<f64>,
) -> Line {
    let of_kind = records.iter().filter(|record| record.kind == kind);
    let points = of_kind.filter_map(|record| Some((record.step as f64, value(record)?))).collect();
    Line { name: name.to_owned(), tone, dotted: kind == RecordKind::Validation, points }
}

fn names<'a, I>(records: &[&'a StepRecord], keys: impl Fn(&'a StepRecord) -> I) -> Vec<String>
where
    I: Iterator<Item = &'a String>,
{
    let names: BTreeSet<&String> = records.iter().flat_map(|record| keys(record)).collect();
    names.into_iter().cloned().collect()
}

fn loss_title(name: &str) -> String {
    match name {
        "loss" => "Total loss".to_owned(),
        "loss_itc" => "ITC, image-text contrastive".to_owned(),
        "loss_itm" => "ITM, image-text matching".to_owned(),
        "loss_itg" => "ITG, image-grounded text generation".to_owned(),
        "loss_lm" => "Language-model loss".to_owned(),
        other => other.replace('_', " "),
    }
}
