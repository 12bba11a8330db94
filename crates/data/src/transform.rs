//! Decoded pictures become pixels: resampled, for training also varied, normalised, `[3, S, S]`.
//!
//! Every random number is named by (seed, sample, view, operation), see [`crate::rng`]: the same view of a sample is
//! the same on any rank, worker and restart. With the defaults, `eval` is LAVIS's `blip_image_eval` (both sides
//! squashed to S) and `train` its `blip2_image_train`.

mod config;
mod crop;
mod normalize;

use std::cell::RefCell;

pub use config::{CropConfig, Fit, TransformConfig};
pub use crop::random_crop;
use normalize::{Normalize, channels, place};

use crate::augment::{self, ColorJitter};
use crate::decode::{DecodeOptions, Decoded, Part};
use crate::error::{DataError, SkipReason};
use crate::kernel::Kernel;
use crate::resize::{self, Crop};
use crate::rng::{Rng, Stream};

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
    normalize: Normalize,
}

/// The name of one view, by which its random numbers are drawn.
#[derive(Debug, Clone, Copy)]
struct View {
    seed: u64,
    sample: u64,
    number: u64,
}

impl View {
    fn rng(self, stream: Stream) -> Rng {
        Rng::new(self.seed, stream, &[self.sample, self.number])
    }
}

impl Transform {
    /// The transform of a config; see [`TransformConfig::check`].
    pub fn new(config: TransformConfig) -> Result<Self, DataError> {
        config.check()?;
        let normalize = Normalize::new(config.mean, config.std);
        Ok(Self { config, normalize })
    }

    /// What it was made from.
    pub fn config(&self) -> &TransformConfig {
        &self.config
    }

    /// How pictures are to be decoded for it.
    pub fn decode_options(&self) -> DecodeOptions {
        DecodeOptions {
            alpha: self.config.alpha,
            max_pixels: self.config.max_pixels,
            max_side: self.config.max_side,
        }
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
        let mut pixels = self.blank();
        self.train_into(decoded, View { seed, sample, number: view }, &mut pixels.values);
        pixels
    }

    /// Decodes `file` and writes one view of it to `values` `[3, S, S]`: [`crate::decode()`] and [`Transform::train`] in
    /// memory that each thread keeps.
    pub fn train_file(
        &self,
        file: &[u8],
        seed: u64,
        sample: u64,
        view: u64,
        values: &mut [f32],
    ) -> Result<(), SkipReason> {
        thread_local! {
            static PART: RefCell<Part> = RefCell::default();
        }
        let view = View { seed, sample, number: view };
        let choose = |width, height| match self.config.fit {
            Fit::Squash => self.crop(width, height, view),
            Fit::Letterbox => Crop { top: 0, left: 0, height, width },
        };
        PART.with_borrow_mut(|part| {
            let (decoded, crop) = part.decode(Kernel::best(), file, &self.decode_options(), choose)?;
            match self.config.fit {
                Fit::Squash => self.train_crop(decoded, crop, view, values),
                Fit::Letterbox => self.train_into(decoded, view, values),
            }
            Ok(())
        })
    }

    /// As [`Transform::train`], to `values`.
    fn train_into(&self, decoded: &Decoded, view: View, values: &mut [f32]) {
        let boxed = match self.config.fit {
            Fit::Letterbox if decoded.width != decoded.height => {
                // Twice S keeps the detail a crop can show, and bounds the square of a very long picture.
                Some(letterbox(decoded, decoded.width.max(decoded.height).min(self.config.image_size * 2)))
            }
            _ => None,
        };
        let decoded = boxed.as_ref().unwrap_or(decoded);
        self.train_crop(decoded, self.crop(decoded.width, decoded.height, view), view, values);
    }

    /// What `view` shows of a picture of this size.
    fn crop(&self, width: usize, height: usize, view: View) -> Crop {
        random_crop(width, height, &self.config.random_resized_crop, &mut view.rng(Stream::Crop))
    }

    /// `view` of a picture, which shows `crop` of it.
    fn train_crop(&self, decoded: &Decoded, crop: Crop, view: View, values: &mut [f32]) {
        thread_local! {
            static RGB: RefCell<Vec<u8>> = RefCell::default();
        }
        let side = self.config.image_size;
        let flip = view.rng(Stream::Flip).chance(self.config.flip_probability);
        RGB.with_borrow_mut(|rgb| {
            if self.only_flips() {
                let kernel = Kernel::best();
                let mut finished =
                    |row, bytes: &[u8]| self.normalize.row(kernel, bytes, [row, side], flip, values);
                return resize::bicubic_rows(
                    &decoded.rgb,
                    decoded.width,
                    crop,
                    [side, side],
                    rgb,
                    &mut finished,
                );
            }
            resize::bicubic_into(&decoded.rgb, decoded.width, crop, [side, side], rgb);
            if flip {
                augment::flip(rgb, side);
            }
            self.train_geometry(rgb, view);
            self.train_colors(rgb, view, values);
        });
    }

    /// Whether nothing is asked for beyond LAVIS's pre-training: then one pass flips and normalises.
    fn only_flips(&self) -> bool {
        let config = &self.config;
        !config.moves()
            && config.rand_augment.operations == 0
            && config.color_jitter == ColorJitter::default()
            && config.grayscale_probability == 0.0
            && config.blur.probability == 0.0
    }

    /// Turned and moved, then RandAugment.
    fn train_geometry(&self, rgb: &mut Vec<u8>, view: View) {
        let config = &self.config;
        let side = config.image_size;
        if config.moves() {
            let mut rng = view.rng(Stream::Affine);
            let degrees = rng.uniform_in(-config.rotate_degrees, config.rotate_degrees);
            let reach = config.translate_ratio * side as f64;
            let shift = [rng.uniform_in(-reach, reach), rng.uniform_in(-reach, reach)];
            *rgb = augment::affine(rgb, side, degrees, shift, config.border);
        }
        if config.rand_augment.operations > 0 {
            config.rand_augment.apply(rgb, side, &mut view.rng(Stream::RandAugment));
        }
    }

    /// Colours, grey, blur: on floats, and only when one of them is wanted.
    fn train_colors(&self, rgb: &[u8], view: View, out: &mut [f32]) {
        let config = &self.config;
        let jitter = config.color_jitter != ColorJitter::default();
        let grey = view.rng(Stream::Grayscale).chance(config.grayscale_probability);
        let mut blur_rng = view.rng(Stream::Blur);
        let blurred = blur_rng.chance(config.blur.probability);
        if !(jitter || grey || blurred) {
            return self.normalize_to(rgb, out);
        }
        let mut values: Vec<f32> = rgb.iter().map(|&value| f32::from(value) / 255.0).collect();
        if jitter {
            augment::color_jitter(&mut values, &config.color_jitter, &mut view.rng(Stream::ColorJitter));
        }
        if grey {
            augment::grayscale(&mut values);
        }
        if blurred {
            let sigma = blur_rng.uniform_in(config.blur.sigma[0], config.blur.sigma[1]);
            augment::blur(&mut values, config.image_size, sigma);
        }
        let value = |channel: usize, value: f32| (value - config.mean[channel]) / config.std[channel];
        place(values.chunks_exact(3), value, channels(out));
    }

    /// `crop` of the picture, squashed to `[S, S, 3]`.
    pub fn resize(&self, decoded: &Decoded, crop: Crop) -> Vec<u8> {
        let side = self.config.image_size;
        resize::bicubic(&decoded.rgb, decoded.width, crop, side, side)
    }

    /// `[S, S, 3]` bytes to `[3, S, S]` values `(x / 255 - mean) / std`, in f32 as torch computes them.
    pub fn normalize(&self, rgb: &[u8]) -> Pixels {
        let mut pixels = self.blank();
        self.normalize_to(rgb, &mut pixels.values);
        pixels
    }

    fn normalize_to(&self, rgb: &[u8], values: &mut [f32]) {
        self.normalize.planes(Kernel::best(), rgb, self.config.image_size, false, values);
    }

    fn blank(&self) -> Pixels {
        let size = self.config.image_size;
        Pixels { size, values: vec![0.0; 3 * size * size] }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::RandAugment;

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
            config.rand_augment = RandAugment { operations: 3, ..RandAugment::default() };
        });
        let decoded = picture(40, 30);
        let view = |seed, sample, view| all.train(&decoded, seed, sample, view);
        assert_eq!(view(1, 2, 3), view(1, 2, 3));
        for other in [view(2, 2, 3), view(1, 3, 3), view(1, 2, 4)] {
            assert_ne!(view(1, 2, 3), other);
        }
    }

    #[test]
    fn flipping_while_normalising_is_flipping_and_normalising() {
        let quick = transform(|_| {});
        // Grey that never happens leads through the other path.
        let slow = transform(|config| config.grayscale_probability = f64::MIN_POSITIVE);
        assert!(quick.only_flips() && !slow.only_flips());
        let decoded = picture(40, 30);
        for sample in 0..8 {
            assert_eq!(quick.train(&decoded, 1, sample, 0), slow.train(&decoded, 1, sample, 0));
        }
    }

    #[test]
    fn a_file_becomes_what_its_pixels_become_whatever_was_there() {
        let mut png = std::io::Cursor::new(Vec::new());
        let decoded = picture(40, 30);
        let image = image::RgbImage::from_raw(40, 30, decoded.rgb.clone()).unwrap();
        image.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let plain = transform(|_| {});
        let mut values = vec![7.0; 3 * 24 * 24];
        plain.train_file(png.get_ref(), 1, 2, 3, &mut values).unwrap();
        assert_eq!(
            plain.train_file(b"no picture", 1, 2, 3, &mut values),
            Err(SkipReason::ImageFormatUnknown)
        );
        assert_eq!(values, plain.train(&decoded, 1, 2, 3).values);
    }

    #[test]
    fn a_jpeg_becomes_what_its_pixels_become_with_every_fit() {
        let format = turbojpeg::PixelFormat::RGB;
        for [width, height] in [[75, 50], [50, 50]] {
            let pixels: &[u8] = &picture(width, height).rgb;
            let image = turbojpeg::Image { pixels, width, pitch: width * 3, height, format };
            let jpeg = turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap();
            for (fit, max_side) in [(Fit::Squash, None), (Fit::Squash, Some(40)), (Fit::Letterbox, None)] {
                let made = transform(|config| (config.fit, config.max_side) = (fit, max_side));
                let decoded = crate::decode(&jpeg, &made.decode_options()).unwrap();
                let mut values = vec![7.0; 3 * 24 * 24];
                for view in 0..20 {
                    made.train_file(&jpeg, 1, 2, view, &mut values).unwrap();
                    assert_eq!(values, made.train(&decoded, 1, 2, view).values, "{fit:?}, view {view}");
                }
            }
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
        assert_eq!(Transform::new(config).unwrap_err().to_string(), "data.transform.std: must be above 0");
        let unknown: Result<TransformConfig, _> = serde_json::from_str(r#"{"image_sise": 3}"#);
        assert!(unknown.unwrap_err().to_string().contains("image_sise"));
        let short: TransformConfig =
            serde_json::from_str(r#"{"fit": "letterbox", "random_resized_crop": {"scale": [0.8, 1.0]}}"#)
                .unwrap();
        assert_eq!(short.random_resized_crop.ratio, CropConfig::default().ratio);
    }
}
