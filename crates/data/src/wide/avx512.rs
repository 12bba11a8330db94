//! Registers of 512 bits: AVX-512 with its byte and word instructions (servers since 2017, AMD's since 2022), and VNNI,
//! which adds products in one instruction, where the processor has it.

use std::arch::x86_64::{__m512, __m512i};

use pulp::NullaryFnOnce;
use pulp::bytemuck::cast;
use pulp::x86::V4;

use super::{CHANNELS, Column, Columns, LANE, MOST_LANES, THREE_OF_FOUR, Wide, bytes, pair_of_pixels};
use crate::resize::{LOW_BITS, PRECISION_BITS};

const PAIRS: [[[u8; LANE]; 4]; 2] = [[pair_of_pixels(0); 4], [pair_of_pixels(6); 4]];

pulp::simd_type! {
    /// What V4 proves, and VNNI.
    struct Vnni {
        sse: "sse",
        sse2: "sse2",
        fxsr: "fxsr",
        sse3: "sse3",
        ssse3: "ssse3",
        sse4_1: "sse4.1",
        sse4_2: "sse4.2",
        popcnt: "popcnt",
        avx: "avx",
        avx2: "avx2",
        bmi1: "bmi1",
        bmi2: "bmi2",
        fma: "fma",
        lzcnt: "lzcnt",
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512cd: "avx512cd",
        avx512dq: "avx512dq",
        avx512vl: "avx512vl",
        avx512vnni: "avx512vnni",
    }
}

/// Proof of AVX-512, and of VNNI where it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    v4: V4,
    vnni: Option<Vnni>,
}

impl Avx512 {
    /// `None` where the processor has none; it is asked once.
    pub(crate) fn try_new() -> Option<Self> {
        V4::try_new().map(|v4| Self { v4, vnni: Vnni::try_new() })
    }

    /// As if the processor had no VNNI.
    #[cfg(test)]
    pub(crate) fn without_vnni(self) -> Self {
        Self { vnni: None, ..self }
    }
}

impl Wide for Avx512 {
    type Register = __m512i;
    type Floats = __m512;
    const LANES: usize = 4;

    #[inline(always)]
    fn gather(self, lanes: [[u8; LANE]; MOST_LANES]) -> __m512i {
        cast(lanes)
    }

    #[inline(always)]
    fn load(self, row: &[u8], at: usize) -> __m512i {
        cast(bytes::<{ 4 * LANE }>(row, at))
    }

    #[inline(always)]
    fn splat(self, bits: i32) -> __m512i {
        self.v4.avx512f._mm512_set1_epi32(bits)
    }

    #[inline(always)]
    fn channels(self, pixels: __m512i, next: bool) -> __m512i {
        self.v4.avx512bw._mm512_shuffle_epi8(pixels, cast(PAIRS[usize::from(next)]))
    }

    #[inline(always)]
    fn interleave(self, one: __m512i, two: __m512i, upper: bool) -> __m512i {
        match upper {
            false => self.v4.avx512bw._mm512_unpacklo_epi8(one, two),
            true => self.v4.avx512bw._mm512_unpackhi_epi8(one, two),
        }
    }

    /// With VNNI the compiler makes one instruction of both.
    #[inline(always)]
    fn add_products(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        self.v4.avx512f._mm512_add_epi32(sum, self.v4.avx512bw._mm512_madd_epi16(a, b))
    }

    #[inline(always)]
    fn whole(self, high: __m512i, low: __m512i) -> __m512i {
        let high = self.v4.avx512f._mm512_slli_epi32::<{ LOW_BITS as u32 }>(high);
        self.v4.avx512f._mm512_srai_epi32::<PRECISION_BITS>(self.v4.avx512f._mm512_add_epi32(high, low))
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let words = self.v4.avx512bw;
        words._mm512_packus_epi16(words._mm512_packs_epi32(a, b), words._mm512_packs_epi32(c, d))
    }

    #[inline(always)]
    fn rgb(self, pixels: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_shuffle_epi8(pixels, cast([THREE_OF_FOUR; 4]))
    }

    #[inline(always)]
    fn lanes(self, register: __m512i) -> impl AsRef<[[u8; LANE]]> {
        cast::<__m512i, [[u8; LANE]; 4]>(register)
    }

    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_add_epi16(a, b)
    }

    #[inline(always)]
    fn subtract_words(self, a: __m512i, b: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_sub_epi16(a, b)
    }

    #[inline(always)]
    fn upper_products(self, a: __m512i, b: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_mulhi_epi16(a, b)
    }

    #[inline(always)]
    fn halves(self, words: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_srai_epi16::<1>(words)
    }

    #[inline(always)]
    fn sixteenths(self, words: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_srai_epi16::<4>(words)
    }

    #[inline(always)]
    fn interleave_words(self, one: __m512i, two: __m512i, upper: bool) -> __m512i {
        match upper {
            false => self.v4.avx512bw._mm512_unpacklo_epi16(one, two),
            true => self.v4.avx512bw._mm512_unpackhi_epi16(one, two),
        }
    }

    #[inline(always)]
    fn upper_words(self, one: __m512i, two: __m512i) -> __m512i {
        let (one, two) =
            (self.v4.avx512f._mm512_srai_epi32::<16>(one), self.v4.avx512f._mm512_srai_epi32::<16>(two));
        self.v4.avx512bw._mm512_packs_epi32(one, two)
    }

    #[inline(always)]
    fn pack_words(self, one: __m512i, two: __m512i) -> __m512i {
        self.v4.avx512bw._mm512_packus_epi16(one, two)
    }

    #[inline(always)]
    fn channel(self, pixels: __m512i, channel: usize, mirrored: bool) -> __m512 {
        let mask = cast([CHANNELS[usize::from(mirrored)][channel]; 4]);
        self.v4.avx512f._mm512_cvtepi32_ps(self.v4.avx512bw._mm512_shuffle_epi8(pixels, mask))
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> __m512 {
        self.v4.avx512f._mm512_set1_ps(value)
    }

    #[inline(always)]
    fn times(self, a: __m512, b: __m512) -> __m512 {
        self.v4.avx512f._mm512_mul_ps(a, b)
    }

    #[inline(always)]
    fn minus(self, a: __m512, b: __m512) -> __m512 {
        self.v4.avx512f._mm512_sub_ps(a, b)
    }

    #[inline(always)]
    fn times_plus(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.v4.avx512f._mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    fn values(self, floats: __m512) -> impl AsRef<[f32]> {
        cast::<__m512, [f32; 16]>(floats)
    }

    #[inline(always)]
    fn columns(columns: &mut Columns) -> &mut Vec<Column<Self>> {
        &mut columns.avx512
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output {
        match self.vnni {
            Some(vnni) => vnni.vectorize(work),
            None => self.v4.vectorize(work),
        }
    }
}
