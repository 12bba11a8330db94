//! Decoded pictures become pixels: resampled, for training also varied, normalised, `[3, S, S]`.
//!
//! Every random number is named by (seed, sample, view, operation), see [`crate::rng`]: the same view of a sample is
//! the same on any rank, worker and restart. With the defaults, `eval` is LAVIS's `blip_image_eval` (both sides
//! squashed to S) and `train` its `blip2_image_train`.

use crate::augment::{self, Blur, Border, ColorJitter};
use crate::decode::{Alpha, DecodeOptions, Decoded};
use crate::error::DataError;
use crate::resize::{self, Crop};
use crate::rng::{Rng, Stream};

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
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            random_resized_crop: CropConfig::default(),
            flip_probability: 0.5,
            rotate_degrees: 0.0,
            translate_ratio: 0.0,
            border: Border::White,
            color_jitter: ColorJitter::default(),
            grayscale_probability: 0.0,
            blur: Blur::default(),
        }
    }
}

impl TransformConfig {
    /// Refuses values that no transform can be made from; the error names the key.
    pub fn check(&self) -> Result<(), DataError> {
        let crop = &self.random_resized_crop;
        let jitter = &self.color_jitter;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let rules = [
            ((1..=4096).contains(&self.image_size), "image_size", "must be 1 to 4096"),
            (self.max_pixels > 0, "max_pixels", "must not be 0"),
            (self.mean.iter().all(|mean| mean.is_finite()), "mean", "must be finite"),
            (self.std.iter().all(|std| *std > 0.0 && std.is_finite()), "std", "must be above 0"),
            (
                ordered(crop.scale) && crop.scale[1] <= 1.0,
                "random_resized_crop.scale",
                "needs 0 < low <= high <= 1",
            ),
            (ordered(crop.ratio), "random_resized_crop.ratio", "needs 0 < low <= high"),
            (share(self.flip_probability), "flip_probability", "must be 0 to 1"),
            ((0.0..=180.0).contains(&self.rotate_degrees), "rotate_degrees", "must be 0 to 180"),
            (share(self.translate_ratio), "translate_ratio", "must be 0 to 1"),
            (share(self.grayscale_probability), "grayscale_probability", "must be 0 to 1"),
            (
                share(jitter.brightness) && share(jitter.contrast) && share(jitter.saturation),
                "color_jitter",
                "brightness, contrast and saturation must be 0 to 1",
            ),
            ((0.0..=0.5).contains(&jitter.hue), "color_jitter.hue", "must be 0 to 0.5"),
            (share(self.blur.probability), "blur.probability", "must be 0 to 1"),
            (
                ordered(self.blur.sigma) && self.blur.sigma[1] <= 100.0,
                "blur.sigma",
                "needs 0 < low <= high <= 100",
            ),
        ];
        for (holds, key, problem) in rules {
            if !holds {
                return Err(DataError::Config {
                    key: format!("transform.{key}"),
                    problem: problem.to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn ordered([low, high]: [f64; 2]) -> bool {
    low > 0.0 && low <= high && high.is_finite()
}

/// One finished picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// S.
    pub size: usize,
    /// `[3, S, S]`, normalised.
    pub values: Vec<f32>,
}

/// Makes pixels; cheap to share between threads.
#[derive(Debug, Clone)]
pub struct Transform {
    config: TransformConfig,
    /// Normalised value of each byte, per channel.
    lookup: Box<[[f32; 256]; 3]>,
}

impl Transform {
    /// The transform of a config; see [`TransformConfig::check`].
    pub fn new(config: TransformConfig) -> Result<Self, DataError> {
        config.check()?;
        let mut lookup = Box::new([[0.0; 256]; 3]);
        for (channel, table) in lookup.iter_mut().enumerate() {
            for (byte, value) in table.iter_mut().enumerate() {
                *value = (byte as f32 / 255.0 - config.mean[channel]) / config.std[channel];
            }
        }
        Ok(Self { config, lookup })
    }

    /// What it was made from.
    pub fn config(&self) -> &TransformConfig {
        &self.config
    }

    /// How pictures are to be decoded for it.
    pub fn decode_options(&self) -> DecodeOptions {
        DecodeOptions { alpha: self.config.alpha, max_pixels: self.config.max_pixels }
    }

    /// The picture as evaluation sees it.
    pub fn eval(&self, decoded: &Decoded) -> Pixels {
        self.normalize(&self.eval_bytes(decoded))
    }

    /// The picture as evaluation sees it, before normalising: `[S, S, 3]`.
    pub fn eval_bytes(&self, decoded: &Decoded) -> Vec<u8> {
        match self.config.fit {
            Fit::Squash => self.resize(decoded, whole(decoded)),
            Fit::Letterbox => letterbox(decoded, self.config.image_size).rgb,
        }
    }

    /// One view of the picture for training.
    pub fn train(&self, decoded: &Decoded, seed: u64, sample: u64, view: u64) -> Pixels {
        let config = &self.config;
        let rng = |stream| Rng::new(seed, stream, &[sample, view]);
        let side = config.image_size;
        let boxed = match config.fit {
            Fit::Letterbox if decoded.width != decoded.height => {
                // Twice S keeps the detail a crop can show, and bounds the square of a very long picture.
                Some(letterbox(decoded, decoded.width.max(decoded.height).min(side * 2)))
            }
            _ => None,
        };
        let decoded = boxed.as_ref().unwrap_or(decoded);
        let crop =
            random_crop(decoded.width, decoded.height, &config.random_resized_crop, &mut rng(Stream::Crop));
        let mut rgb = self.resize(decoded, crop);
        if rng(Stream::Flip).chance(config.flip_probability) {
            augment::flip(&mut rgb, side);
        }
        if config.rotate_degrees > 0.0 || config.translate_ratio > 0.0 {
            let mut rng = rng(Stream::Affine);
            let degrees = rng.uniform_in(-config.rotate_degrees, config.rotate_degrees);
            let reach = config.translate_ratio * side as f64;
            let shift = [rng.uniform_in(-reach, reach), rng.uniform_in(-reach, reach)];
            rgb = augment::affine(&rgb, side, degrees, shift, config.border);
        }
        self.train_colors(rgb, rng)
    }

    /// Colours, grey, blur: on floats, and only when one of them is wanted.
    fn train_colors(&self, rgb: Vec<u8>, rng: impl Fn(Stream) -> Rng) -> Pixels {
        let config = &self.config;
        let jitter = config.color_jitter != ColorJitter::default();
        let grey = rng(Stream::Grayscale).chance(config.grayscale_probability);
        let mut blur_rng = rng(Stream::Blur);
        let blurred = blur_rng.chance(config.blur.probability);
        if !(jitter || grey || blurred) {
            return self.normalize(&rgb);
        }
        let mut values: Vec<f32> = rgb.iter().map(|&value| f32::from(value) / 255.0).collect();
        if jitter {
            augment::color_jitter(&mut values, &config.color_jitter, &mut rng(Stream::ColorJitter));
        }
        if grey {
            augment::grayscale(&mut values);
        }
        if blurred {
            let sigma = blur_rng.uniform_in(config.blur.sigma[0], config.blur.sigma[1]);
            augment::blur(&mut values, config.image_size, sigma);
        }
        self.planes(values.chunks_exact(3), |channel, value: f32| {
            (value - config.mean[channel]) / config.std[channel]
        })
    }

    /// `crop` of the picture, squashed to `[S, S, 3]`.
    pub fn resize(&self, decoded: &Decoded, crop: Crop) -> Vec<u8> {
        let side = self.config.image_size;
        resize::bicubic(&decoded.rgb, decoded.width, crop, side, side)
    }

    /// `[S, S, 3]` bytes to `[3, S, S]` values `(x / 255 - mean) / std`, in f32 as torch computes them.
    pub fn normalize(&self, rgb: &[u8]) -> Pixels {
        self.planes(rgb.chunks_exact(3), |channel, value: u8| self.lookup[channel][usize::from(value)])
    }

    fn planes<'a, T: Copy + 'a>(
        &self,
        pixels: impl Iterator<Item = &'a [T]>,
        value: impl Fn(usize, T) -> f32,
    ) -> Pixels {
        let size = self.config.image_size;
        let mut values = vec![0.0; 3 * size * size];
        let (red, rest) = values.split_at_mut(size * size);
        let (green, blue) = rest.split_at_mut(size * size);
        for (((pixel, red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
            *red = value(0, pixel[0]);
            *green = value(1, pixel[1]);
            *blue = value(2, pixel[2]);
        }
        Pixels { size, values }
    }
}

fn whole(decoded: &Decoded) -> Crop {
    Crop { top: 0, left: 0, height: decoded.height, width: decoded.width }
}

/// Scales the long side to `side` and centres the picture on a white square.
fn letterbox(decoded: &Decoded, side: usize) -> Decoded {
    let long = decoded.width.max(decoded.height) as f64;
    let scaled = |length: usize| ((length as f64 * side as f64 / long).round() as usize).clamp(1, side);
    let (width, height) = (scaled(decoded.width), scaled(decoded.height));
    let inner = resize::bicubic(&decoded.rgb, decoded.width, whole(decoded), width, height);
    let (top, left) = ((side - height) / 2, (side - width) / 2);
    let mut rgb = vec![255; side * side * 3];
    for (row, source) in inner.chunks_exact(width * 3).enumerate() {
        let start = ((top + row) * side + left) * 3;
        rgb[start..start + width * 3].copy_from_slice(source);
    }
    Decoded { width: side, height: side, rgb }
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest centred crop of an allowed aspect.
pub fn random_crop(width: usize, height: usize, config: &CropConfig, rng: &mut Rng) -> Crop {
    let area = (width * height) as f64;
    let [low, high] = config.ratio;
    for _ in 0..10 {
        let target = area * rng.uniform_in(config.scale[0], config.scale[1]);
        let aspect = rng.uniform_in(low.ln(), high.ln()).exp();
        // Python's round: halves go to the even number.
        let crop_width = (target * aspect).sqrt().round_ties_even() as usize;
        let crop_height = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let top = rng.below((height - crop_height + 1) as u64) as usize;
            let left = rng.below((width - crop_width + 1) as u64) as usize;
            return Crop { top, left, height: crop_height, width: crop_width };
        }
    }
    let aspect = width as f64 / height as f64;
    let side = |length: f64, limit: usize| (length.round_ties_even() as usize).clamp(1, limit);
    let (crop_width, crop_height) = if aspect < low {
        (width, side(width as f64 / low, height))
    } else if aspect > high {
        (side(height as f64 * high, width), height)
    } else {
        (width, height)
    };
    let (top, left) = ((height - crop_height) / 2, (width - crop_width) / 2);
    Crop { top, left, height: crop_height, width: crop_width }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    fn picture(width: usize, height: usize) -> Decoded {
        Decoded { width, height, rgb: (0..width * height * 3).map(|at| (at * 37 % 256) as u8).collect() }
    }

    fn transform(change: impl FnOnce(&mut TransformConfig)) -> Transform {
        let mut config = TransformConfig { image_size: 24, ..TransformConfig::default() };
        change(&mut config);
        Transform::new(config).unwrap()
    }

    #[test]
    fn a_view_is_a_pure_function_of_seed_sample_and_view() {
        let all = transform(|config| {
            config.rotate_degrees = 10.0;
            config.translate_ratio = 0.1;
            config.color_jitter = ColorJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.1 };
            config.grayscale_probability = 0.2;
            config.blur.probability = 0.3;
        });
        let decoded = picture(40, 30);
        let view = |seed, sample, view| all.train(&decoded, seed, sample, view);
        assert_eq!(view(1, 2, 3), view(1, 2, 3));
        for other in [view(2, 2, 3), view(1, 3, 3), view(1, 2, 4)] {
            assert_ne!(view(1, 2, 3), other);
        }
    }

    #[test]
    fn a_whole_crop_without_variations_is_the_evaluation() {
        let plain = transform(|config| {
            config.random_resized_crop.scale = [1.0, 1.0];
            config.flip_probability = 0.0;
        });
        let decoded = picture(40, 32);
        assert_eq!(plain.train(&decoded, 1, 2, 3), plain.eval(&decoded));
    }

    #[test]
    fn letterbox_keeps_the_aspect_on_white() {
        let boxed = transform(|config| config.fit = Fit::Letterbox);
        let decoded = Decoded { width: 48, height: 12, rgb: vec![0; 48 * 12 * 3] };
        let rgb = boxed.eval_bytes(&decoded);
        let dark_rows: Vec<usize> =
            (0..24).filter(|row| rgb[row * 24 * 3..(row + 1) * 24 * 3].iter().all(|&v| v == 0)).collect();
        assert_eq!(dark_rows, (9..15).collect::<Vec<_>>());
        assert!(rgb[..9 * 24 * 3].iter().all(|&value| value == 255));
        // A picture as long as the header check lets through costs no square of its length.
        let long = picture(60_000, 1);
        assert_eq!(boxed.train(&long, 0, 0, 0).values.len(), 3 * 24 * 24);
    }

    #[test]
    fn a_wrong_value_is_named_by_its_key() {
        let config = TransformConfig { std: [0.0, 1.0, 1.0], ..TransformConfig::default() };
        assert_eq!(Transform::new(config).unwrap_err().to_string(), "transform.std: must be above 0");
        let unknown: Result<TransformConfig, _> = serde_json::from_str(r#"{"image_sise": 3}"#);
        assert!(unknown.unwrap_err().to_string().contains("image_sise"));
        let short: TransformConfig =
            serde_json::from_str(r#"{"fit": "letterbox", "random_resized_crop": {"scale": [0.8, 1.0]}}"#)
                .unwrap();
        assert_eq!(short.random_resized_crop.ratio, CropConfig::default().ratio);
    }

    proptest! {
        #[test]
        fn crops_lie_inside_and_keep_their_bounds(width in 1usize..300, height in 1usize..300, sample: u64) {
            let crop = random_crop(width, height, &CropConfig::default(), &mut Rng::new(1, Stream::Crop, &[sample]));
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.top + crop.height <= height && crop.left + crop.width <= width);
        }
    }
}
