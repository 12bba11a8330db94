//! Image bytes become RGB pixels: what `PIL.Image.open(...).convert("RGB")` gives, within stated limits.
//!
//! The format is sniffed from the bytes, the size read from the header before anything is allocated. As in Pillow
//! (and LAVIS): EXIF orientation and colour profiles are ignored; grey is repeated; palettes are looked up; 16-bit
//! colour keeps its high byte, while 16-bit grey is clipped to 255 (Pillow's `I;16`, odd but so); of an animation
//! the first frame is used. Alpha is dropped, or composited on white, see [`Alpha`]. CMYK JPEGs are taken to be
//! inverted, as Adobe writes them.

mod jpeg;
mod part;
#[cfg(target_arch = "x86_64")]
mod planes;

use std::io::Cursor;

use image::{ColorType, ImageDecoder, Limits};

pub(crate) use part::Part;

use crate::error::SkipReason;
use crate::resize::{self, Crop};

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Alpha {
    /// The colour below the transparency is shown, whatever it is (Pillow's `convert("RGB")`, LAVIS).
    #[default]
    Drop,
    /// Composited on white: `(color * alpha + 255 * (255 - alpha) + 127) / 255` in whole numbers.
    White,
}

/// How pictures are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// What becomes of transparency.
    pub alpha: Alpha,
    /// A header that asks for more pixels than this is refused before anything is allocated.
    pub max_pixels: u64,
    /// A picture whose longer side has more pixels is reduced to it: sharpness then tells nothing of where it came from.
    pub max_side: Option<usize>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { alpha: Alpha::default(), max_pixels: 64_000_000, max_side: None }
    }
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decoded {
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// `[height, width, 3]`, 8 bits a channel.
    pub rgb: Vec<u8>,
}

/// Decodes a JPEG, PNG or WebP file. Any bytes whatever are decoded or refused, never a panic.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, SkipReason> {
    let mut decoded = Decoded::default();
    decode_into(bytes, options, &mut decoded)?;
    Ok(decoded)
}

/// As [`decode`], into memory that is used again: fresh pages for every picture take longer than their pixels. After
/// an error the contents mean nothing.
pub fn decode_into(bytes: &[u8], options: &DecodeOptions, into: &mut Decoded) -> Result<(), SkipReason> {
    decode_whole(bytes, options, into)?;
    if let Some(side) = options.max_side.filter(|&side| into.width.max(into.height) > side) {
        *into = reduced(into, side);
    }
    Ok(())
}

/// The picture with `side` pixels along its longer side.
fn reduced(decoded: &Decoded, side: usize) -> Decoded {
    let longer = decoded.width.max(decoded.height);
    let scaled = |length: usize| ((length * side + longer / 2) / longer).max(1);
    let (width, height) = (scaled(decoded.width), scaled(decoded.height));
    let whole = Crop { left: 0, top: 0, width: decoded.width, height: decoded.height };
    Decoded { width, height, rgb: resize::bicubic(&decoded.rgb, decoded.width, whole, width, height) }
}

fn decode_whole(bytes: &[u8], options: &DecodeOptions, into: &mut Decoded) -> Result<(), SkipReason> {
    *into = match bytes {
        _ if is_jpeg(bytes) => return jpeg::decode(bytes, options, into),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => decode_png(bytes, options)?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => decode_webp(bytes, options)?,
        _ => return Err(SkipReason::ImageFormatUnknown),
    };
    Ok(())
}

/// Bytes of memory that a thread keeps beyond what its picture needs, about: enough for pictures of one set.
const KEPT: usize = 64 << 20;

/// Brings memory that is used again to `length` bytes, which may be anything; after a huge picture it is given back.
fn reuse(memory: &mut Vec<u8>, length: usize) {
    if memory.capacity() < length || memory.capacity() > length.saturating_add(KEPT) {
        // Nothing is copied, and never are both there.
        *memory = Vec::new();
    }
    memory.resize(length, 0);
}

fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

fn check_size(width: u64, height: u64, options: &DecodeOptions) -> Result<(), SkipReason> {
    match width.checked_mul(height) {
        Some(0) => Err(SkipReason::ImageCorrupt),
        Some(pixels) if pixels <= options.max_pixels => Ok(()),
        _ => Err(SkipReason::ImageTooLarge),
    }
}

fn decode_png(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, SkipReason> {
    // IHDR must come first: 8 bytes of signature, length and name, then width and height.
    let side = |at: usize| {
        bytes.get(at..at + 4).map(|four| u64::from(u32::from_be_bytes([four[0], four[1], four[2], four[3]])))
    };
    let (Some(width), Some(height)) = (side(16), side(20)) else { return Err(SkipReason::ImageCorrupt) };
    check_size(width, height, options)?;
    let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits(options))
        .map_err(|_| SkipReason::ImageCorrupt)?;
    read_pixels(decoder, options)
}

fn decode_webp(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, SkipReason> {
    let mut decoder =
        image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|_| SkipReason::ImageCorrupt)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), options)?;
    decoder.set_limits(limits(options)).map_err(|_| SkipReason::ImageTooLarge)?;
    read_pixels(decoder, options)
}

fn limits(options: &DecodeOptions) -> Limits {
    let mut limits = Limits::default();
    // The widest pixel is 16-bit RGBA, and a decoder may hold a second copy.
    limits.max_alloc = Some(options.max_pixels.saturating_mul(16));
    limits
}

fn read_pixels(decoder: impl ImageDecoder, options: &DecodeOptions) -> Result<Decoded, SkipReason> {
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), options)?;
    let color = decoder.color_type();
    let mut raw = vec![0; usize::try_from(decoder.total_bytes()).map_err(|_| SkipReason::ImageTooLarge)?];
    decoder.read_image(&mut raw).map_err(|_| SkipReason::ImageCorrupt)?;
    let rgb = to_rgb(raw, color, options.alpha).ok_or(SkipReason::ImageCorrupt)?;
    Ok(Decoded { width: width as usize, height: height as usize, rgb })
}

/// 16-bit samples are in the machine's order. `None` for a layout that none of our decoders gives.
fn to_rgb(raw: Vec<u8>, color: ColorType, alpha: Alpha) -> Option<Vec<u8>> {
    let high_bytes = |raw: &[u8]| -> Vec<u8> {
        raw.chunks_exact(2).map(|two| (u16::from_ne_bytes([two[0], two[1]]) >> 8) as u8).collect()
    };
    let repeat = |grey: Vec<u8>| grey.into_iter().flat_map(|value| [value; 3]).collect();
    Some(match color {
        ColorType::Rgb8 => raw,
        ColorType::L8 => repeat(raw),
        ColorType::L16 => repeat(
            raw.chunks_exact(2).map(|two| u16::from_ne_bytes([two[0], two[1]]).min(255) as u8).collect(),
        ),
        ColorType::Rgb16 => high_bytes(&raw),
        ColorType::La8 => flatten::<2>(&raw, alpha),
        ColorType::Rgba8 => flatten::<4>(&raw, alpha),
        ColorType::La16 => flatten::<2>(&high_bytes(&raw), alpha),
        ColorType::Rgba16 => flatten::<4>(&high_bytes(&raw), alpha),
        _ => return None,
    })
}

/// Pixels of `N` channels, alpha last, to RGB.
fn flatten<const N: usize>(raw: &[u8], alpha: Alpha) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(raw.len() / N * 3);
    for pixel in raw.chunks_exact(N) {
        let opacity = u32::from(pixel[N - 1]);
        for channel in 0..3 {
            let value = pixel[channel.min(N - 2)];
            rgb.push(match alpha {
                Alpha::Drop => value,
                Alpha::White => ((u32::from(value) * opacity + 255 * (255 - opacity) + 127) / 255) as u8,
            });
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn png(width: u32, height: u32, color: image::ExtendedColorType, raw: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        image::ImageEncoder::write_image(encoder, raw, width, height, color).unwrap();
        bytes
    }

    #[test]
    fn memory_is_used_again_and_that_of_a_huge_picture_given_back() {
        let mut memory = vec![0; 1000];
        let place = memory.as_ptr();
        for length in [10, 1000, 500] {
            reuse(&mut memory, length);
            assert!(memory.as_ptr() == place && memory.len() == length);
        }
        reuse(&mut memory, 2 * KEPT);
        reuse(&mut memory, 1000);
        assert!(memory.len() == 1000 && memory.capacity() < KEPT);
    }

    #[test]
    fn alpha_is_dropped_or_composited_on_white() {
        let bytes = png(2, 1, image::ExtendedColorType::Rgba8, &[10, 20, 30, 0, 0, 100, 200, 128]);
        let dropped = decode(&bytes, &DecodeOptions::default()).unwrap();
        assert_eq!(dropped.rgb, [10, 20, 30, 0, 100, 200]);
        let white =
            decode(&bytes, &DecodeOptions { alpha: Alpha::White, ..DecodeOptions::default() }).unwrap();
        assert_eq!(white.rgb, [255, 255, 255, 127, 177, 227]);
    }

    #[test]
    fn a_bomb_is_refused_from_its_header() {
        // 65535 x 65535 in the header of an otherwise tiny file.
        let mut bytes = png(1, 1, image::ExtendedColorType::L8, &[0]);
        bytes[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        assert_eq!(decode(&bytes, &DecodeOptions::default()), Err(SkipReason::ImageTooLarge));
        let small = png(9, 9, image::ExtendedColorType::L8, &[0; 81]);
        let options = DecodeOptions { max_pixels: 80, ..DecodeOptions::default() };
        assert_eq!(decode(&small, &options), Err(SkipReason::ImageTooLarge));
    }

    #[test]
    fn a_large_picture_is_reduced_to_the_longer_side() {
        let wide = png(40, 20, image::ExtendedColorType::L8, &[200; 800]);
        let side = |side| DecodeOptions { max_side: Some(side), ..DecodeOptions::default() };
        let reduced = decode(&wide, &side(10)).unwrap();
        assert_eq!((reduced.width, reduced.height), (10, 5));
        assert!(reduced.rgb.iter().all(|&value| value == 200), "grey stays grey");
        assert_eq!(decode(&wide, &side(40)).unwrap(), decode(&wide, &DecodeOptions::default()).unwrap());
        assert_eq!(decode(&png(40, 1, image::ExtendedColorType::L8, &[9; 40]), &side(4)).unwrap().height, 1);
    }

    #[test]
    fn a_cut_file_is_corrupt() {
        let image = turbojpeg::Image {
            pixels: (0..64 * 48 * 3).map(|at| (at * 7 % 251) as u8).collect::<Vec<u8>>(),
            width: 64,
            pitch: 64 * 3,
            height: 48,
            format: turbojpeg::PixelFormat::RGB,
        };
        let jpeg = turbojpeg::compress(image.as_deref(), 90, turbojpeg::Subsamp::Sub2x2).unwrap();
        assert!(decode(&jpeg, &DecodeOptions::default()).is_ok());
        assert_eq!(decode(&jpeg[..jpeg.len() / 2], &DecodeOptions::default()), Err(SkipReason::ImageCorrupt));
        let png = png(9, 9, image::ExtendedColorType::L8, &[0; 81]);
        assert_eq!(decode(&png[..png.len() - 20], &DecodeOptions::default()), Err(SkipReason::ImageCorrupt));
        assert_eq!(decode(b"<html>", &DecodeOptions::default()), Err(SkipReason::ImageFormatUnknown));
    }

    #[test]
    fn memory_that_is_used_again_changes_no_picture() {
        let jpeg = |side: usize, shade: u8| {
            let pixels = (0..side * side * 3).map(|at| (at as u8).wrapping_mul(shade)).collect::<Vec<u8>>();
            let format = turbojpeg::PixelFormat::RGB;
            let image = turbojpeg::Image { pixels, width: side, pitch: side * 3, height: side, format };
            turbojpeg::compress(image.as_deref(), 90, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
        };
        let mut kept = Decoded::default();
        let (large, small) = (jpeg(50, 3), jpeg(20, 5));
        for bytes in [
            &large[..],
            &small,
            &large[..large.len() / 2],
            &png(3, 2, image::ExtendedColorType::L8, &[7; 6]),
            &large,
        ] {
            let fresh = decode(bytes, &DecodeOptions::default());
            let again = decode_into(bytes, &DecodeOptions::default(), &mut kept).map(|()| kept.clone());
            assert_eq!(again, fresh);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            kind in 0usize..4, tail in prop::collection::vec(any::<u8>(), 0..400), flips in prop::collection::vec((0usize..2000, any::<u8>()), 0..6),
        ) {
            let heads: [&[u8]; 4] = [
                b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\x20\x03\0\0WEBPVP8 ",
            ];
            let mut bytes = [heads[kind], &tail].concat();
            let _ = decode(&bytes, &DecodeOptions::default());
            // The same on a real file with a few bytes changed.
            let whole = match kind {
                0 | 1 => {
                    let image = turbojpeg::Image { pixels: vec![90u8; 16 * 16 * 3], width: 16, pitch: 48, height: 16, format: turbojpeg::PixelFormat::RGB };
                    turbojpeg::compress(image.as_deref(), 80, turbojpeg::Subsamp::Sub2x1).unwrap().to_vec()
                }
                2 => png(16, 16, image::ExtendedColorType::Rgba8, &[50; 16 * 16 * 4]),
                _ => {
                    let mut webp = Vec::new();
                    image::codecs::webp::WebPEncoder::new_lossless(&mut webp)
                        .encode(&[60; 16 * 16 * 3], 16, 16, image::ExtendedColorType::Rgb8).unwrap();
                    webp
                }
            };
            bytes = whole;
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(decoded) = decode(&bytes, &DecodeOptions { max_pixels: 1_000_000, ..DecodeOptions::default() }) {
                prop_assert_eq!(decoded.rgb.len(), decoded.width * decoded.height * 3);
            }
        }
    }
}
