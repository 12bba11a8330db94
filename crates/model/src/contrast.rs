//! Image-text contrast, ITC (paper section 3.2; spec 3.1).

use collectives::{CommError, ProcessGroup};
use tch::{Kind, Tensor};

use crate::stage1::LABEL_SMOOTHING;

/// What ITC gives, and what hard negatives are drawn from.
pub(crate) struct Itc {
    /// Mean of both directions, nats.
    pub loss: Tensor,
    /// Share of images whose most similar text is one of their own.
    pub recall: Tensor,
    /// Similarities over temperature, images to texts, `[B, W * B]`.
    pub sim_i2t: Tensor,
    /// Similarities over temperature, texts to images, `[B, W * B]`.
    pub sim_t2i: Tensor,
    /// True where column and row are of one pair, or of one concept, `[B, W * B]`.
    pub matches: Tensor,
}

/// ITC of normalised projections `[B, Q, E]` and `[B, E]`.
///
/// What comes from the other side is a gathered copy without gradient, in a world of one too. With `concepts` (`[B]`, int64)
/// all pairs of one concept share the target (LAVIS's `image_id`); without, each pair is its own.
pub(crate) fn contrast(
    images: &Tensor,
    texts: &Tensor,
    concepts: Option<&Tensor>,
    temperature: &Tensor,
    group: &dyn ProcessGroup,
) -> Result<Itc, CommError> {
    let all_images = group.all_gather(&images.detach())?; // [W * B, Q, E]
    let all_texts = group.all_gather(&texts.detach())?; // [W * B, E]
    let batch = texts.size()[0];
    // [B, Q, E] x [E, W * B] > [B, Q, W * B]; the best query speaks for the image.
    let to_texts = images.matmul(&all_texts.tr()).amax([1], false);
    // [B, E] x [E, W * B * Q] > [B, W * B, Q]
    let by_query = texts.matmul(&all_images.flatten(0, 1).tr());
    let to_images = by_query.view([batch, -1, images.size()[1]]).amax([2], false);
    let (sim_i2t, sim_t2i) = (&to_texts / temperature, &to_images / temperature);
    let matches = matches(batch, concepts, group)?;
    let targets = smoothed(&matches);
    let loss = |cosines: &Tensor| cross_entropy(cosines, temperature, &targets);
    let own_text = matches.gather(1, &sim_i2t.argmax(1, true), false);
    Ok(Itc {
        loss: (loss(&to_texts) + loss(&to_images)) / 2.0,
        recall: own_text.to_kind(Kind::Float).mean(Kind::Float),
        sim_i2t,
        sim_t2i,
        matches,
    })
}

/// Which columns of the global batch belong to each row, `[B, W * B]`, boolean.
fn matches(batch: i64, concepts: Option<&Tensor>, group: &dyn ProcessGroup) -> Result<Tensor, CommError> {
    let (own, all) = match concepts {
        Some(concepts) => (concepts.shallow_clone(), group.all_gather(concepts)?),
        None => {
            let options = (Kind::Int64, group.device());
            let own = Tensor::arange(batch, options) + group.rank() as i64 * batch;
            (own, Tensor::arange(batch * group.world_size() as i64, options))
        }
    };
    Ok(own.unsqueeze(1).eq_tensor(&all.unsqueeze(0)))
}

/// Rows that sum to 1: matches share `1 - s`, all columns share `s`.
fn smoothed(matches: &Tensor) -> Tensor {
    let matches = matches.to_kind(Kind::Float);
    let shared = &matches / matches.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    shared * (1.0 - LABEL_SMOOTHING) + LABEL_SMOOTHING / matches.size()[1] as f64
}

/// Of `cosines / temperature`. Softmax sees no shift of a row: without its largest cosine the terms of the temperature's
/// gradient, which cancel where all are alike, are small.
fn cross_entropy(cosines: &Tensor, temperature: &Tensor, targets: &Tensor) -> Tensor {
    let shifted = cosines - cosines.detach().amax([1], true);
    let log_chances = (shifted / temperature).log_softmax(1, Kind::Float);
    -(log_chances * targets).sum_dim_intlist([1i64].as_slice(), false, Kind::Float).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use collectives::SoloGroup;
    use tch::Device;

    use super::*;

    #[test]
    fn pairs_of_one_concept_share_the_target() {
        let concepts = Tensor::from_slice(&[7i64, 8, 7]);
        let group = SoloGroup::new(Device::Cpu);
        let shared = smoothed(&matches(3, Some(&concepts), &group).expect("alone"));
        let row: Vec<f64> = (0..3).map(|column| shared.double_value(&[0, column])).collect();
        let third = 0.1 / 3.0;
        for (found, wanted) in row.iter().zip([0.45 + third, third, 0.45 + third]) {
            assert!((found - wanted).abs() < 1e-6, "{row:?}");
        }
        let alone = matches(3, None, &group).expect("alone");
        assert_eq!(alone, Tensor::eye(3, (Kind::Bool, Device::Cpu)));
    }
}
