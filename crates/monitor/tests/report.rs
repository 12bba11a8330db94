//! The page: complete, made of one file, and never markup out of a caption.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use monitor::report::{
    GalleryItem, Mime, PhaseFacts, ReferenceRow, ReportData, RunFacts, SplitFacts, write_report,
};
use monitor::{
    CaptionScores, Directions, EvalFile, METRICS_FILE, MetricsFile, MonitorError, Phase, Recalls, RecordKind,
    RetrievalScores, StepRecord,
};
use proptest::prelude::*;

/// The smallest PNG: one grey pixel.
const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0, 1, 0, 0,
    0, 1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 0x0a, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63,
    0x68, 0, 0, 0, 0x82, 0, 0x81, 0xdd, 0x43, 0x6a, 0xf4, 0, 0, 0, 0, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42,
    0x60, 0x82,
];

/// A loss that falls with noise, as losses do.
fn falling(step: u64, from: f64, to: f64) -> f64 {
    let noise = ((step * 2_654_435_761) % 1000) as f64 / 1000.0 - 0.5;
    to + (from - to) * (-(step as f64) / 120.0).exp() + 0.12 * from * noise
}

fn records() -> Vec<StepRecord> {
    let mut records = Vec::new();
    for step in 1..=600 {
        let mut record = StepRecord::new(Phase::Stage1, RecordKind::Step, step);
        let losses = [
            ("loss_itc", falling(step, 4.1, 0.9)),
            ("loss_itm", falling(step, 0.69, 0.2)),
            ("loss_itg", falling(step, 6.5, 1.6)),
        ];
        record.losses = losses.map(|(name, value)| (name.to_owned(), value)).into();
        record.losses.insert("loss".to_owned(), losses.iter().map(|(_, value)| value).sum());
        (record.lr, record.grad_norm) =
            (Some(3e-4 * (step as f64 / 600.0 * std::f64::consts::PI).sin()), Some(falling(step, 4.0, 1.0)));
        record.metrics.insert("itm_accuracy".to_owned(), 1.0 - falling(step, 0.34, 0.1));
        record.pairs_per_second = 52.0 + falling(step, 3.0, 0.0);
        (record.step_seconds, record.data_wait_seconds) = (1.2, 0.01);
        records.push(record);
        if step % 60 == 0 {
            let mut validation = StepRecord::new(Phase::Stage1, RecordKind::Validation, step);
            validation.losses.insert("loss_itc".to_owned(), falling(step, 4.0, 1.5));
            validation.metrics.insert("itc_i2t_r1".to_owned(), 0.4 - falling(step, 0.4, 0.05));
            records.push(validation);
        }
    }
    for (phase, floor) in [(Phase::Stage2, 1.9), (Phase::Stage2WithoutStage1, 2.6)] {
        for step in 1..=150 {
            let mut record = StepRecord::new(phase, RecordKind::Step, step);
            let loss = falling(step, 5.2, floor);
            record.losses =
                [("loss", loss), ("loss_lm", loss)].map(|(name, value)| (name.to_owned(), value)).into();
            (record.lr, record.pairs_per_second) = (Some(1e-4), 10.0);
            records.push(record);
        }
    }
    records
}

fn eval() -> EvalFile {
    let around = |r1: f64| Recalls { r1, r5: r1 * 1.9, r10: r1 * 2.3 };
    let both = |r1: f64| Directions { i2t: around(r1), t2i: around(r1 * 0.95) };
    let splits =
        [("concept_google", 166, 0.291), ("style", 1364, 0.312), ("both", 166, 0.21), ("val", 69, 0.36)];
    let captions = CaptionScores {
        count: 400,
        cider: 1.93,
        exact: 0.12,
        near: 0.21,
        cider_shuffled: 0.21,
        cider_without_stage1: Some(0.74),
        exact_without_stage1: Some(0.03),
    };
    EvalFile {
        retrieval: splits
            .map(|(s, _, r1)| (s.to_owned(), RetrievalScores { itc: both(r1 - 0.03), itm: both(r1) }))
            .into(),
        candidates: splits.map(|(split, n, _)| (split.to_owned(), n)).into(),
        captions: BTreeMap::from([("style".to_owned(), captions)]),
        seconds: BTreeMap::from([(Phase::Features, 41.0), (Phase::Stage1, 1201.5), (Phase::Stage2, 300.0)]),
        peak_rss_bytes: 5 << 30,
        pairs_per_second: BTreeMap::from([(Phase::Stage1, 52.3), (Phase::Stage2, 10.4)]),
    }
}

/// A report with `text` in every place that can hold text.
fn report(text: &str) -> ReportData {
    let named = |name: &str| format!("{name} {text}").trim_end().to_owned();
    let split =
        |name: &str, description: &str| SplitFacts { name: name.to_owned(), description: named(description) };
    let phase = |phase, steps| PhaseFacts {
        phase,
        steps,
        pairs: steps * 64,
        trainable_parameters: 16_263_552,
        bytes_reduced_per_step: 65_054_208,
    };
    let reference = |name: &str, split: &str, r1: f64| ReferenceRow {
        name: named(name),
        split: split.to_owned(),
        i2t: Some(Recalls { r1, r5: r1 * 1.9, r10: r1 * 2.2 }),
        t2i: None,
    };
    let item = |index: usize| GalleryItem {
        picture: PNG.to_vec(),
        mime: Mime::of(PNG).expect("a PNG"),
        split: named("style"),
        reference: named("bow and arrow"),
        generated: named(["bow and arrow", "a red balloon"][index % 2]),
        generated_without_stage1: Some(named("a person")),
        nearest_by_itc: Some(named("bow and arrow")),
    };
    ReportData {
        title: named("quickstart: BLIP-2 on emoji"),
        summary: named("Stage 1, stage 2 and evaluation on held-out concepts and a held-out drawing style."),
        facts: RunFacts {
            config_name: named("configs/quickstart.toml"),
            seed: 7,
            world_size: 2,
            device: named("cpu, bf16 autocast"),
            phases: vec![
                phase(Phase::Stage1, 600),
                phase(Phase::Stage2, 150),
                phase(Phase::Stage2WithoutStage1, 150),
            ],
            more: vec![(named("frozen encoder"), named("EfficientNet-Lite0"))],
        },
        eval: eval(),
        splits: vec![
            split("style", "Concepts of the training set in a drawing style that it does not have."),
            split("concept_google", "Concepts that training never saw, drawn by Google."),
        ],
        references: vec![
            reference("ridge on pooled features", "style", 0.153),
            reference("LAVIS 1.0.2, 30 min", "style", 0.231),
        ],
        gallery_choice: named("The first 24 pictures in a fixed random order; none was picked."),
        gallery: (0..24).map(item).collect(),
        notes: vec![named("This was the short run: stage 1 took 600 steps instead of 2,400.")],
        attributions: vec![named("Pictures: Noto Emoji (Apache-2.0).")],
        records: records(),
    }
}

fn page(data: &ReportData, path: &Path) -> String {
    write_report(path, data).expect("write");
    fs::read_to_string(path).expect("read")
}

#[test]
fn the_page_holds_every_figure_and_loads_nothing() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report.html"); // stays, to be looked at
    let html = page(&report(""), &path);
    for expected in [
        "31.2 <small>± 1.3</small>",
        "15.3",
        "<li><span>chance, 1 of 1,364</span><span>0.1%</span></li>",
        "<li><span>LAVIS 1.0.2, 30 min</span><span>23.1%</span></li>",
        "9.2 ×",
        "16,263,552",
        "20 min 02 s",
        "<th scope=\"row\">features</th><td>41 s</td><td>–</td>",
        "Both runs start",
        "0.6365: only the 1:2 prior learnt",
        "✓ bow and arrow",
        "5.00 GiB",
        "52.3",
    ] {
        assert!(html.contains(expected), "{expected} is not on the page");
    }
    assert_eq!(html.matches("data:image/png;base64,").count(), 24);
    assert_eq!(html.matches("<figcaption>Total loss").count(), 1, "stage 2 has one loss, drawn once");
    for banned in ["<script", "http://", "https://", "NaN", "<link", "@import"] {
        assert!(!html.contains(banned), "{banned} is on the page");
    }
    let place = |name: &str| html.find(&format!("<h3>{name} ")).expect("split");
    assert!(
        place("style") < place("concept_google") && place("concept_google") < place("both"),
        "splits in given order"
    );
}

#[test]
fn an_empty_run_gives_a_page_too() {
    let folder = tempfile::tempdir().expect("folder");
    let html = page(&ReportData::default(), &folder.path().join("report.html"));
    assert!(html.ends_with("</html>\n") && !html.contains("NaN"));
}

#[test]
fn a_caption_is_never_markup() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("report.html");
    let plain = page(&report("x"), &path);
    let attacks = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onload='alert(1)",
        "</style></svg><svg/onload=x>",
        "</title><h1>",
        "<!--",
        "&lt;script&gt;",
        "javascript:x",
    ];
    for attack in attacks {
        let html = page(&report(attack), &path);
        for mark in ["<", ">", "\"", "'"] {
            assert_eq!(html.matches(mark).count(), plain.matches(mark).count(), "{attack} added {mark}");
        }
    }
}

#[test]
fn names_of_losses_and_splits_are_text_as_well() {
    let folder = tempfile::tempdir().expect("folder");
    let mut data = report("");
    let attack = "<img src=x onerror=alert(1)>";
    data.records[0].losses.insert(attack.to_owned(), 1.0);
    data.records[0].metrics.insert(attack.to_owned(), 1.0);
    data.eval.retrieval.insert(attack.to_owned(), RetrievalScores::default());
    data.eval.captions.insert(attack.to_owned(), CaptionScores::default());
    let html = page(&data, &folder.path().join("report.html"));
    assert!(!html.contains("<img src=x") && html.contains("&lt;img src=x onerror=alert(1)&gt;"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_text_leaves_the_structure_as_it_is(text in "\\PC{1,12}") {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("report.html");
        let (plain, html) = (page(&report("x"), &path), page(&report(&text), &path));
        for mark in ["<", ">", "\"", "'"] {
            prop_assert_eq!(html.matches(mark).count(), plain.matches(mark).count());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_as_a_report(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(ReportData::FILE);
        fs::write(&path, &bytes).expect("write");
        let (report, eval) = (ReportData::read(folder.path()), EvalFile::read(&path));
        let refused = matches!(report, Err(MonitorError::Json { .. }));
        let both_refused = refused && matches!(eval, Err(MonitorError::Json { .. }));
        prop_assert!(both_refused);
        let _ = Mime::of(&bytes);
    }
}

#[test]
fn a_report_is_made_again_from_disk() {
    let folder = tempfile::tempdir().expect("folder");
    let data = report("é < 猫");
    let mut file = MetricsFile::create(&folder.path().join(METRICS_FILE)).expect("create");
    data.records.iter().for_each(|record| assert!(file.append(record).expect("append")));
    data.write(folder.path()).expect("write");
    let again = ReportData::read(folder.path()).expect("read");
    assert_eq!(again, data);
    fs::write(folder.path().join(ReportData::FILE), "{\"title\": 3}").expect("write");
    assert!(matches!(ReportData::read(folder.path()), Err(MonitorError::Json { .. })));
}

#[test]
fn eval_json_has_the_documented_keys() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("eval.json");
    eval().write(&path).expect("write");
    assert_eq!(EvalFile::read(&path).expect("read"), eval());
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
    let at = |dots: &str| dots.split('.').fold(&json, |value, key| &value[key]).as_f64();
    for split in ["concept_google", "style", "both", "val"] {
        for key in ["itc.i2t.r1", "itc.t2i.r5", "itm.i2t.r10", "itm.t2i.r1"] {
            assert!(at(&format!("retrieval.{split}.{key}")).is_some(), "{split} {key}");
        }
    }
    for key in ["cider", "exact", "near", "cider_shuffled", "cider_without_stage1"] {
        assert!(at(&format!("captions.style.{key}")).is_some(), "{key}");
    }
    assert_eq!(at("seconds.stage1"), Some(1201.5));
    assert_eq!(at("pairs_per_second.stage2"), Some(10.4));
    assert_eq!(at("peak_rss_bytes"), Some((5u64 << 30) as f64));
}
