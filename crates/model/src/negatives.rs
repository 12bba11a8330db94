//! Hard negatives of ITM: which image a text is paired with, and which text an image (paper section 3.2; spec 3.2).

use tch::{Kind, Tensor};

/// Similarity of a pair that must not be drawn as its own negative.
const NEVER: f64 = -10000.0;

/// How similarities become chances of being drawn as a hard negative (spec 0.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NegativeWeighting {
    /// softmax over the others (LAVIS since July 2023).
    #[default]
    MaskedSoftmax,
    /// softmax over all + 1e-4, then the own pair set to 0 (LAVIS 1.0.2).
    SoftmaxPlusEps,
}

/// Chances (not normalised) of each column to be drawn as the row's negative, `[B, W * B]`; where `matches` (boolean, as
/// large) is true the column is never drawn.
pub fn negative_weights(weighting: NegativeWeighting, sim: &Tensor, matches: &Tensor) -> Tensor {
    match weighting {
        NegativeWeighting::MaskedSoftmax => sim.detach().masked_fill(matches, NEVER).softmax(-1, Kind::Float),
        NegativeWeighting::SoftmaxPlusEps => {
            (sim.detach().softmax(-1, Kind::Float) + 1e-4).masked_fill(matches, 0.0)
        }
    }
}

/// One column for each row, by inverse distribution.
pub(crate) fn draw(weights: &Tensor, uniforms: &Tensor) -> Tensor {
    let cumulative = weights.to_kind(Kind::Double).cumsum(1, Kind::Double);
    let last = weights.size()[1] - 1;
    let threshold = cumulative.narrow(1, last, 1) * uniforms.to_kind(Kind::Double).unsqueeze(1);
    // The first column whose cumulative weight is above the threshold; a column of weight 0 never is the first.
    cumulative.le_tensor(&threshold).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).clamp_max(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.view([-1])).expect("values")
    }

    #[test]
    fn the_own_pair_is_never_drawn_and_the_rest_by_weight() {
        let sim = Tensor::from_slice(&[9f32, 1.0, 1.0, 0.0, 9.0, 3.0]).view([2, 3]);
        let own = Tensor::eye_m(2, 3, (Kind::Bool, tch::Device::Cpu));
        for weighting in [NegativeWeighting::MaskedSoftmax, NegativeWeighting::SoftmaxPlusEps] {
            let weights = negative_weights(weighting, &sim, &own);
            assert_eq!(
                (weights.double_value(&[0, 0]), weights.double_value(&[1, 1])),
                (0.0, 0.0),
                "{weighting:?}"
            );
            let at = |u: f64| ints(&draw(&weights, &Tensor::from_slice(&[u, u])));
            assert_eq!(at(0.0), [1, 0], "{weighting:?}");
            assert_eq!(at(0.999), [2, 2], "{weighting:?}");
            // Row 0 has two equal candidates: the border is in the middle.
            assert_eq!((at(0.49)[0], at(0.51)[0]), (1, 2), "{weighting:?}");
        }
    }
}
