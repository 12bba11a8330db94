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
        let plain: Self = toml::from_str(&text).map_err(|error| refuse(explain(&error)))?;
        if overrides.is_empty() {
            return Ok(plain);
        }
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| refuse(explain(&error)))?;
        for assignment in overrides {
            assign(&mut table, assignment).map_err(|why| refuse(format!("--set {assignment}: {why}")))?;
        }
        serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
            let key = error.path().to_string();
            refuse(format!("--set: {key}: {}", error.into_inner().message()))
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
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((typo, known)) if message.starts_with("unknown field") => {
            let nearest = known.iter().min_by_key(|key| edit_distance(typo, key));
            match nearest.filter(|key| edit_distance(typo, key) <= 3) {
                Some(key) => format!("{error}did you mean `{key}`?"),
                None => error.to_string(),
            }
        }
        _ => error.to_string(),
    }
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
