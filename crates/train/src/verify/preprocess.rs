//! `preprocess`: decoding, resampling, crops and normalising, beside Pillow's and torchvision's.

use std::collections::BTreeMap;

use data::resize::Crop;
use data::{Decoded, Pixels, Transform, TransformConfig, decode};
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::case::{Case, INPUTS, Tolerance, broken};
use super::sheet::{Row, Sheet};
use crate::error::TrainError;

/// Samples hold every so-many-th row and column.
const SAMPLE_STEP: i64 = 16;
/// Need not be read: 16 bits a channel.
const OPTIONAL: &str = "I;16";

#[derive(Deserialize)]
struct Image {
    train_crops: Vec<CropBox>,
    mode_on_disk: String,
}

#[derive(Clone, Copy, Deserialize)]
struct CropBox {
    i: usize,
    j: usize,
    h: usize,
    w: usize,
    flip: bool,
}

#[derive(Deserialize)]
struct Preprocess {
    image_size: usize,
    mean: [f32; 3],
    std: [f32; 3],
}

/// `[tolerance]` of the family.
#[derive(Deserialize)]
struct Limits {
    u8_from_decoded_max: f64,
    u8_from_decoded_frac_differing: f64,
    u8_from_file_max_jpeg: f64,
    float_abs: f64,
}

/// Runs the case.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    let Preprocess { image_size, mean, std } = case.section("preprocess")?;
    let transform = Transform::new(TransformConfig { image_size, mean, std, ..TransformConfig::default() })?;
    let limits: Limits = case.section("tolerance")?;
    let inputs = case.tensors(INPUTS)?;
    let given: Value = case.json("inputs.json")?;
    let images: BTreeMap<String, Image> = case.part("inputs.json", &given, &["images"])?;
    let mut sheet = Sheet::open(case)?;
    for (name, image) in &images {
        let decoded = decoded(case, &inputs.with_dims(&format!("decoded.{name}"), 3)?)?;
        from_file(case, &mut sheet, &transform, name, image, &limits)?;
        compare_views(&mut sheet, &transform, name, image, &decoded, &limits);
    }
    Ok(sheet.finish())
}

/// What comes of the picture as Pillow decoded it, so that decoders do not matter.
fn compare_views(
    sheet: &mut Sheet,
    transform: &Transform,
    name: &str,
    image: &Image,
    decoded: &Decoded,
    limits: &Limits,
) {
    let size = transform.config().image_size;
    let float = Tolerance { abs: limits.float_abs, rel: 0.0 };
    compare_bytes(sheet, &format!("eval_u8.{name}"), &transform.eval_bytes(decoded), size, limits);
    let pixels = tensor(&transform.eval(decoded));
    sheet.close(&format!("eval_sample.{name}"), &sampled(&pixels), float);
    let whole = format!("eval.{name}");
    if sheet.expects(&whole) {
        sheet.close(&whole, &pixels, float);
    }
    for (number, CropBox { i, j, h, w, flip }) in image.train_crops.iter().copied().enumerate() {
        let crop = Crop { top: i, left: j, height: h, width: w };
        let mut bytes = transform.resize(decoded, crop);
        if flip {
            data::augment::flip(&mut bytes, size);
        }
        compare_bytes(sheet, &format!("train_u8.{name}.{number}"), &bytes, size, limits);
        let sample = sampled(&tensor(&transform.normalize(&bytes)));
        sheet.close(&format!("train_sample.{name}.{number}"), &sample, float);
    }
}

/// What comes of the file itself, through our own decoder.
fn from_file(
    case: &Case,
    sheet: &mut Sheet,
    transform: &Transform,
    name: &str,
    image: &Image,
    limits: &Limits,
) -> Result<(), TrainError> {
    let path = case.folder().join("images").join(name);
    let bytes = std::fs::read(&path).map_err(|error| broken(&path, &error.to_string()))?;
    let line = format!("eval_u8.{name} from its file");
    match decode(&bytes, &transform.decode_options()) {
        Ok(decoded) => {
            let is_jpeg = bytes.starts_with(&[0xff, 0xd8]);
            let abs = if is_jpeg { limits.u8_from_file_max_jpeg } else { limits.u8_from_decoded_max };
            let ours = bytes_tensor(&transform.eval_bytes(&decoded), transform.config().image_size);
            sheet.also_close(&format!("eval_u8.{name}"), &line, &ours, Tolerance { abs, rel: 0.0 });
        }
        Err(reason) if image.mode_on_disk == OPTIONAL => {
            sheet.push(Row::left_out(&line, format!("{reason:?}")))
        }
        Err(reason) => sheet.push(Row::short(&line, format!("cannot be decoded: {reason:?}"))),
    }
    Ok(())
}

/// Bytes have two limits: on the largest difference, and on how many differ at all.
fn compare_bytes(sheet: &mut Sheet, name: &str, ours: &[u8], size: usize, limits: &Limits) {
    let ours = bytes_tensor(ours, size);
    let share = Tolerance { abs: limits.u8_from_decoded_frac_differing, rel: 0.0 };
    sheet.also_count_differing(name, &format!("{name}, share differing"), &ours, share);
    sheet.close(name, &ours, Tolerance { abs: limits.u8_from_decoded_max, rel: 0.0 });
}

fn decoded(case: &Case, rgb: &Tensor) -> Result<Decoded, TrainError> {
    let size = rgb.size();
    let bytes = Vec::try_from(rgb.to_kind(Kind::Uint8).reshape([-1]));
    let rgb =
        bytes.map_err(|error: tch::TchError| broken(&case.folder().join(INPUTS), &error.to_string()))?;
    Ok(Decoded { width: size[1] as usize, height: size[0] as usize, rgb })
}

fn bytes_tensor(bytes: &[u8], size: usize) -> Tensor {
    Tensor::from_slice(bytes).view([size as i64, size as i64, 3])
}

/// `[3, S, S]`.
fn tensor(pixels: &Pixels) -> Tensor {
    let size = pixels.size as i64;
    Tensor::from_slice(&pixels.values).view([3, size, size])
}

/// Every 16th row and column.
fn sampled(pixels: &Tensor) -> Tensor {
    pixels.slice(1, None, None, SAMPLE_STEP).slice(2, None, None, SAMPLE_STEP)
}
