//! Image-text retrieval on a split: ITC scores, and the best candidates scored again by ITM (spec 7.6).
//!
//! Score of a re-ranked pair = class-1 ITM logit, mean over queries, + ITC similarity without temperature; all other pairs
//! rank behind. A pair that is a candidate in both directions is scored once.

use std::collections::BTreeSet;

use collectives::{CommError, ProcessGroup};
use model::Stage1;
use tch::{Device, Kind, Tensor};

use super::split::Split;
use crate::error::TrainError;

/// Score of a pair that was no candidate.
const NOT_A_CANDIDATE: f32 = -1e4;
/// Pictures encoded at once.
const IMAGES_AT_ONCE: usize = 64;
/// Pairs in one ITM forward.
const PAIRS_AT_ONCE: usize = 192;

/// Recall at 1, 5, 10 both ways, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TwoWays {
    /// Image to text.
    pub i2t: score::Recalls,
    /// Text to image.
    pub t2i: score::Recalls,
}

/// Retrieval of one split.
#[derive(Clone, Debug)]
pub struct Retrieval {
    /// By ITC alone.
    pub itc: TwoWays,
    /// After ITM re-ranking.
    pub itm: TwoWays,
    /// The best text of each picture after re-ranking.
    pub best_text: Vec<usize>,
}

/// Cosine similarities `[N, N]` of the split's pictures (rows) and texts (columns), max over queries.
///
/// # Errors
/// [`TrainError::Read`] when features cannot be read.
pub fn similarities(stage1: &Stage1, split: &Split, device: Device) -> Result<Tensor, TrainError> {
    let texts = split.texts();
    let text_features = stage1.encode_texts(&texts.to_device(device)); // [N, E]
    let mut rows = Vec::new();
    for chunk in split.chunks(IMAGES_AT_ONCE) {
        let images = stage1.encode_images(&split.features(&chunk)?.to_device(device));
        let all_queries = images.projections.matmul(&text_features.tr()); // [B, Q, N]
        rows.push(all_queries.amax(&[1], false));
    }
    Ok(Tensor::cat(&rows, 0).to_device(Device::Cpu).to_kind(Kind::Float))
}

/// Recalls by ITC only.
///
/// # Errors
/// As [`similarities`].
pub fn by_itc(stage1: &Stage1, split: &Split, device: Device) -> Result<TwoWays, TrainError> {
    Ok(recalls(&similarities(stage1, split, device)?))
}

/// Recalls by ITC and after re-ranking the best `candidates` of each query; ranks share the pictures.
///
/// # Errors
/// [`TrainError::Read`], or a lost peer.
pub fn reranked(
    stage1: &Stage1,
    split: &Split,
    candidates: usize,
    group: &dyn ProcessGroup,
    progress: &dyn Fn(usize),
) -> Result<Retrieval, TrainError> {
    let similarity = similarities(stage1, split, group.device())?;
    let itc = recalls(&similarity);
    let wanted = candidate_texts(&similarity, candidates.min(split.len()));
    let itm_logits = itm_matrix(stage1, split, &wanted, group, progress)?;
    let scores = (&similarity + &itm_logits).clamp_min(f64::from(NOT_A_CANDIDATE));
    let best_text = Vec::<i64>::try_from(scores.argmax(1, false)).unwrap_or_default();
    Ok(Retrieval {
        itc,
        itm: recalls(&scores),
        best_text: best_text.into_iter().map(|text| text as usize).collect(),
    })
}

/// For each picture, the texts whose ITM score some direction asks for.
fn candidate_texts(similarity: &Tensor, candidates: usize) -> Vec<BTreeSet<i64>> {
    let top = |matrix: &Tensor| -> Vec<Vec<i64>> {
        let (_, columns) = matrix.topk(candidates as i64, 1, true, false);
        (0..matrix.size()[0]).map(|row| Vec::try_from(columns.get(row)).unwrap_or_default()).collect()
    };
    let mut wanted: Vec<BTreeSet<i64>> =
        top(similarity).into_iter().map(|texts| texts.into_iter().collect()).collect();
    for (text, images) in top(&similarity.tr().contiguous()).into_iter().enumerate() {
        for image in images {
            wanted[image as usize].insert(text as i64);
        }
    }
    wanted
}

/// ITM logits `[N, N]` of the wanted pairs, [`NOT_A_CANDIDATE`] elsewhere.
fn itm_matrix(
    stage1: &Stage1,
    split: &Split,
    wanted: &[BTreeSet<i64>],
    group: &dyn ProcessGroup,
    progress: &dyn Fn(usize),
) -> Result<Tensor, TrainError> {
    let device = group.device();
    let n = split.len();
    // Ranks add their parts: a pair's logit on the rank that scored it, zero on the others.
    let mut scored = vec![0f32; n * n];
    let own: Vec<usize> = (0..n).filter(|image| image % group.world_size() == group.rank()).collect();
    for chunk in own.chunks(IMAGES_AT_ONCE / 4) {
        let images = stage1.encode_images(&split.features(chunk)?.to_device(device));
        let pairs: Vec<(usize, i64)> = chunk
            .iter()
            .enumerate()
            .flat_map(|(place, &image)| wanted[image].iter().map(move |&text| (place, text)))
            .collect();
        for some in pairs.chunks(PAIRS_AT_ONCE) {
            let rows: Vec<i64> = some.iter().map(|&(place, _)| place as i64).collect();
            let columns: Vec<usize> = some.iter().map(|&(_, text)| text as usize).collect();
            let texts = split.texts_of(&columns).to_device(device);
            let logits = stage1.itm_scores(&images, &Tensor::from_slice(&rows).to_device(device), &texts);
            let logits =
                Vec::<f32>::try_from(logits.to_device(Device::Cpu).to_kind(Kind::Float)).unwrap_or_default();
            for (&(place, text), logit) in some.iter().zip(logits) {
                scored[chunk[place] * n + text as usize] = logit;
            }
        }
        progress(chunk.len());
    }
    let n = n as i64;
    let summed = sum_over_ranks(Tensor::from_slice(&scored).view([n, n]), group)?;
    let mut mask = vec![NOT_A_CANDIDATE; scored.len()];
    for (image, texts) in wanted.iter().enumerate() {
        for &text in texts {
            mask[image * n as usize + text as usize] = 0.0;
        }
    }
    Ok(summed + Tensor::from_slice(&mask).view([n, n]))
}

fn sum_over_ranks(local: Tensor, group: &dyn ProcessGroup) -> Result<Tensor, CommError> {
    let mut summed = local.to_device(group.device());
    group.all_reduce_sum(&mut summed)?;
    Ok(summed.to_device(Device::Cpu))
}

/// Recalls of a score matrix whose diagonal holds the right pairs.
fn recalls(scores: &Tensor) -> TwoWays {
    let n = scores.size()[0] as usize;
    let flat = |matrix: &Tensor| Vec::<f32>::try_from(matrix.contiguous().view([-1])).unwrap_or_default();
    TwoWays {
        i2t: score::diagonal_recalls(&flat(scores), n),
        t2i: score::diagonal_recalls(&flat(&scores.tr()), n),
    }
}
