//! A JPEG's planes of brightness and colour become RGB where a crop lies, to the bit as libjpeg-turbo makes it of the whole.
//!
//! A training view looks at three quarters of a picture on average, and what libjpeg-turbo does behind its inverse DCT is a fifth of
//! its time: it brings the colour planes to full resolution and joins the three. Both are whole-numbered rules of few lines,
//! which are kept here for the crop alone, with wide registers.
//!
//! Where two pixels share a sample of colour, each gets three quarters of it and a quarter of the next nearest one ("fancy
//! upsampling", libjpeg-turbo's `jdsample.c`), first in the height, then in the width; at a border the sample itself is the next
//! nearest. The quarters are summed, halves are rounded up and down in turns: sums of sixteenths and a number that belongs to
//! even or odd columns. Then (ITU-T T.871, in 16-bit fixed point with halves rounded up)
//!
//! ```text
//! R = Y + 1.402 Cr     G = Y - 0.344136 Cb - 0.714136 Cr     B = Y + 1.772 Cb
//! ```

use pulp::NullaryFnOnce;
use pulp::bytemuck::cast_slice;
use turbojpeg::{Colorspace, DecompressHeader, Subsamp, YuvImage};

use super::{Decoded, reuse};
use crate::resize::Crop;
use crate::wide::{LANE, MOST_LANES, Wide};

/// Pixels that are made together, at most.
const MOST_PIXELS: usize = MOST_LANES * LANE;
/// Where pixels share samples of colour, libjpeg-turbo repeats those of pictures that are no wider.
const NARROW: usize = 4;

/// One JPEG's planes, in memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Planes {
    pub(super) width: usize,
    pub(super) height: usize,
    sharing: Sharing,
    /// Columns and rows of the plane of brightness.
    light: [usize; 2],
    /// Columns and rows of each plane of colour.
    colour: [usize; 2],
    /// Y, Cb, Cr, and as much behind them as is loaded at once.
    samples: Vec<u8>,
    /// See [`Row::sums`].
    sums: [Vec<u16>; 2],
}

/// Which pixels share a sample of colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sharing {
    /// None (4:4:4).
    #[default]
    None,
    /// Two neighbours (4:2:2).
    Across,
    /// Two by two (4:2:0).
    Square,
}

impl Sharing {
    fn of(subsamp: Subsamp) -> Option<Self> {
        match subsamp {
            Subsamp::None => Some(Self::None),
            Subsamp::Sub2x1 => Some(Self::Across),
            Subsamp::Sub2x2 => Some(Self::Square),
            _ => None,
        }
    }

    /// The nearest sample to pixel `number` of a row.
    fn column(self, number: usize) -> usize {
        match self {
            Self::None => number,
            Self::Across | Self::Square => number / 2,
        }
    }

    /// The nearest and the next nearest of `count` rows of samples to row `number` of the pixels.
    fn rows(self, number: usize, count: usize) -> [usize; 2] {
        let near = number / 2;
        match self {
            Self::Square if number.is_multiple_of(2) => [near, near.saturating_sub(1)],
            Self::Square => [near, (near + 1).min(count - 1)],
            Self::None | Self::Across => [number, number],
        }
    }

    /// What is added to sixteenths, in even and in odd columns, before they are cut off; without sharing there are none.
    fn rounding(self) -> [i16; 2] {
        match self {
            Self::None | Self::Square => [8, 7],
            Self::Across => [4, 8],
        }
    }
}

impl Planes {
    /// Room for the planes of a picture with this header; `None` where its colours are made in another way than here.
    pub(super) fn room(&mut self, header: &DecompressHeader) -> Option<YuvImage<&mut [u8]>> {
        let (width, height, subsamp) = (header.width, header.height, header.subsamp);
        self.sharing = Sharing::of(subsamp)?;
        let narrow = width <= NARROW && self.sharing != Sharing::None;
        if header.colorspace != Colorspace::YCbCr || header.is_lossless || narrow {
            return None;
        }
        (self.width, self.height) = (width, height);
        let shape = YuvImage { pixels: (), width, align: 1, height, subsamp };
        (self.light, self.colour) = (shape.y_size().into(), shape.uv_size().into());
        // libjpeg-turbo makes no larger planes, only larger pictures.
        i32::try_from(self.light[0].checked_mul(self.light[1])?).ok()?;
        let length = turbojpeg::yuv_pixels_len(width, 1, height, subsamp).ok()?;
        reuse(&mut self.samples, length + MOST_PIXELS);
        Some(YuvImage { pixels: &mut self.samples[..length], width, align: 1, height, subsamp })
    }

    /// Makes the pixels of `crop`, and at most one column to the left of it, and returns where in `into` the crop lies.
    pub(super) fn rgb<W: Wide>(&mut self, wide: W, crop: Crop, into: &mut Decoded) -> Crop {
        // Registers begin at a sample of colour.
        let left = crop.left % 2;
        (into.width, into.height) = (left + crop.width, crop.height);
        let length = into.width * 3;
        reuse(&mut into.rgb, crop.height * length + MOST_PIXELS * 3 + LANE);
        let [light, colour] = [self.light, self.colour];
        let colours = &self.samples[light[0] * light[1]..];
        let planes = [colours, &colours[colour[0] * colour[1]..]];
        for row in 0..crop.height {
            let number = crop.top + row;
            let rows = self.sharing.rows(number, colour[1]);
            let work = Row {
                wide,
                sharing: self.sharing,
                light: &self.samples[number * light[0] + crop.left - left..],
                colours: planes.map(|plane| rows.map(|row| &plane[row * colour[0]..])),
                first: self.sharing.column(crop.left - left),
                samples: colour[0],
                pixels: into.width,
                sums: &mut self.sums,
                // What is written behind a row is overwritten by the next one.
                out: &mut into.rgb[row * length..],
            };
            wide.vectorize(work);
        }
        into.rgb.truncate(crop.height * length);
        Crop { top: 0, left, ..crop }
    }
}

/// A row of pixels from an even column on.
struct Row<'a, W: Wide> {
    wide: W,
    sharing: Sharing,
    light: &'a [u8],
    /// Of Cb and Cr the nearest and the next nearest row, and what lies behind.
    colours: [[&'a [u8]; 2]; 2],
    /// The first pixel's sample of colour.
    first: usize,
    /// Samples of colour in the whole row.
    samples: usize,
    pixels: usize,
    /// Three quarters and a quarter of two rows, in quarters; from the sample before the first on.
    sums: &'a mut [Vec<u16>; 2],
    out: &'a mut [u8],
}

impl<W: Wide> NullaryFnOnce for Row<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        if self.sharing != Sharing::None {
            self.add_rows(0);
            self.add_rows(1);
        }
        let step = W::LANES * LANE;
        for block in 0..self.pixels.div_ceil(step) {
            let (blue, red) = (self.colour(0, block), self.colour(1, block));
            let light = words(self.wide, self.wide.load(self.light, block * step));
            let pixels = rgb(self.wide, light, blue, red);
            let out = &mut self.out[block * step * 3..];
            let mut at = 0;
            for lane in 0..W::LANES {
                for four in &pixels {
                    // What is written behind four pixels is overwritten by the next four.
                    out[at..at + LANE].copy_from_slice(&four.as_ref()[lane]);
                    at += LANE / 4 * 3;
                }
            }
        }
    }
}

impl<W: Wide> Row<'_, W> {
    /// [`Row::sums`] of one colour.
    #[inline(always)]
    fn add_rows(&mut self, which: usize) {
        let sums = &mut self.sums[which];
        let count = self.pixels.div_ceil(2) + 2;
        sums.resize(count + MOST_PIXELS / 2, 0);
        let before = usize::from(self.first == 0);
        let from = self.first + before - 1;
        let end = (self.first + count - 1).min(self.samples);
        let [near, far] = self.colours[which];
        let (near, far) = (&near[from..end], &far[from..end]);
        for ((sum, &near), &far) in sums[before..].iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
        // At a border the sample itself is its neighbour.
        if before == 1 {
            sums[0] = sums[1];
        }
        let made = before + end - from;
        sums[made] = sums[made - 1];
    }

    /// One colour of a block of pixels, less 128: of the first eight pixels of each lane, and of the others.
    #[inline(always)]
    fn colour(&self, which: usize, block: usize) -> [W::Register; 2] {
        let wide = self.wide;
        if self.sharing == Sharing::None {
            let [one, two] =
                words(wide, wide.load(self.colours[which][0], self.first + block * W::LANES * LANE));
            let middle = wide.splat(both(128));
            return [wide.subtract_words(one, middle), wide.subtract_words(two, middle)];
        }
        let sums: &[u8] = cast_slice(&self.sums[which]);
        let at = block * W::LANES * LANE;
        let (last, this, next) = (wide.load(sums, at), wide.load(sums, at + 2), wide.load(sums, at + 4));
        let three = wide.add_words(wide.add_words(this, this), this);
        let [even, odd] = self.sharing.rounding();
        let even = wide.add_words(wide.add_words(three, last), wide.splat(both(even - 128 * 16)));
        let odd = wide.add_words(wide.add_words(three, next), wide.splat(both(odd - 128 * 16)));
        let (even, odd) = (wide.sixteenths(even), wide.sixteenths(odd));
        [wide.interleave_words(even, odd, false), wide.interleave_words(even, odd, true)]
    }
}

/// Bytes as 16-bit numbers: the first eight of each lane, and the others.
#[inline(always)]
fn words<W: Wide>(wide: W, bytes: W::Register) -> [W::Register; 2] {
    let nothing = wide.splat(0);
    [wide.interleave(bytes, nothing, false), wide.interleave(bytes, nothing, true)]
}

/// The same 16-bit number twice.
const fn both(word: i16) -> i32 {
    pair(word, word)
}

const fn pair(first: i16, second: i16) -> i32 {
    (second as i32) << 16 | (first as u16 as i32)
}

/// Factors in 65536ths of the colours. Those beyond 16 bits are brought there by whole ones: red is less by one and
/// blue by two, which are added apart; the second of green is more by one, which is subtracted apart.
const RED: i16 = (91_881 - 65_536) as i16;
const GREEN: [i16; 2] = [-22_554, (65_536 - 46_802) as i16];
const BLUE: i16 = (116_130 - 2 * 65_536) as i16;

/// Pixels, four to a lane of each register, from their brightness and colours in 16-bit numbers.
#[inline(always)]
fn rgb<W: Wide>(
    wide: W,
    light: [W::Register; 2],
    blue: [W::Register; 2],
    red: [W::Register; 2],
) -> [impl AsRef<[[u8; LANE]]>; 4] {
    let nothing = wide.splat(0);
    let mut channels = [[nothing; 2]; 3];
    for half in 0..2 {
        let (light, blue, red) = (light[half], blue[half], red[half]);
        let red_part = wide.add_words(red, product(wide, red, RED));
        let blue_part = wide.add_words(wide.add_words(blue, blue), product(wide, blue, BLUE));
        channels[0][half] = wide.add_words(light, red_part);
        channels[1][half] = green(wide, wide.subtract_words(light, red), blue, red);
        channels[2][half] = wide.add_words(light, blue_part);
    }
    let [red, green, blue] = channels;
    let (red, green) = (wide.pack_words(red[0], red[1]), wide.pack_words(green[0], green[1]));
    let blue = wide.pack_words(blue[0], blue[1]);
    let mut fours = [nothing; 4];
    for upper in [false, true] {
        let (two, one) = (wide.interleave(red, green, upper), wide.interleave(blue, nothing, upper));
        fours[usize::from(upper) * 2] = wide.rgb(wide.interleave_words(two, one, false));
        fours[usize::from(upper) * 2 + 1] = wide.rgb(wide.interleave_words(two, one, true));
    }
    let [a, b, c, d] = fours;
    [wide.lanes(a), wide.lanes(b), wide.lanes(c), wide.lanes(d)]
}

/// `colour * factor / 65536`, halves rounded up.
#[inline(always)]
fn product<W: Wide>(wide: W, colour: W::Register, factor: i16) -> W::Register {
    let twice = wide.upper_products(wide.add_words(colour, colour), wide.splat(both(factor)));
    wide.halves(wide.add_words(twice, wide.splat(both(1))))
}

/// `light` and what both colours give to green, which is rounded as one number.
#[inline(always)]
fn green<W: Wide>(wide: W, light: W::Register, blue: W::Register, red: W::Register) -> W::Register {
    let mut sums = [light; 2];
    for upper in [false, true] {
        // A half below the whole number.
        let half = wide.interleave_words(wide.splat(both(i16::MIN)), light, upper);
        let colours = wide.interleave_words(blue, red, upper);
        let factors = wide.splat(pair(GREEN[0], GREEN[1]));
        sums[usize::from(upper)] = wide.add_products(half, colours, factors);
    }
    wide.upper_words(sums[0], sums[1])
}
