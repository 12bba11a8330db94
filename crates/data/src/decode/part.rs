//! A picture of which one crop is looked at: pixels elsewhere need not be made.

#[cfg(target_arch = "x86_64")]
use turbojpeg::{DecompressHeader, YuvImage};

use super::{DecodeOptions, Decoded, decode_into, is_jpeg};
#[cfg(target_arch = "x86_64")]
use super::{jpeg, planes::Planes};
use crate::error::SkipReason;
use crate::kernel::Kernel;
use crate::resize::Crop;
#[cfg(target_arch = "x86_64")]
use crate::wide::Wide;

/// Memory for such pictures, which is used again.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pixels: Decoded,
    #[cfg(target_arch = "x86_64")]
    planes: Planes,
    /// Whether the picture came as planes.
    #[cfg(target_arch = "x86_64")]
    planar: bool,
}

impl Part {
    /// As [`decode_into`], but for the crop alone that `choose` names for a width and a height. Returned are pixels, and
    /// where among them the crop lies. What is refused, and every pixel of the crop, is the same.
    pub(crate) fn decode(
        &mut self,
        kernel: Kernel,
        bytes: &[u8],
        options: &DecodeOptions,
        choose: impl FnOnce(usize, usize) -> Crop,
    ) -> Result<(&Decoded, Crop), SkipReason> {
        // A picture that is to be reduced is needed whole.
        if is_jpeg(bytes) && options.max_side.is_none() {
            match kernel {
                // libjpeg-turbo's own code is faster then.
                Kernel::Scalar => {}
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2(wide) => return self.decode_jpeg(wide, bytes, options, choose),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512(wide) => return self.decode_jpeg(wide, bytes, options, choose),
            }
        }
        decode_into(bytes, options, &mut self.pixels)?;
        let crop = choose(self.pixels.width, self.pixels.height);
        Ok((&self.pixels, crop))
    }

    #[cfg(target_arch = "x86_64")]
    fn decode_jpeg<W: Wide>(
        &mut self,
        wide: W,
        bytes: &[u8],
        options: &DecodeOptions,
        choose: impl FnOnce(usize, usize) -> Crop,
    ) -> Result<(&Decoded, Crop), SkipReason> {
        jpeg::decode(bytes, options, self)?;
        let crop = if self.planar {
            let crop = choose(self.planes.width, self.planes.height);
            self.planes.rgb(wide, crop, &mut self.pixels)
        } else {
            choose(self.pixels.width, self.pixels.height)
        };
        Ok((&self.pixels, crop))
    }
}

#[cfg(target_arch = "x86_64")]
impl jpeg::Target for Part {
    fn planes(&mut self, header: &DecompressHeader) -> Option<YuvImage<&mut [u8]>> {
        let room = self.planes.room(header);
        self.planar = room.is_some();
        room
    }

    fn pixels(&mut self) -> &mut Decoded {
        &mut self.pixels
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

    use super::*;
    use crate::decode::decode;
    use crate::rng::{Rng, Stream};

    const SUBSAMPLINGS: [Subsamp; 6] =
        [Subsamp::Sub2x2, Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub1x2, Subsamp::Sub4x1, Subsamp::Gray];

    /// Noise, most of it at the ends of the range: colours that must be clipped.
    fn jpeg([width, height]: [usize; 2], subsampling: Subsamp, progressive: bool, seed: u64) -> Vec<u8> {
        let mut rng = Rng::new(seed, Stream::Crop, &[]);
        let pixels: Vec<u8> =
            (0..width * height * 3).map(|_| [0, 255, rng.bits() as u8][rng.below(3) as usize]).collect();
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(50 + (seed % 50) as i32).unwrap();
        compressor.set_subsamp(subsampling).unwrap();
        compressor.set_progressive(progressive).unwrap();
        let format = PixelFormat::RGB;
        compressor
            .compress_to_vec(Image { pixels: &pixels, width, pitch: width * 3, height, format })
            .unwrap()
    }

    fn pixels(decoded: &Decoded, crop: Crop) -> Vec<u8> {
        let rows = decoded.rgb.chunks_exact(decoded.width * 3).skip(crop.top).take(crop.height);
        rows.flat_map(|row| &row[crop.left * 3..(crop.left + crop.width) * 3]).copied().collect()
    }

    /// By each vector code and without: what [`decode`] makes of the crop that `choose` names, or says.
    fn as_decoded_whole(
        bytes: &[u8],
        part: &mut Part,
        choose: impl Fn(usize, usize) -> Crop,
    ) -> Result<(), TestCaseError> {
        let options = DecodeOptions { max_pixels: 1_000_000, ..DecodeOptions::default() };
        let whole = decode(bytes, &options).map(|whole| pixels(&whole, choose(whole.width, whole.height)));
        for kernel in Kernel::wide().into_iter().chain([Kernel::Scalar]) {
            let crop = part.decode(kernel, bytes, &options, &choose);
            let crop = crop.map(|(decoded, crop)| pixels(decoded, crop));
            prop_assert!(crop == whole, "{kernel:?}");
        }
        Ok(())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_usual_kinds_of_jpeg_come_as_planes() {
        for (kind, subsampling) in SUBSAMPLINGS.into_iter().enumerate() {
            for kernel in Kernel::wide() {
                let mut part = Part::default();
                let whole = |width, height| Crop { top: 0, left: 0, height, width };
                let bytes = jpeg([40, 30], subsampling, false, 7);
                let (decoded, _) = part.decode(kernel, &bytes, &DecodeOptions::default(), whole).unwrap();
                assert_eq!([decoded.width, decoded.height], [40, 30]);
                assert_eq!(part.planar, kind < 3);
            }
        }
    }

    #[test]
    fn a_picture_that_is_reduced_is_reduced_whole() {
        let bytes = jpeg([40, 30], Subsamp::Sub2x2, false, 7);
        let options = DecodeOptions { max_side: Some(20), ..DecodeOptions::default() };
        let reduced = decode(&bytes, &options).unwrap();
        let crop = Crop { top: 3, left: 5, height: 9, width: 11 };
        for kernel in Kernel::wide().into_iter().chain([Kernel::Scalar]) {
            let mut part = Part::default();
            let (decoded, place) = part.decode(kernel, &bytes, &options, |_, _| crop).unwrap();
            assert_eq!(pixels(decoded, place), pixels(&reduced, crop));
        }
    }

    proptest! {
        #[test]
        fn every_crop_has_the_pixels_of_the_whole(
            pictures in prop::collection::vec((1usize..150, 1usize..40, 0usize..6, any::<bool>(), any::<u64>()), 1..4),
            cut in prop::array::uniform4(0.0f64..1.0),
        ) {
            // Memory of one picture is used for the next one.
            let mut part = Part::default();
            for (width, height, kind, progressive, seed) in pictures {
                let bytes = jpeg([width, height], SUBSAMPLINGS[kind], progressive, seed);
                let some = |of: usize, share: f64| (of as f64 * share) as usize;
                as_decoded_whole(&bytes, &mut part, |width, height| {
                    let (top, left) = (some(height, cut[0]), some(width, cut[1]));
                    let (height, width) = (1 + some(height - top - 1, cut[2]), 1 + some(width - left - 1, cut[3]));
                    Crop { top, left, height, width }
                })?;
            }
        }

        #[test]
        fn what_is_damaged_is_refused_or_borne_as_the_whole_is(
            kind in 0usize..6, progressive: bool, seed: u64,
            flips in prop::collection::vec((0.0f64..1.0, any::<u8>()), 0..3), end in 0.5f64..1.5, stray in 0usize..3,
        ) {
            let mut bytes = jpeg([43, 29], SUBSAMPLINGS[kind], progressive, seed);
            for (at, value) in flips {
                let at = (at * bytes.len() as f64) as usize;
                bytes[at] = value;
            }
            bytes.truncate((bytes.len() as f64 * end) as usize);
            // Bytes before the marker of the end, or whatever ends it now.
            let last = bytes.len() - 2;
            bytes.splice(last..last, [1, 2].into_iter().take(stray));
            as_decoded_whole(&bytes, &mut Part::default(), |width, height| Crop { top: 0, left: 0, height, width })?;
        }
    }
}
