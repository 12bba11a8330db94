//! What is said about a case: a table for people, or one JSON object.

use std::fmt::Write as _;

use serde::Serialize;

use super::sheet::Row;

/// The outcome of one case.
#[derive(Serialize)]
pub(super) struct Report {
    /// Its name, or its folder where it has none.
    pub case: String,
    /// Its family, as far as it could be read.
    pub family: Option<String>,
    /// Whether all of it was run and met.
    pub ok: bool,
    /// Why it could not be run.
    pub error: Option<String>,
    /// What was compared.
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(case: String, family: Option<String>, outcome: Result<Vec<Row>, String>) -> Self {
        let (rows, error) = match outcome {
            Ok(rows) => (rows, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        // A case of which nothing was compared is not met.
        let ok =
            error.is_none() && rows.iter().any(|row| row.ok.is_some()) && !rows.iter().any(Row::is_short);
        Self { case, family, ok, error, rows }
    }

    /// One line about a case that is not met.
    pub fn summary(&self) -> String {
        if let Some(error) = &self.error {
            return format!("{}: {error}", self.case);
        }
        let short: Vec<&str> =
            self.rows.iter().filter(|row| row.is_short()).map(|row| row.tensor.as_str()).collect();
        let shown = short.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        match short.len() {
            0 => format!("{}: nothing was compared", self.case),
            n if n > 5 => format!("{}: {shown} and {} more fall short", self.case, n - 5),
            _ => format!("{}: {shown} fall short", self.case),
        }
    }

    /// The table, with a head line.
    pub fn table(&self) -> String {
        let family = self.family.as_deref().unwrap_or("family unknown");
        let verdict = if self.ok { "ok" } else { "FALLS SHORT" };
        let compared = self.rows.iter().filter(|row| row.ok.is_some()).count();
        let mut text = format!("{} ({family}): {verdict}, {compared} compared\n", self.case);
        if let Some(error) = &self.error {
            let _ = writeln!(text, "  {error}");
            return text;
        }
        let width =
            self.rows.iter().map(|row| row.tensor.chars().count()).max().unwrap_or(0).max("tensor".len());
        let _ =
            writeln!(text, "  {:width$}  {:>9}  {:>9}  {:>9}  ok", "tensor", "max abs", "max rel", "limit");
        for row in &self.rows {
            let [max_abs, max_rel, limit] = [row.max_abs, row.max_rel, row.limit].map(number);
            let ok = match row.ok {
                Some(true) => "ok",
                Some(false) => "NO",
                None => "left out",
            };
            let note = row.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            let _ =
                writeln!(text, "  {:width$}  {max_abs:>9}  {max_rel:>9}  {limit:>9}  {ok}{note}", row.tensor);
        }
        text
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(value) => format!("{value:.2e}"),
    }
}
