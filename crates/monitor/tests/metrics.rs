//! The writers, read back: one record per step whatever was killed where, and nothing that stops a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use monitor::tensorboard::{Event, TENSORBOARD_DIR, event_files, read_events};
use monitor::{METRICS_FILE, Metrics, MetricsFile, Phase, RecordKind, Start, StepRecord, read_records};
use proptest::prelude::*;

fn record(phase: Phase, kind: RecordKind, step: u64) -> StepRecord {
    let mut record = StepRecord::new(phase, kind, step);
    record.losses =
        BTreeMap::from([("loss".to_owned(), 7.25 / step as f64), ("loss_itc".to_owned(), 0.1 + step as f64)]);
    record.lr = Some(1e-4 * step as f64);
    record.grad_norm = Some(0.3);
    record.metrics.insert("itm_accuracy".to_owned(), 2.0 / 3.0);
    record.time_seconds = step as f64 * 1.5;
    record
}

/// A run of 20 steps of stage 1 with a validation every 5 steps, then 10 steps of stage 2.
fn whole_run() -> Vec<StepRecord> {
    let stage1 = (1..=20).flat_map(|step| {
        let validation = (step % 5 == 0).then(|| record(Phase::Stage1, RecordKind::Validation, step));
        std::iter::once(record(Phase::Stage1, RecordKind::Step, step)).chain(validation)
    });
    stage1.chain((1..=10).map(|step| record(Phase::Stage2, RecordKind::Step, step))).collect()
}

fn position(records: &[StepRecord], phase: Phase, step: u64) -> usize {
    records
        .iter()
        .position(|r| r.phase == phase && r.step > step)
        .unwrap_or_else(|| records.iter().rposition(|r| r.phase == phase).map_or(0, |last| last + 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Killed with the file cut at any byte, restored at any earlier checkpoint: the file ends as if nothing happened.
    #[test]
    fn any_cut_and_any_restored_step_give_one_record_per_step(cut in 0.0f64..=1.0, checkpoint in 0usize..=5) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(METRICS_FILE);
        let run = whole_run();
        let mut file = MetricsFile::create(&path).expect("create");
        run.iter().for_each(|record| assert!(file.append(record).expect("append")));
        let uncut = fs::read(&path).expect("read");
        let cut = (uncut.len() as f64 * cut) as usize;
        fs::write(&path, &uncut[..cut]).expect("cut");
        let survived = read_records(&path).expect("read").len();

        // The newest checkpoint (every 5 steps) that the cut file has reached, or one of those before it.
        let checkpoints = [(Phase::Stage1, 0), (Phase::Stage1, 5), (Phase::Stage1, 10), (Phase::Stage1, 15),
            (Phase::Stage1, 20), (Phase::Stage2, 5)];
        let reached = checkpoints.iter().filter(|c| position(&run, c.0, c.1) <= survived).count();
        let (phase, step) = checkpoints[checkpoint.min(reached.saturating_sub(1))];
        let (mut file, resumed) = MetricsFile::resume(&path, phase, step).expect("resume");
        let next = position(&run, phase, step);
        prop_assert_eq!(&resumed.kept, &run[..next].to_vec());
        prop_assert!(uncut.starts_with(&fs::read(&path).expect("read")));
        run[next..].iter().for_each(|record| assert!(file.append(record).expect("append")));
        prop_assert_eq!(fs::read(&path).expect("read"), uncut);
    }

    /// Damage between records, and a tail cut anywhere, cost those lines and no others.
    #[test]
    fn whole_records_survive_damage_around_them(
        damage in proptest::collection::vec(("[^\n]{0,40}", 0usize..31), 0..6), tail in 0usize..200
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(METRICS_FILE);
        let run = whole_run();
        let mut text = String::new();
        for (place, record) in run.iter().enumerate() {
            for (bytes, _) in damage.iter().filter(|(_, at)| *at == place) {
                text += bytes;
                text += "\n";
            }
            text += &serde_json::to_string(record).expect("json");
            text += "\n";
        }
        let torn = serde_json::to_string(&record(Phase::Stage2, RecordKind::Step, 11)).expect("json");
        text += &torn[..tail.min(torn.len() - 1)];
        fs::write(&path, &text).expect("write");
        prop_assert_eq!(&read_records(&path).expect("read"), &run);
        let (mut file, resumed) = MetricsFile::resume(&path, Phase::Stage2, 10).expect("resume");
        prop_assert_eq!(&resumed.kept, &run);
        prop_assert_eq!(resumed.torn, damage.iter().filter(|(_, at)| *at < run.len()).count() as u64
            + u64::from(tail > 0));
        let next = record(Phase::Stage2, RecordKind::Step, 11);
        prop_assert!(file.append(&next).expect("append"));
        let after = read_records(&path).expect("read");
        prop_assert_eq!((after.len(), after.last()), (run.len() + 1, Some(&next)));
    }

    /// Every finite number comes back with the same bits, every other one as NaN.
    #[test]
    fn any_numbers_are_read_back(
        numbers in proptest::collection::vec(any::<f64>(), 4), name in "\\PC{0,12}", counts in any::<(u64, u64)>()
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(METRICS_FILE);
        let written = StepRecord {
            losses: BTreeMap::from([(name.clone(), numbers[0])]),
            metrics: BTreeMap::from([(name.clone(), numbers[1])]),
            pairs_per_second: numbers[2],
            time_seconds: numbers[3],
            pairs_seen: counts.0,
            bytes_reduced: counts.1,
            left_out: BTreeMap::from([(name.clone(), counts.0)]),
            ..StepRecord::new(Phase::Stage1, RecordKind::Step, 1)
        };
        MetricsFile::create(&path).expect("create").append(&written).expect("append");
        let read = read_records(&path).expect("read").remove(0);
        let read_numbers = [read.losses[&name], read.metrics[&name], read.pairs_per_second, read.time_seconds];
        for (ours, theirs) in numbers.iter().zip(read_numbers) {
            let expected = if ours.is_finite() { *ours } else { f64::NAN };
            prop_assert!(expected.to_bits() == theirs.to_bits() || (expected.is_nan() && theirs.is_nan()));
        }
        prop_assert_eq!((read.pairs_seen, read.bytes_reduced), counts);
        prop_assert_eq!(read.left_out, written.left_out);
    }

    #[test]
    fn any_bytes_are_read_or_passed_over(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(METRICS_FILE);
        fs::write(&path, &bytes).expect("write");
        let (_, resumed) = MetricsFile::resume(&path, Phase::Stage1, 0).expect("resume");
        prop_assert!(resumed.kept.is_empty());
        prop_assert_eq!(fs::read(&path).expect("read").len(), 0);
    }
}

#[test]
fn a_repeated_validation_and_a_damaged_line_do_not_stay() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(METRICS_FILE);
    let mut file = MetricsFile::create(&path).expect("create");
    let run = whole_run();
    run[..6].iter().for_each(|record| assert!(file.append(record).expect("append")));
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.iter().position(|&byte| byte == b'\n').expect("line") + 1;
    bytes.splice(middle..middle, *b"\0\0\0{\"phase\":\n");
    fs::write(&path, &bytes).expect("write");
    let (mut file, resumed) = MetricsFile::resume(&path, Phase::Stage1, 5).expect("resume");
    assert_eq!((resumed.kept.len(), resumed.past, resumed.torn), (6, 0, 1));
    assert!(!file.append(&run[5]).expect("append"), "the validation of step 5 is there already");
    assert_eq!(read_records(&path).expect("read"), &run[..6]);
}

#[test]
fn numbers_that_are_not_finite_survive_as_null() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(METRICS_FILE);
    let mut broken = record(Phase::Stage1, RecordKind::Step, 1);
    broken.losses.insert("loss".to_owned(), f64::NAN);
    broken.pairs_per_second = f64::INFINITY;
    MetricsFile::create(&path).expect("create").append(&broken).expect("append");
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains(r#""loss":null"#) && text.ends_with("}\n"), "{text}");
    let read = read_records(&path).expect("read");
    assert!(read[0].losses["loss"].is_nan() && read[0].pairs_per_second.is_nan());
    assert_eq!(read[0].losses["loss_itc"], broken.losses["loss_itc"]);
}

fn scalars_of(run_dir: &Path) -> Vec<(String, i64, f32)> {
    let files = event_files(&run_dir.join(TENSORBOARD_DIR)).expect("folder");
    assert_eq!(files.len(), 1, "one event file, whatever number of sessions");
    let events = read_events(&files[0]).expect("events");
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    let values = |event: &Event| {
        let values = event.summary.clone().unwrap_or_default().value;
        let step = event.step;
        values.into_iter().filter_map(move |value| Some((value.tag, step, value.simple_value?)))
    };
    events.iter().flat_map(values).collect()
}

#[test]
fn tensorboard_shows_each_step_once_after_a_roll_back() {
    let folder = tempfile::tempdir().expect("folder");
    let run = whole_run();
    let mut file = MetricsFile::create(&folder.path().join(METRICS_FILE)).expect("create");
    run[..20].iter().for_each(|record| assert!(file.append(record).expect("append")));
    let start = Start::Resumed { phase: Phase::Stage1, step: 10 };
    let mut metrics = Metrics::open(folder.path(), true, start, "[run]\nseed = 1");
    assert!(metrics.run_seconds() >= 15.0, "the clock of the run goes on where step 10 was");
    let next = position(&run, Phase::Stage1, 10);
    run[next..].iter().for_each(|record| metrics.record(record));
    assert_eq!(metrics.failures(), 0);
    let read = read_records(&folder.path().join(METRICS_FILE)).expect("read");
    assert!(read.is_sorted_by_key(|record| record.time_seconds) && read[run.len() - 1].time_seconds < 20.0);
    let untimed = |records: &[StepRecord]| -> Vec<StepRecord> {
        records.iter().map(|record| StepRecord { time_seconds: 0.0, ..record.clone() }).collect()
    };
    assert_eq!(untimed(&read), untimed(&run));

    let scalars = scalars_of(folder.path());
    let of_tag = |tag: &str| -> Vec<(i64, f32)> {
        scalars.iter().filter(|(name, ..)| name == tag).map(|(_, step, value)| (*step, *value)).collect()
    };
    assert_eq!(of_tag("stage1/loss_itc"), (1..=20).map(|s| (s, (0.1 + s as f64) as f32)).collect::<Vec<_>>());
    assert_eq!(of_tag("stage2/lr").len(), 10);
    let validations: Vec<i64> =
        of_tag("stage1/validation/itm_accuracy").iter().map(|(step, _)| *step).collect();
    assert_eq!(validations, [5, 10, 15, 20]);
}

#[test]
fn a_fresh_start_keeps_the_old_records_aside() {
    let folder = tempfile::tempdir().expect("folder");
    for step in [1, 2] {
        let mut metrics = Metrics::open(folder.path(), true, Start::Fresh, "");
        metrics.record(&record(Phase::Features, RecordKind::Step, step));
    }
    let steps = |name: &str| {
        read_records(&folder.path().join(name)).expect("read").iter().map(|r| r.step).sum::<u64>()
    };
    assert_eq!((steps("metrics.jsonl"), steps("metrics.jsonl.old")), (2, 1));
}

#[test]
fn sinks_that_fail_are_told_once_and_do_not_stop_anything() {
    let folder = tempfile::tempdir().expect("folder");
    let run_dir = folder.path().join("file");
    fs::write(&run_dir, "a file where the folder should be").expect("write");
    let mut metrics = Metrics::open(&run_dir, true, Start::Fresh, "");
    whole_run().iter().for_each(|record| metrics.record(record));
    assert_eq!((metrics.failures(), metrics.warnings().len()), (2, 1), "{:?}", metrics.warnings());
    assert!(metrics.warnings()[0].contains("training goes on"));
}

#[test]
fn ranks_other_than_0_write_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mut metrics = Metrics::open(folder.path(), false, Start::Fresh, "");
    metrics.begin_phase(Phase::Stage1, 10, 0);
    metrics.record(&record(Phase::Stage1, RecordKind::Step, 1));
    metrics.warn("nobody hears this");
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
    assert!(metrics.warnings().is_empty());
}

#[test]
fn the_itm_alarm_reaches_the_warnings_once() {
    let folder = tempfile::tempdir().expect("folder");
    let mut metrics = Metrics::open(folder.path(), true, Start::Fresh, "");
    for step in 1..=400 {
        let mut record = StepRecord::new(Phase::Stage1, RecordKind::Step, step);
        record.losses.insert("loss_itm".to_owned(), 0.637);
        metrics.record(&record);
    }
    assert_eq!(metrics.warnings().len(), 1, "{:?}", metrics.warnings());
    assert!(metrics.warnings()[0].contains("1:2 prior"));
}
