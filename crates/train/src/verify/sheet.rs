//! Ours beside theirs, tensor by tensor; nothing that is expected is passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::case::{Case, EXPECTED, Tolerance};
use crate::error::TrainError;

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct Row {
    /// What was compared, in the case's words.
    pub tensor: String,
    /// Largest difference; `None` when it is no number, or nothing could be compared.
    pub max_abs: Option<f64>,
    /// The same as a share of the largest expected value.
    pub max_rel: Option<f64>,
    /// Largest difference allowed.
    pub limit: Option<f64>,
    /// Whether it is met; `None` for what is left out on purpose, which `note` explains.
    pub ok: Option<bool>,
    /// Why not, where numbers do not say it.
    pub note: Option<String>,
}

impl Row {
    /// A line without numbers that is not met.
    pub fn short(tensor: &str, why: impl Into<String>) -> Self {
        Self { ok: Some(false), ..Self::left_out(tensor, why) }
    }

    /// A line about what we do not have, and do not claim to have.
    pub fn left_out(tensor: &str, why: impl Into<String>) -> Self {
        let [max_abs, max_rel, limit] = [None; 3];
        Self { tensor: tensor.to_owned(), max_abs, max_rel, limit, ok: None, note: Some(why.into()) }
    }

    /// Whether it is compared and not met.
    pub fn is_short(&self) -> bool {
        self.ok == Some(false)
    }

    /// Numbers by their largest difference: `largest` is the largest expected magnitude.
    pub fn numbers(tensor: &str, max_abs: f64, largest: f64, tolerance: Tolerance) -> Self {
        let limit = tolerance.abs + tolerance.rel * largest;
        let finite = |value: f64| value.is_finite().then_some(value);
        Self {
            tensor: tensor.to_owned(),
            max_abs: finite(max_abs),
            max_rel: finite(if max_abs == 0.0 { 0.0 } else { max_abs / largest }),
            limit: finite(limit),
            // An infinite limit (theirs is not finite) is none; NaN is never met.
            ok: Some(limit.is_finite() && max_abs <= limit),
            note: (!max_abs.is_finite() || !limit.is_finite()).then(|| "a value is not finite".into()),
        }
    }

    /// One number.
    pub fn number(tensor: &str, ours: f64, theirs: f64, tolerance: Tolerance) -> Self {
        Self::numbers(tensor, (ours - theirs).abs(), theirs.abs(), tolerance)
    }

    /// Many numbers in one line.
    pub fn list(tensor: &str, ours: &[f64], theirs: &[f64], tolerance: Tolerance) -> Self {
        if ours.len() != theirs.len() || ours.is_empty() {
            return Self::short(tensor, format!("{} values, expected {}", ours.len(), theirs.len()));
        }
        // f64::max forgets NaN.
        let worst = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(0.0, |a: f64, b| if a.is_nan() || a > b { a } else { b })
        };
        let max_abs = worst(&mut ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()));
        Self::numbers(tensor, max_abs, worst(&mut theirs.iter().map(|b| b.abs())), tolerance)
    }

    /// Texts, or lists of ids, that must be equal one by one; the note shows the first that is not.
    pub fn equal<T: PartialEq + std::fmt::Debug>(tensor: &str, ours: &[T], theirs: &[T]) -> Self {
        let differs = ours.iter().zip(theirs).position(|(a, b)| a != b);
        let note = match differs {
            Some(at) => Some(format!("number {at} is {:?}, expected {:?}", ours[at], theirs[at])),
            None if ours.len() != theirs.len() => {
                Some(format!("{} of them, expected {}", ours.len(), theirs.len()))
            }
            None => None,
        };
        let [max_abs, max_rel, limit] = [None; 3];
        Self { tensor: tensor.to_owned(), max_abs, max_rel, limit, ok: Some(note.is_none()), note }
    }

    /// Tensors of one shape; a scalar and one element are the same shape.
    pub fn tensors(tensor: &str, ours: &Tensor, theirs: &Tensor, tolerance: Tolerance) -> Self {
        let both_scalar = ours.numel() == 1 && theirs.numel() == 1 && ours.dim().max(theirs.dim()) == 1;
        if ours.size() != theirs.size() && !both_scalar {
            return Self::short(tensor, format!("shape {:?}, expected {:?}", ours.size(), theirs.size()));
        }
        if theirs.numel() == 0 {
            return Self::short(tensor, "there is nothing to compare");
        }
        no_grad(|| {
            let flat = |t: &Tensor| t.detach().to_kind(Kind::Double).reshape([-1]);
            let (ours, theirs) = (flat(ours), flat(theirs));
            let max_abs = (&ours - &theirs).abs().max().double_value(&[]);
            Self::numbers(tensor, max_abs, theirs.abs().max().double_value(&[]), tolerance)
        })
    }
}

/// The expected tensors of a case, each crossed out when it has been compared.
pub(super) struct Sheet {
    expected: BTreeMap<String, Tensor>,
    rows: Vec<Row>,
}

impl Sheet {
    /// Reads what `case` expects.
    pub fn open(case: &Case) -> Result<Self, TrainError> {
        Ok(Self { expected: case.tensors(EXPECTED)?.map, rows: Vec::new() })
    }

    /// Keeps only names that satisfy `keep`: the others are somebody else's to compare.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.expected.retain(|name, _| keep(name));
    }

    /// Compares all of `ours`.
    pub fn close(&mut self, name: &str, ours: &Tensor, tolerance: Tolerance) {
        if let Some(theirs) = self.take(name) {
            self.rows.push(Row::tensors(name, ours, &theirs, tolerance));
        }
    }

    /// Compares integers.
    pub fn equal(&mut self, name: &str, ours: &Tensor) {
        self.close(name, ours, Tolerance::EXACT);
    }

    /// Compares `ours` (`[N, ..]`) with those rows of the expected `[B, T, ..]` where `mask` (`[B, T]`) is 1.
    pub fn close_where(&mut self, name: &str, ours: &Tensor, mask: &Tensor, tolerance: Tolerance) {
        let Some(theirs) = self.take(name) else { return };
        let row = match theirs.size().get(..2) == Some(&mask.size()) {
            true => Row::tensors(name, ours, &pack(&theirs, mask), tolerance),
            false => Row::short(name, format!("positions {:?}, expected {:?}", mask.size(), theirs.size())),
        };
        self.rows.push(row);
    }

    /// Whether `name` is expected and not yet compared.
    pub fn expects(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    /// Compares `ours` with the expected `name` under a `line` of its own, and leaves `name` to be compared once more.
    pub fn also_close(&mut self, name: &str, line: &str, ours: &Tensor, tolerance: Tolerance) {
        if let Some(theirs) = self.expected.get(name) {
            self.rows.push(Row::tensors(line, ours, theirs, tolerance));
        }
    }

    /// As [`Sheet::also_close`], the share of elements that differ instead of the largest difference.
    pub fn also_count_differing(&mut self, name: &str, line: &str, ours: &Tensor, tolerance: Tolerance) {
        let Some(theirs) = self.expected.get(name).filter(|theirs| theirs.size() == ours.size()) else {
            return;
        };
        let share = ours.ne_tensor(theirs).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        self.rows.push(Row::number(line, share, 0.0, tolerance));
    }

    /// Crosses `name` out without comparing it, and says why.
    pub fn leave_out(&mut self, name: &str, why: &str) {
        self.expected.remove(name);
        self.rows.push(Row::left_out(name, why));
    }

    /// Names of expected tensors that start with `prefix`, without it.
    pub fn named(&self, prefix: &str) -> Vec<String> {
        self.expected.keys().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// Adds a line that is not about an expected tensor.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// All lines, with one that is not met for each expected tensor that was compared with nothing.
    pub fn finish(mut self) -> Vec<Row> {
        let left = std::mem::take(&mut self.expected);
        self.rows.extend(left.keys().map(|name| Row::short(name, "we have nothing to compare it with")));
        self.rows
    }

    fn take(&mut self, name: &str) -> Option<Tensor> {
        let found = self.expected.remove(name);
        if found.is_none() {
            self.rows.push(Row::short(name, format!("missing from {EXPECTED}")));
        }
        found
    }
}

/// The rows of `padded` (`[B, T, ..]`) where `mask` (`[B, T]`) is not 0: `[N, ..]`.
pub(super) fn pack(padded: &Tensor, mask: &Tensor) -> Tensor {
    padded.detach().flatten(0, 1).index_select(0, &mask.reshape([-1]).nonzero().view([-1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Tolerance = Tolerance { abs: 0.1, rel: 0.01 };

    fn row(ours: &[f32], theirs: &[f32]) -> Row {
        Row::tensors("x", &Tensor::from_slice(ours), &Tensor::from_slice(theirs), LIMIT)
    }

    #[test]
    fn the_limit_grows_with_the_largest_expected_value() {
        assert_eq!(row(&[10.19, 0.0], &[10.0, 0.0]).ok, Some(true));
        assert!(row(&[10.21, 0.0], &[10.0, 0.0]).is_short());
        assert!(!row(&[10.0, 0.19], &[10.0, 0.0]).is_short(), "the limit is the tensor's, not the element's");
        let found = row(&[1.5], &[-1.0]);
        assert_eq!((found.max_abs, found.max_rel, found.ok), (Some(2.5), Some(2.5), Some(false)));
    }

    #[test]
    fn what_is_no_number_never_passes() {
        for (ours, theirs) in [
            ([f32::NAN, 0.0], [0.0, 0.0]),
            ([0.0, 0.0], [f32::NAN, 0.0]),
            ([f32::NAN; 2], [f32::NAN; 2]),
            ([0.0, 0.0], [f32::INFINITY, 0.0]),
            ([f32::INFINITY; 2], [f32::INFINITY; 2]),
        ] {
            let found = row(&ours, &theirs);
            assert!(found.is_short() && found.note.is_some(), "{found:?}");
        }
        assert!(Row::list("x", &[f64::NAN, 1.0], &[1.0, 1.0], LIMIT).is_short());
    }

    #[test]
    fn another_shape_or_nothing_never_passes() {
        assert!(row(&[0.0, 0.0], &[0.0]).is_short());
        assert!(row(&[], &[]).is_short());
        let (square, flat) = (Tensor::from_slice(&[0f32; 4]).view([2, 2]), Tensor::from_slice(&[0f32; 4]));
        assert!(Row::tensors("x", &square, &flat, LIMIT).is_short());
        let (scalar, one) = (Tensor::from(1f32), Tensor::from_slice(&[1f32]));
        assert_eq!(Row::tensors("x", &scalar, &one, LIMIT).ok, Some(true));
        assert!(Row::equal("x", &["a", "b"], &["a"]).is_short());
        assert_eq!(Row::equal("x", &["a", "b"], &["a", "b"]).ok, Some(true));
    }

    #[test]
    fn a_sheet_tells_what_is_missing_and_what_was_passed_over() {
        let tensor = || Tensor::from_slice(&[1f32, 2.0]).view([1, 2, 1]);
        let expected = ["a", "b"].map(|name| (name.to_owned(), tensor())).into();
        let mut sheet = Sheet { expected, rows: Vec::new() };
        sheet.close_where(
            "a",
            &Tensor::from_slice(&[2f32]).view([1, 1]),
            &Tensor::from_slice(&[0i64, 1]).view([1, 2]),
            LIMIT,
        );
        sheet.close("c", &tensor(), LIMIT);
        let rows = sheet.finish();
        let outcome: Vec<(&str, bool)> =
            rows.iter().map(|row| (row.tensor.as_str(), !row.is_short())).collect();
        assert_eq!(outcome, [("a", true), ("c", false), ("b", false)]);
    }
}
