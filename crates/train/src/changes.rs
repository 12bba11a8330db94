//! A launch with another config in a run folder that already holds checkpoints: what may change, and what may not.

use std::path::Path;

use monitor::report::REPORT_FILE;
use toml::{Table, Value};

use crate::config::Config;
use crate::error::TrainError;
use crate::plan::{Plan, StagePlan};

/// Keys of `data` that say how fast, not what: they may change at any time.
const HOW_FAST: [&[&str]; 6] = [
    &["workers"],
    &["licences"],
    &["features", "dir"],
    &["features", "batch"],
    &["source", "shards_ahead"],
    &["source", "cache"],
];

/// The part of `model` that belongs to stage 2.
const LANGUAGE: &str = "model.language";

/// Compares the plan's config with `before`, the one of the last launch. A warning names the tables that changed; none where
/// nothing did, or nothing is trained yet.
///
/// # Errors
/// [`TrainError::Config`] where what is trained already would be another thing with the new config.
pub fn check(before: &str, plan: &Plan) -> Result<Option<String>, TrainError> {
    let stages = [("stage1", Some(&plan.stage1)), ("stage2", Some(&plan.stage2))];
    let control = ("stage2", plan.stage2_without_stage1.as_ref());
    let mut newest = Vec::new();
    for (table, stage) in stages.into_iter().chain([control]) {
        newest.extend(stage.map(newest_step).transpose()?.flatten().map(|step| (table, step)));
    }
    if newest.is_empty() {
        return Ok(None);
    }
    // A config that an older version wrote may lack keys that have defaults now.
    let before = toml::from_str::<Config>(before).ok().and_then(|config| Table::try_from(config).ok());
    let (before, now) = (before.unwrap_or_default(), Table::try_from(&plan.config).unwrap_or_default());
    let changed = changed_tables(&before, &now);
    let fixed: Vec<&str> =
        changed.iter().filter(|table| is_fixed(table, &before, &newest)).map(String::as_str).collect();
    if !fixed.is_empty() {
        let dir = &plan.config.run.dir;
        return Err(TrainError::Config {
            path: dir.join("config.toml"),
            detail: format!(
                "the last launch in {dir} had another {}, and what it trained stays as it is: use another run.dir, \
                 or remove {dir}",
                fixed.join(", "),
                dir = dir.display(),
            ),
        });
    }
    Ok((!changed.is_empty()).then(|| {
        format!("the config has changed since the last launch in {}", changed.join(", "))
            + "; what comes from now on is of the new one"
    }))
}

/// A changed config makes another report: without this, a launch that is killed would leave the old one as its own.
///
/// # Errors
/// [`TrainError::Write`].
pub fn forget_report(run_dir: &Path) -> Result<(), TrainError> {
    let path = run_dir.join(REPORT_FILE);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::Write { path, source })
        }
        _ => Ok(()),
    }
}

fn newest_step(stage: &StagePlan) -> Result<Option<u64>, TrainError> {
    Ok(checkpoint::list(&stage.checkpoint_dir)?.last().map(|listed| listed.step))
}

/// Top-level tables that differ in what they say, and the language model, which stage 1 never meets.
fn changed_tables(before: &Table, now: &Table) -> Vec<String> {
    let said = |config: &Table, table: &str| {
        let mut value = config.get(table).cloned();
        match value.as_mut() {
            Some(Value::Table(data)) if table == "data" => {
                HOW_FAST.iter().for_each(|path| remove(data, path))
            }
            Some(Value::Table(model)) if table == "model" => remove(model, &["language"]),
            _ => {}
        }
        value
    };
    let language = |config: &Table| config.get("model").and_then(|model| model.get("language")).cloned();
    let tables = now.keys().filter(|table| said(before, table) != said(now, table)).cloned();
    tables.chain((language(before) != language(now)).then(|| LANGUAGE.to_owned())).collect()
}

fn remove(table: &mut Table, path: &[&str]) {
    match path {
        [key] => drop(table.remove(*key)),
        [key, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(*key) {
                remove(inner, rest);
            }
        }
        [] => {}
    }
}

/// Data and model belong to every checkpoint, the language model to stage 2's, a stage's table to that of its last step.
fn is_fixed(table: &str, before: &Table, newest: &[(&str, u64)]) -> bool {
    if table == LANGUAGE {
        return newest.iter().any(|(of, _)| *of == "stage2");
    }
    let steps = before.get(table).and_then(|stage| stage.get("steps")).and_then(Value::as_integer);
    let is_finished = |step: u64| steps.is_none_or(|steps| step as i64 >= steps);
    matches!(table, "data" | "model") || newest.iter().any(|(of, step)| *of == table && is_finished(*step))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::*;

    const BEFORE: &str = "[run]\nseed = 1\n[data]\nworkers = 1\ntrain = 'a'\n[data.features]\ndir = 'x'\nviews = 2\n\
                          [model]\nwidth = 8\n[stage1]\nsteps = 10\n[stage2]\nsteps = 20";

    fn changed(from: &str, to: &str) -> Vec<String> {
        assert_eq!(BEFORE.matches(from).count(), 1);
        let table = |text: &str| text.parse::<Table>().unwrap();
        changed_tables(&table(BEFORE), &table(&BEFORE.replace(from, to)))
    }

    #[test]
    fn tables_that_say_other_things_are_named() {
        assert_eq!(changed("seed = 1", "seed = 2"), ["run"]);
        assert_eq!(changed("[stage1]", "[model.language]\nprompt = 'a'\n[stage1]"), ["model.language"]);
        assert_eq!(changed("views = 2", "views = 3"), ["data"]);
        assert_eq!(changed("steps = 20", "steps = 21"), ["stage2"]);
        assert!(changed("workers = 1", "workers = 4").is_empty());
        assert!(changed("dir = 'x'", "dir = 'y'").is_empty());
    }

    #[test]
    fn data_model_and_finished_stages_are_fixed() {
        let before: Table = BEFORE.parse().unwrap();
        let fixed = |table| is_fixed(table, &before, &[("stage1", 10), ("stage2", 19)]);
        assert_eq!(["run", "data", "model", "stage1", "stage2"].map(fixed), [false, true, true, true, false]);
    }

    #[test]
    fn a_report_is_forgotten_once_and_its_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(REPORT_FILE), "old").unwrap();
        forget_report(dir.path()).unwrap();
        assert!(!dir.path().join(REPORT_FILE).exists());
        forget_report(dir.path()).unwrap();
    }
}
