//! The start of a Q-Former: a BERT's weights (spec 2.7).

use std::collections::{BTreeMap, BTreeSet};

use tch::nn::VarStore;
use tch::{Tensor, no_grad};

use crate::weights::{Misshapen, WeightsError};

/// The name that BERT's own files have for `name`, or `None` for what BERT does not have.
fn bert_name(name: &str) -> Option<String> {
    if name.starts_with("embeddings.") || name.starts_with("cls.predictions.") {
        return Some(name.to_owned());
    }
    if let Some(rest) = name.strip_prefix("qformer.layernorm.") {
        return Some(format!("embeddings.LayerNorm.{rest}"));
    }
    let rest = name.strip_prefix("qformer.")?;
    if rest.contains(".crossattention.") {
        return None;
    }
    // Queries start with the feed-forward of text.
    let rest = rest.replace("_query.", ".");
    Some(rest.replace(".attention.attention.", ".attention.self."))
}

/// Copies what `bert` has into `store`: embeddings, self-attention, both feed-forwards (queries get text's), and the LM
/// head where the file holds one. A vocabulary that is larger than BERT's keeps its fresh rows at the end. The
/// embedding of BERT's token type 0, which a Q-Former lacks, is folded into the positions. Returns the names filled.
///
/// # Errors
/// [`WeightsError`] listing names that every BERT has and this one lacks, and wrong shapes.
pub fn init_from_bert(
    store: &VarStore,
    bert: &BTreeMap<String, Tensor>,
) -> Result<BTreeSet<String>, WeightsError> {
    // Files converted from TensorFlow, the published ones among them, have its names for the norms.
    let old = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let get = |name: &str| bert.get(name).or_else(|| bert.get(&old(name)));
    let find = |name: &str| get(name).or_else(|| get(&format!("bert.{name}")));
    let mut filled = BTreeSet::new();
    let mut problems = WeightsError::default();
    for (name, variable) in store.variables() {
        let Some(source) = bert_name(&name) else { continue };
        let Some(tensor) = find(&source) else {
            if !source.starts_with("cls.") {
                problems.missing.push(source);
            }
            continue;
        };
        let (wanted, found) = (variable.size(), tensor.size());
        if wanted.len() != found.len() || wanted[1..] != found[1..] || wanted[0] < found[0] {
            problems.misshapen.push(Misshapen { name: source, wanted, found });
            continue;
        }
        no_grad(|| variable.narrow(0, 0, found[0]).copy_(tensor));
        filled.insert(name);
    }
    if problems != WeightsError::default() {
        return Err(problems);
    }
    if let (Some(token_type), Some(positions)) = (
        find("embeddings.token_type_embeddings.weight"),
        store.variables().get("embeddings.position_embeddings.weight"),
    ) {
        no_grad(|| {
            let folded = positions.detach() + token_type.get(0).to_kind(positions.kind());
            positions.shallow_clone().copy_(&folded);
        });
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::bert_name;

    #[test]
    fn names_map_to_berts() {
        let maps = |ours: &str, bert: &str| assert_eq!(bert_name(ours).as_deref(), Some(bert));
        maps("qformer.layernorm.weight", "embeddings.LayerNorm.weight");
        maps(
            "qformer.encoder.layer.3.attention.attention.query.weight",
            "encoder.layer.3.attention.self.query.weight",
        );
        maps(
            "qformer.encoder.layer.3.intermediate_query.dense.bias",
            "encoder.layer.3.intermediate.dense.bias",
        );
        maps("qformer.encoder.layer.3.output_query.LayerNorm.bias", "encoder.layer.3.output.LayerNorm.bias");
        assert_eq!(bert_name("qformer.encoder.layer.0.crossattention.attention.key.weight"), None);
        assert_eq!(bert_name("query_tokens"), None);
    }
}
