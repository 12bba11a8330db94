//! JPEG, by libjpeg-turbo: what is whole is decoded, as Pillow decodes it; what libjpeg merely warns of is told apart from
//! damage.
//!
//! libjpeg tells of its first warning only, and what it has told of may hide what comes behind. So a warning is borne
//! where nothing can come behind it that matters: stray bytes before the end of the picture, when all its pixels are
//! there. Elsewhere what is warned of is taken away, of the header ([`mended`]) or from between two scans
//! ([`without_stray`]), and the rest is decoded as if it had never been there.

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Error, Image, PixelFormat, YuvImage};

use super::{DecodeOptions, Decoded, check_size, reuse};
use crate::error::SkipReason;

/// Progressive files may ask for thousands of scans of the whole picture.
const MAX_SCANS: u32 = 500;
/// Warnings of a header that [`mended`] cures.
const OF_HEADERS: [&str; 4] = [
    "extraneous bytes before marker",
    "unknown JFIF revision number",
    "Unknown Adobe color transform code",
    "bad ICC marker",
];
/// So many places are tried for stray bytes between scans.
const MAX_PLACES: usize = 16;
/// The marker behind which no pixel comes.
const END: u8 = 0xd9;

/// Where a picture goes.
pub(super) trait Target {
    /// Room for its planes, if they are wanted instead of its pixels and this is a picture that can be had so.
    fn planes(&mut self, header: &DecompressHeader) -> Option<YuvImage<&mut [u8]>>;
    /// Room for its pixels.
    fn pixels(&mut self) -> &mut Decoded;
}

impl Target for Decoded {
    fn planes(&mut self, _: &DecompressHeader) -> Option<YuvImage<&mut [u8]>> {
        None
    }

    fn pixels(&mut self) -> &mut Decoded {
        self
    }
}

/// Decodes bytes that begin as a JPEG does, in full size, to planes or pixels; after an error these mean nothing.
pub(super) fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    into: &mut impl Target,
) -> Result<(), SkipReason> {
    match decompress(bytes, options, into) {
        Err(Refused::Header) => {
            let mended = mended(bytes).ok_or(SkipReason::ImageCorrupt)?;
            decompress(&mended, options, into).map_err(Refused::reason)
        }
        Err(Refused::Stray(stray)) => {
            let mut places = without_stray(bytes, stray).take(MAX_PLACES);
            let whole = places.any(|bytes| decompress(&bytes, options, into).is_ok());
            if whole { Ok(()) } else { Err(SkipReason::ImageCorrupt) }
        }
        result => result.map_err(Refused::reason),
    }
}

enum Refused {
    /// The header has something that libjpeg warns of, and perhaps nothing else that is wrong.
    Header,
    /// There are stray bytes between scans, and perhaps nothing else is wrong.
    Stray(Stray),
    For(SkipReason),
}

/// Bytes that belong to nothing, and the marker behind them.
#[derive(Clone, Copy, PartialEq)]
struct Stray {
    count: usize,
    marker: u8,
}

impl Stray {
    /// Reads `Corrupt JPEG data: 5 extraneous bytes before marker 0xd9`.
    fn parse(message: &str) -> Option<Self> {
        let (before, marker) = message.split_once(" extraneous bytes before marker 0x")?;
        let count = before.rsplit(' ').next()?.parse().ok()?;
        Some(Self { count, marker: u8::from_str_radix(marker.get(..2)?, 16).ok()? })
    }
}

impl Refused {
    fn reason(self) -> SkipReason {
        match self {
            Self::Header | Self::Stray(_) => SkipReason::ImageCorrupt,
            Self::For(reason) => reason,
        }
    }
}

fn decompress(bytes: &[u8], options: &DecodeOptions, into: &mut impl Target) -> Result<(), Refused> {
    let corrupt = |_| Refused::For(SkipReason::ImageCorrupt);
    // A decompressor of its own for each picture, for less than a microsecond: a used one keeps tables of the picture
    // before, and after a broken header its place among the markers.
    let mut decompressor = Decompressor::new().map_err(corrupt)?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(corrupt)?;
    let header = decompressor.read_header(bytes).map_err(|error| match error {
        Error::TurboJpegError(message) if OF_HEADERS.iter().any(|warning| message.contains(warning)) => {
            Refused::Header
        }
        _ => Refused::For(SkipReason::ImageCorrupt),
    })?;
    check_size(header.width as u64, header.height as u64, options).map_err(Refused::For)?;
    if let Some(planes) = into.planes(&header) {
        return borne(decompressor.decompress_to_yuv(bytes, planes));
    }
    let into = into.pixels();
    let (width, height) = (header.width, header.height);
    let four_inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if four_inks { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    reuse(&mut into.rgb, pitch * height);
    let image = Image { pixels: into.rgb.as_mut_slice(), width, pitch, height, format };
    borne(decompressor.decompress(bytes, image))?;
    if four_inks {
        into.rgb = cmyk_to_rgb(&into.rgb);
    }
    (into.width, into.height) = (width, height);
    Ok(())
}

/// What libjpeg says at the end, less what can be borne.
fn borne(said: Result<(), Error>) -> Result<(), Refused> {
    let Err(error) = said else { return Ok(()) };
    let corrupt = Err(Refused::For(SkipReason::ImageCorrupt));
    let Error::TurboJpegError(message) = error else { return corrupt };
    match Stray::parse(&message) {
        Some(Stray { marker: END, .. }) => Ok(()),
        Some(stray) => Err(Refused::Stray(stray)),
        None => corrupt,
    }
}

/// The picture with a header that libjpeg does not warn of; `None` where there is no scan. Stray bytes between markers
/// are left out, and so are colour profiles, EXIF and comments, which no pixel depends on; an unknown revision of
/// JFIF becomes the first, an unknown transform of Adobe's the one that libjpeg (and so Pillow) takes it for.
fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut clean = bytes.get(..2)?.to_vec();
    let (mut transform, mut components) = (None, 0);
    let mut at = 2;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += bytes[at..].iter().position(|&byte| byte != 0xff)?;
        let code = bytes[at];
        at += 1;
        // Markers without contents, or none at all.
        if code == 0 || code == 0x01 || (0xd0..=0xd9).contains(&code) {
            if code != 0 {
                clean.extend([0xff, code]);
            }
            continue;
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let segment = bytes.get(at..at + length)?;
        let start = clean.len() + 2;
        match code {
            0xe1..=0xed | 0xef | 0xfe => {}
            _ => {
                clean.extend([0xff, code]);
                clean.extend_from_slice(segment);
            }
        }
        match code {
            0xe0 if segment.len() >= 16 && segment[2..].starts_with(b"JFIF\0") => clean[start + 7] = 1,
            0xee if segment.len() >= 14 && segment[2..].starts_with(b"Adobe") => transform = Some(start + 13),
            0xc0..=0xcf if code != 0xc4 && code != 0xcc => components = *segment.get(7)?,
            0xda => {
                if let Some(transform) = transform {
                    let known = &mut clean[transform];
                    *known = match (components, *known) {
                        (4, 0) | (3, 0) => 0,
                        (4, _) => 2,
                        _ => 1,
                    };
                }
                clean.extend_from_slice(&bytes[at + length..]);
                return Some(clean);
            }
            _ => {}
        }
        at += length.max(2);
    }
}

/// The picture without the stray bytes that libjpeg tells of, which stand before one of the markers of their kind: before
/// each in turn. Where they are not taken from the right one, libjpeg tells of them again. Inside a scan, before a
/// restart, they are damage.
fn without_stray(bytes: &[u8], stray: Stray) -> impl Iterator<Item = Vec<u8>> + '_ {
    let first_scan = bytes.windows(2).position(|two| two == [0xff, 0xda]).unwrap_or(bytes.len());
    let ends_a_scan = !(0xd0..=0xd7).contains(&stray.marker);
    let markers = bytes.windows(2).enumerate().skip(first_scan + 2 + stray.count);
    markers.filter(move |(_, two)| ends_a_scan && *two == [0xff, stray.marker]).map(move |(at, _)| {
        let mut less = bytes[..at - stray.count].to_vec();
        less.extend_from_slice(&bytes[at..]);
        less
    })
}

/// Inverted CMYK as Adobe stores it: `channel = key - (255 - ink) * key / 255`, rounded as Pillow rounds.
fn cmyk_to_rgb(pixels: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.chunks_exact(4) {
        let key = u32::from(pixel[3]);
        for &ink in &pixel[..3] {
            let product = (255 - u32::from(ink)) * key + 128;
            rgb.push((key - (((product >> 8) + product) >> 8)) as u8);
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libjpegs_words_are_understood() {
        let parsed = Stray::parse("Corrupt JPEG data: 5 extraneous bytes before marker 0xc4");
        assert!(parsed == Some(Stray { count: 5, marker: 0xc4 }));
        for other in [
            "Premature end of JPEG file",
            " extraneous bytes before marker 0xc4",
            "1 extraneous bytes before marker 0x",
        ] {
            assert!(Stray::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn cmyk_is_read_as_adobe_writes_it() {
        let raw = [255u8, 255, 255, 255, 255, 0, 0, 255, 255, 255, 255, 0].repeat(64);
        assert_eq!(cmyk_to_rgb(&raw)[..9], [255, 255, 255, 255, 0, 0, 0, 0, 0]);
    }
}
