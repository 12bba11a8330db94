//! A config file, with `--set` over it, becomes a [`Config`]; what is wrong in it is named with its line.

use std::path::Path;

use super::Config;
use crate::error::TrainError;

impl Config {
    /// Reads `path` and applies `--set key=value` overrides.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the file, the key, the line and what to do.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
        let refuse = |detail: String| TrainError::Config { path: path.to_owned(), detail };
        let plain = toml::from_str(&text).map_err(|error| refuse(explain(&error)));
        if overrides.is_empty() {
            return plain;
        }
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| refuse(explain(&error)))?;
        for assignment in overrides {
            assign(&mut table, assignment).map_err(|why| refuse(format!("--set {assignment}: {why}")))?;
        }
        serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
            let key = error.path().to_string();
            let set = overrides.iter().any(|assignment| assigns(assignment, &key));
            match plain {
                // What is wrong in the file is told with its line.
                Err(in_file) if !set => in_file,
                _ => refuse(format!("--set: {key}: {}", explain_message(error.into_inner().message()))),
            }
        })
    }

    /// The file as it was understood, defaults written out; kept beside the run and in every checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Config`] when a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string_pretty(self)
            .map_err(|e| TrainError::Config { path: self.run.dir.clone(), detail: e.to_string() })
    }
}

/// toml's message (it has line, column and a caret), with the nearest known key where one was misspelt.
fn explain(error: &toml::de::Error) -> String {
    match nearest_key(error.message()) {
        Some(key) => format!("{error}did you mean `{key}`?"),
        None => error.to_string(),
    }
}

fn explain_message(message: &str) -> String {
    match nearest_key(message) {
        Some(key) => format!("{message}; did you mean `{key}`?"),
        None => message.to_owned(),
    }
}

/// Of the known keys that a message about an unknown one lists, the one that was probably meant.
fn nearest_key(message: &str) -> Option<&str> {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (typo, known) = quoted.split_first()?;
    if !message.starts_with("unknown field") {
        return None;
    }
    let nearest = known.iter().copied().min_by_key(|key| edit_distance(typo, key));
    nearest.filter(|key| edit_distance(typo, key) <= 3)
}

/// Whether `key=value` sets `key`, or something in it or around it.
fn assigns(assignment: &str, key: &str) -> bool {
    let set = assignment.split('=').next().unwrap_or_default().trim();
    let inside = |one: &str, other: &str| {
        one == other || one.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'))
    };
    inside(set, key) || inside(key, set)
}

/// Levenshtein distance in bytes; keys are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Puts `a.b.c=value` into the table; the value is TOML, or a bare string.
fn assign(table: &mut toml::Table, assignment: &str) -> Result<(), String> {
    let (key, value) = assignment.split_once('=').ok_or("expected key=value")?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut place = table;
    let mut parts = key.trim().split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            place.insert(part.to_owned(), parsed);
            return Ok(());
        }
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`{part}` is not a table"))?;
    }
    Err("the key is empty".into())
}
