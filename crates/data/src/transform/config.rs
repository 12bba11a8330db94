//! What a config may say about pictures.

use crate::augment::{Blur, Border, ColorJitter, RandAugment};
use crate::decode::{Alpha, DecodeOptions};
use crate::error::DataError;

/// How a picture that is no square becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Both sides are scaled to S; the aspect is lost (LAVIS, the paper).
    #[default]
    Squash,
    /// The long side is scaled to S, white bars fill the rest.
    Letterbox,
}

/// Random resized crop: share of the area and aspect (width / height, drawn in the logarithm).
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CropConfig {
    /// Smallest and largest share of the area. `[1, 1]` shows the whole picture.
    pub scale: [f64; 2],
    /// Smallest and largest aspect.
    pub ratio: [f64; 2],
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { scale: [0.5, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

/// From decoded picture to pixels.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// S, the side of the finished picture.
    pub image_size: usize,
    /// How a picture that is no square becomes one.
    pub fit: Fit,
    /// What becomes of transparency.
    pub alpha: Alpha,
    /// Pictures with more pixels than this are refused from their header.
    pub max_pixels: u64,
    /// Pictures with more pixels along their longer side are reduced to it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_side: Option<usize>,
    /// Mean per channel, of values in 0..=1 (CLIP's).
    pub mean: [f32; 3],
    /// Standard deviation per channel (CLIP's).
    pub std: [f32; 3],
    /// Training: which part is shown.
    pub random_resized_crop: CropConfig,
    /// Training: how often the view is mirrored.
    pub flip_probability: f64,
    /// Training: turned by up to this many degrees either way.
    pub rotate_degrees: f64,
    /// Training: moved by up to this share of S along each axis.
    pub translate_ratio: f64,
    /// Training: what shows where the view was moved away.
    pub border: Border,
    /// Training: operations drawn from a list, as LAVIS's `blip_image_train` (fine-tuning) does.
    // Left out while it is off, so that names of feature caches made before it was there still fit.
    #[serde(skip_serializing_if = "RandAugment::is_off")]
    pub rand_augment: RandAugment,
    /// Training: colours.
    pub color_jitter: ColorJitter,
    /// Training: how often the view is grey.
    pub grayscale_probability: f64,
    /// Training: blur.
    pub blur: Blur,
}

impl Default for TransformConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            fit: Fit::Squash,
            alpha: Alpha::Drop,
            max_pixels: DecodeOptions::default().max_pixels,
            max_side: None,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            random_resized_crop: CropConfig::default(),
            flip_probability: 0.5,
            rotate_degrees: 0.0,
            translate_ratio: 0.0,
            border: Border::White,
            rand_augment: RandAugment::default(),
            color_jitter: ColorJitter::default(),
            grayscale_probability: 0.0,
            blur: Blur::default(),
        }
    }
}

/// Whether a value may be so, its key, and what it must be.
type Rule = (bool, &'static str, &'static str);

impl TransformConfig {
    /// Refuses values that no transform can be made from; the error names the key.
    pub fn check(&self) -> Result<(), DataError> {
        let crop = &self.random_resized_crop;
        let rules: [Rule; 9] = [
            ((1..=4096).contains(&self.image_size), "image_size", "must be 1 to 4096"),
            (self.max_pixels > 0, "max_pixels", "must not be 0"),
            (self.max_side != Some(0), "max_side", "must not be 0"),
            (self.mean.iter().all(|mean| mean.is_finite()), "mean", "must be finite"),
            (self.std.iter().all(|std| *std > 0.0 && std.is_finite()), "std", "must be above 0"),
            (
                ordered(crop.scale) && crop.scale[1] <= 1.0,
                "random_resized_crop.scale",
                "needs 0 < low <= high <= 1",
            ),
            (ordered(crop.ratio), "random_resized_crop.ratio", "needs 0 < low <= high"),
            (share(self.flip_probability), "flip_probability", "must be 0 to 1"),
            (share(self.grayscale_probability), "grayscale_probability", "must be 0 to 1"),
        ];
        for (holds, key, problem) in rules.into_iter().chain(self.rules_of_variations()) {
            if !holds {
                return Err(DataError::Config {
                    key: format!("data.transform.{key}"),
                    problem: problem.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn rules_of_variations(&self) -> [Rule; 9] {
        let (jitter, random, blur) = (&self.color_jitter, &self.rand_augment, &self.blur);
        [
            ((0.0..=180.0).contains(&self.rotate_degrees), "rotate_degrees", "must be 0 to 180"),
            (share(self.translate_ratio), "translate_ratio", "must be 0 to 1"),
            (random.operations <= 10, "rand_augment.operations", "must be 0 to 10"),
            ((0.0..=10.0).contains(&random.magnitude), "rand_augment.magnitude", "must be 0 to 10"),
            (share(random.probability), "rand_augment.probability", "must be 0 to 1"),
            (
                share(jitter.brightness) && share(jitter.contrast) && share(jitter.saturation),
                "color_jitter",
                "brightness, contrast and saturation must be 0 to 1",
            ),
            ((0.0..=0.5).contains(&jitter.hue), "color_jitter.hue", "must be 0 to 0.5"),
            (share(blur.probability), "blur.probability", "must be 0 to 1"),
            (ordered(blur.sigma) && blur.sigma[1] <= 100.0, "blur.sigma", "needs 0 < low <= high <= 100"),
        ]
    }

    /// Whether views are turned or moved.
    pub(super) fn moves(&self) -> bool {
        self.rotate_degrees > 0.0 || self.translate_ratio > 0.0
    }
}

fn share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn ordered([low, high]: [f64; 2]) -> bool {
    low > 0.0 && low <= high && high.is_finite()
}
