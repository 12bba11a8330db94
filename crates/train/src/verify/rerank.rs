//! `rerank`: retrieval by ITC with ITM scoring the best candidates again (LAVIS's `compute_sim_matrix`).

use model::{EncodedImages, Negatives, Stage1, Stage1Inputs, TextInput};
use tch::{Device, Kind, Tensor, no_grad};

use super::case::{Case, INPUTS};
use super::sheet::{Row, Sheet};
use super::stage1::Model;
use crate::error::TrainError;
use crate::evaluate::{Rerank, rerank};

/// Runs the case; weights and sizes are those of the case beside it that `weights_from` names.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    let limit = case.tolerance("tensor")?;
    let mut sheet = Sheet::open(case)?;
    let neighbour: String = case.value("case", "weights_from")?;
    let model = Model::load(&Case::open(&case.folder().join("..").join(neighbour))?)?;
    let tensors = case.tensors(INPUTS)?;
    let texts =
        TextInput { ids: tensors.with_dims("input_ids", 2)?, mask: tensors.with_dims("attention_mask", 2)? };
    let features = model.vision.forward(&tensors.with_dims("image", 4)?);
    let how = Rerank { candidates: case.value("data", "k_test")?, itc_weight: 1.0 };

    let stage1 = &model.stage1;
    let images = stage1.encode_images(&features);
    let text_feats = stage1.encode_texts(&texts);
    sheet.close("image_feats", &images.projections, limit);
    sheet.close("text_feat", &text_feats, limit);
    sheet.close("query_output", &query_output(stage1, &features, &texts)?, limit);
    let (n_images, n_texts) = (features.size()[0], texts.ids.size()[0]);
    let pairs = range(n_images.min(n_texts));
    sheet.close("itm_logit_pairs", &stage1.itm_scores(&images, &pairs, &texts.select(&pairs)), limit);
    // [I, Q, E] x [E, N]; the best query speaks for the image, and nothing is divided by a temperature.
    let similarity = images.projections.matmul(&text_feats.tr()).amax([1], false);
    let logits = all_logits(stage1, &images, &texts, n_images);
    sheet.close("score_i2t", &rerank(&similarity, &logits, how), limit);
    sheet.close("score_t2i", &rerank(&similarity.tr(), &logits.tr(), how), limit);
    Ok(sheet.finish())
}

/// Query states of the images alone. A forward pass shows them; its texts and negatives do not touch them.
fn query_output(stage1: &Stage1, features: &Tensor, texts: &TextInput) -> Result<Tensor, TrainError> {
    let rows = range(features.size()[0]);
    let some_texts = texts.select(&rows.remainder(texts.ids.size()[0]));
    let negatives = Negatives::Given { images: rows.shallow_clone(), texts: rows };
    let inputs =
        Stage1Inputs { image: features.shallow_clone(), text: some_texts, concepts: None, negatives };
    let group = collectives::SoloGroup::new(Device::Cpu);
    Ok(no_grad(|| stage1.forward(&inputs, &group, false))?.1.query_output)
}

/// ITM logits of every image with every text, `[I, N]`.
fn all_logits(stage1: &Stage1, images: &EncodedImages, texts: &TextInput, n_images: i64) -> Tensor {
    let every = range(texts.ids.size()[0]);
    let row = |image: i64| stage1.itm_scores(images, &every.full_like(image), texts);
    Tensor::stack(&(0..n_images).map(row).collect::<Vec<_>>(), 0)
}

fn range(n: i64) -> Tensor {
    Tensor::arange(n, (Kind::Int64, Device::Cpu))
}
