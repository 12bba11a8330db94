//! Image-text retrieval on a split: ITC scores, and the best candidates scored again by ITM (spec 7.6).
//!
//! Score of a re-ranked pair = class-1 ITM logit, mean over queries, + w x ITC similarity (cosine, w = 1 in LAVIS); all
//! other pairs rank behind, in their order. Each direction has candidates of its own; a pair that is one in both is
//! computed once. With w = 1 / temperature the two heads' evidence counts alike, both are then log-odds.

use std::collections::BTreeSet;

use collectives::{CommError, ProcessGroup};
use model::Stage1;
use tch::{Device, Kind, Tensor};

use super::split::Split;
use super::{Progress, share_of};
use crate::config::EvaluationConfig;
use crate::error::TrainError;

/// Score of a pair that was no candidate (LAVIS's).
const NOT_A_CANDIDATE: f64 = -100.0;
/// Pictures encoded at once.
const IMAGES_AT_ONCE: usize = 64;
/// Pairs in one ITM forward.
const PAIRS_AT_ONCE: usize = 192;

/// How ITC's best are ranked again.
#[derive(Clone, Copy, Debug)]
pub struct Rerank {
    /// Candidates of each query that ITM scores.
    pub candidates: usize,
    /// Weight of the cosine beside the ITM logit.
    pub itc_weight: f64,
}

impl Rerank {
    /// As the config says.
    #[must_use]
    pub fn of(config: &EvaluationConfig) -> Self {
        Self { candidates: config.rerank_candidates, itc_weight: config.rerank_itc_weight }
    }
}

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
        // As in training: similarities lie close together, bf16 would make ties of them.
        let best = torch_bridge::autocast(device, None, || {
            images.projections.matmul(&text_features.tr()).amax([1], false) // [B, Q, N] > [B, N]
        });
        rows.push(best);
    }
    Ok(Tensor::cat(&rows, 0).to_device(Device::Cpu).to_kind(Kind::Float))
}

/// Recalls by ITC and after re-ranking the best candidates of each query; ranks share the pictures.
///
/// # Errors
/// [`TrainError::Read`], or a lost peer.
pub fn reranked(
    stage1: &Stage1,
    split: &Split,
    how: Rerank,
    group: &dyn ProcessGroup,
    progress: Progress<'_>,
) -> Result<Retrieval, TrainError> {
    let similarity = similarities(stage1, split, group.device())?;
    let how = Rerank { candidates: how.candidates.min(split.len()), ..how };
    let wanted = candidate_texts(&similarity, how.candidates as i64);
    let logits = itm_matrix(stage1, split, &wanted, group, progress)?;
    let by_image = ranked(&similarity, &logits, how);
    let by_text = ranked(&similarity.tr(), &logits.tr(), how);
    let best_text = Vec::<i64>::try_from(by_image.argmax(1, false)).unwrap_or_default();
    Ok(Retrieval {
        itc: recalls(&similarity),
        itm: TwoWays { i2t: diagonal_recalls(&by_image), t2i: diagonal_recalls(&by_text) },
        best_text: best_text.into_iter().map(|text| text as usize).collect(),
    })
}

/// [`rerank`], with the others in the order of their similarity: re-ranking few candidates says nothing of the rest.
fn ranked(similarity: &Tensor, logits: &Tensor, how: Rerank) -> Tensor {
    let scores = rerank(similarity, logits, how);
    let others = scores.eq(NOT_A_CANDIDATE).to_kind(Kind::Float);
    scores + others * similarity
}

/// The best candidates of each row score logit + w x similarity, all others [`NOT_A_CANDIDATE`]; both `[R, C]`.
pub(crate) fn rerank(similarity: &Tensor, logits: &Tensor, how: Rerank) -> Tensor {
    let candidates = (how.candidates as i64).min(similarity.size()[1]);
    let (_, best) = similarity.topk(candidates, 1, true, true);
    let scores = (similarity * how.itc_weight + logits).gather(1, &best, false);
    similarity.full_like(NOT_A_CANDIDATE).scatter(1, &best, &scores)
}

/// For each picture, the texts whose ITM score some direction asks for.
fn candidate_texts(similarity: &Tensor, candidates: i64) -> Vec<BTreeSet<i64>> {
    let top = |matrix: &Tensor| -> Vec<Vec<i64>> {
        let (_, columns) = matrix.topk(candidates, 1, true, true);
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

/// ITM logits `[N, N]` of the wanted pairs, zero elsewhere.
fn itm_matrix(
    stage1: &Stage1,
    split: &Split,
    wanted: &[BTreeSet<i64>],
    group: &dyn ProcessGroup,
    progress: Progress<'_>,
) -> Result<Tensor, TrainError> {
    let device = group.device();
    let n = split.len();
    // Ranks add their parts: a pair's logit on the rank that scored it, zero on the others.
    let mut scored = vec![0f32; n * n];
    let mut stopped = None;
    let own: Vec<usize> = share_of(n, group).collect();
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
        stopped = progress(chunk.len()).err();
        if stopped.is_some() {
            break;
        }
    }
    // One that is asked to stop must not leave while others wait for its part: all leave together.
    let stops = sum_over_ranks(Tensor::from(f32::from(u8::from(stopped.is_some()))).view([1]), group)?;
    if stops.double_value(&[0]) > 0.0 {
        return Err(stopped.unwrap_or_else(super::interrupted));
    }
    let n = n as i64;
    Ok(sum_over_ranks(Tensor::from_slice(&scored).view([n, n]), group)?)
}

fn sum_over_ranks(local: Tensor, group: &dyn ProcessGroup) -> Result<Tensor, CommError> {
    let mut summed = local.to_device(group.device());
    group.all_reduce_sum(&mut summed)?;
    Ok(summed.to_device(Device::Cpu))
}

/// Recalls both ways of a score matrix `[N, N]` whose diagonal holds the right pairs.
fn recalls(scores: &Tensor) -> TwoWays {
    TwoWays { i2t: diagonal_recalls(scores), t2i: diagonal_recalls(&scores.tr()) }
}

/// Recalls of the rows.
fn diagonal_recalls(scores: &Tensor) -> score::Recalls {
    let flat = Vec::<f32>::try_from(scores.contiguous().view([-1])).unwrap_or_default();
    score::diagonal_recalls(&flat, scores.size()[0] as usize)
}
