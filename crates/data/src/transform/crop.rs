//! Which part of a picture a training view shows.

use super::CropConfig;
use crate::resize::Crop;
use crate::rng::Rng;

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
    use crate::rng::Stream;

    proptest! {
        #[test]
        fn crops_lie_inside_and_keep_their_bounds(width in 1usize..300, height in 1usize..300, sample: u64) {
            let crop = random_crop(width, height, &CropConfig::default(), &mut Rng::new(1, Stream::Crop, &[sample]));
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.top + crop.height <= height && crop.left + crop.width <= width);
        }
    }
}
