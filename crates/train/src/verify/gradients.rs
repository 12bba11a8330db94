//! What stages 1 and 2 share: which parameters are trained, and the gradient of each.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{Tensor, nn};

use super::case::{Case, Tolerance};
use super::sheet::{Row, Sheet};
use crate::error::TrainError;
use crate::names::{LanguageFamily, LavisEntry, from_lavis, lavis_checkpoint_keys, to_lavis_beside};

/// Compares every `grad.*` with the gradient of our parameter of that name.
pub(super) fn compare(sheet: &mut Sheet, gradients: &BTreeMap<String, Tensor>, tolerance: Tolerance) {
    for lavis in sheet.named("grad.") {
        let key = format!("grad.{lavis}");
        let found = match from_lavis(&lavis) {
            Some(LavisEntry::Parameter(ours)) => gradients.get(&ours),
            _ => None,
        };
        if let Some(gradient) = found {
            sheet.close(&key, gradient, tolerance);
        }
    }
}

/// The gradients that a backward pass left, by our names; a parameter that it did not reach has none.
pub(super) fn of(store: &nn::VarStore) -> BTreeMap<String, Tensor> {
    let variables = store.variables().into_iter().map(|(name, variable)| (name, variable.grad()));
    variables.filter(|(_, gradient)| gradient.defined()).collect()
}

/// Compares names with `expected.json`: what is trained, and what LAVIS would write into a checkpoint of it.
pub(super) fn compare_names(
    case: &Case,
    sheet: &mut Sheet,
    store: &nn::VarStore,
    family: LanguageFamily,
) -> Result<(), TrainError> {
    const FILE: &str = "expected.json";
    let expected: Value = case.json(FILE)?;
    let names = |key: &str| -> Result<Vec<String>, TrainError> {
        let mut names: Vec<String> = case.part(FILE, &expected, &[key])?;
        names.sort();
        Ok(names)
    };
    let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
    let trained = variables.iter().filter(|(_, variable)| variable.requires_grad()).map(|(name, _)| name);
    let mut ours: Vec<String> = trained.clone().filter_map(|name| to_lavis_beside(name, family)).collect();
    ours.sort();
    sheet.push(Row::equal("trainable", &ours, &names("trainable")?));
    let without = trained.clone().filter(|name| !variables[*name].grad().defined());
    let without: Vec<String> = without.filter_map(|name| to_lavis_beside(name, family)).collect();
    sheet.push(Row::equal("trainable_without_grad", &without, &names("trainable_without_grad")?));
    let keys = lavis_checkpoint_keys(trained, family).unwrap_or_default();
    sheet.push(Row::equal("checkpoint_keys", &keys, &names("checkpoint_keys")?));
    Ok(())
}
