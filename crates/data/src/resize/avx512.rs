//! Registers of 512 bits: AVX-512 with its byte and word instructions (servers since 2017, AMD's since 2022).

use std::arch::x86_64::__m512i;

use pulp::NullaryFnOnce;
use pulp::bytemuck::cast;
use pulp::x86::V4;

use super::taps::{LOW_BITS, PRECISION_BITS};
use super::wide::{LANE, Wide, bytes, pair_of_pixels};

const PAIRS: [[[u8; LANE]; 4]; 2] = [[pair_of_pixels(0); 4], [pair_of_pixels(6); 4]];

impl Wide for V4 {
    type Register = __m512i;
    const LANES: usize = 4;

    #[inline(always)]
    fn gather(self, rows: &[&[u8]], at: usize) -> __m512i {
        let lanes: [[u8; LANE]; 4] =
            [bytes(rows[0], at), bytes(rows[1], at), bytes(rows[2], at), bytes(rows[3], at)];
        cast(lanes)
    }

    #[inline(always)]
    fn load(self, row: &[u8], at: usize) -> __m512i {
        cast(bytes::<{ 4 * LANE }>(row, at))
    }

    #[inline(always)]
    fn splat(self, bits: i32) -> __m512i {
        self.avx512f._mm512_set1_epi32(bits)
    }

    #[inline(always)]
    fn channels(self, pixels: __m512i, next: bool) -> __m512i {
        self.avx512bw._mm512_shuffle_epi8(pixels, cast(PAIRS[usize::from(next)]))
    }

    #[inline(always)]
    fn interleave(self, one: __m512i, two: __m512i, upper: bool) -> __m512i {
        match upper {
            false => self.avx512bw._mm512_unpacklo_epi8(one, two),
            true => self.avx512bw._mm512_unpackhi_epi8(one, two),
        }
    }

    #[inline(always)]
    fn add_products(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_add_epi32(sum, self.avx512bw._mm512_madd_epi16(a, b))
    }

    #[inline(always)]
    fn whole(self, high: __m512i, low: __m512i) -> __m512i {
        let high = self.avx512f._mm512_slli_epi32::<{ LOW_BITS as u32 }>(high);
        self.avx512f._mm512_srai_epi32::<PRECISION_BITS>(self.avx512f._mm512_add_epi32(high, low))
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let (front, back) = (self.avx512bw._mm512_packs_epi32(a, b), self.avx512bw._mm512_packs_epi32(c, d));
        self.avx512bw._mm512_packus_epi16(front, back)
    }

    #[inline(always)]
    fn lanes(self, register: __m512i) -> impl AsRef<[[u8; LANE]]> {
        cast::<__m512i, [[u8; LANE]; 4]>(register)
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output {
        Self::vectorize(self, work)
    }
}
