//! In which order gradients travel.
//!
//! A bucket leaves when all of its gradients are there and the buckets before it have left, so the order decides how much
//! of the communication is hidden. It comes from names alone: c10d would build its buckets anew from what the first
//! backward pass showed, and a resumed run has another first pass; more than two ranks would then sum in another order.

use collectives::GradientReducer;
use tch::Tensor;

use crate::error::TrainError;
use crate::session::Session;
use crate::stage::Stage;

/// When, in a backward pass, the last use of a parameter has been passed. Backward passes go through the forward's passes
/// from the last to the first: generation, matching, contrast, text, queries, images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    /// Heads and projections, which no layer is behind of.
    Heads,
    /// Of a layer, what texts alone use; the last layer is first.
    TextOfLayer(i64),
    /// Embeddings of words and positions.
    Words,
    /// Of a layer, what queries use; the last layer is first.
    Layer(i64),
    /// The queries themselves and the LayerNorm before the layers.
    Queries,
    /// Keys and values of images, which all layers share one product for.
    Images,
    /// LayerNorm of the image features.
    ImageNorm,
}

impl When {
    /// Of the parameter of that name (Hugging Face's). One that is not known goes last, where it holds up nothing.
    fn of(name: &str) -> Self {
        const HEADS: [&str; 6] = [
            "cls.",
            "itm_head.",
            "temperature",
            "vision_projection.",
            "text_projection.",
            "language_projection.",
        ];
        const TEXT: [&str; 2] = ["intermediate.", "output."];
        if HEADS.iter().any(|head| name.starts_with(head)) {
            return Self::Heads;
        }
        if name.starts_with("embeddings.") {
            return Self::Words;
        }
        if let Some(rest) = name.strip_prefix("qformer.encoder.layer.")
            && let Some((layer, part)) = rest.split_once('.')
            && let Ok(layer) = layer.parse::<i64>()
        {
            let from_image = ["crossattention.attention.key.", "crossattention.attention.value."];
            return match part {
                part if from_image.iter().any(|start| part.starts_with(start)) => Self::Images,
                part if TEXT.iter().any(|start| part.starts_with(start)) => Self::TextOfLayer(-layer),
                _ => Self::Layer(-layer),
            };
        }
        match name.starts_with("qformer.layernorm.") || name == "query_tokens" {
            true => Self::Queries,
            false => Self::ImageNorm,
        }
    }
}

/// Parameters in the order in which a backward pass is done with them; of those that are equal in that, by name.
pub(crate) fn in_order_of_gradients(named: impl IntoIterator<Item = (String, Tensor)>) -> Vec<Tensor> {
    let mut named: Vec<(When, String, Tensor)> =
        named.into_iter().map(|(name, tensor)| (When::of(&name), name, tensor)).collect();
    named.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
    named.into_iter().map(|(_, _, tensor)| tensor).collect()
}

/// Averages the gradients of all that `stage` trains.
///
/// # Errors
/// [`TrainError::Peer`] when a peer is gone or trains something else.
pub(crate) fn reducer(session: &Session, stage: &Stage) -> Result<Box<dyn GradientReducer>, TrainError> {
    let parameters = in_order_of_gradients(stage.trainable());
    Ok(session.group.reducer(&parameters, session.plan.reduce)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layer_comes_first_and_images_come_last() {
        let layer = |number: usize, part: &str| format!("qformer.encoder.layer.{number}.{part}.weight");
        let expected = [
            "itm_head.weight".to_owned(),
            layer(11, "output.dense"),
            layer(2, "intermediate.dense"),
            "embeddings.word_embeddings.weight".to_owned(),
            layer(11, "output_query.dense"),
            layer(2, "crossattention.attention.query"),
            layer(0, "attention.attention.key"),
            "query_tokens".to_owned(),
            layer(0, "crossattention.attention.key"),
            "vision_model.post_layernorm.bias".to_owned(),
        ];
        let numbered = |(place, name): (usize, &String)| (name.clone(), Tensor::from(place as i64));
        let mut named: Vec<(String, Tensor)> = expected.iter().enumerate().map(numbered).collect();
        named.reverse();
        let found = in_order_of_gradients(named);
        let places: Vec<i64> = found.iter().map(|tensor| tensor.int64_value(&[])).collect();
        assert_eq!(places, (0..expected.len() as i64).collect::<Vec<_>>());
    }
}
