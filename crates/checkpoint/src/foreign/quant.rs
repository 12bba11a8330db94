//! Blocks of quantised weights back to 32-bit floats (formulas: ggml-quants.c, `dequantize_row_*`).

use half::f16;

/// Weights of one block, for all three types.
pub(super) const BLOCK: usize = 32;

/// One 32-weight block type of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quant {
    /// w = d (q - 8), q in 0..16
    Q4_0,
    /// w = d q + m, q in 0..16
    Q4_1,
    /// w = d q, q in -128..128
    Q8_0,
}

impl Quant {
    /// Bytes of one block.
    pub(super) const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + BLOCK / 2,
            Self::Q4_1 => 4 + BLOCK / 2,
            Self::Q8_0 => 2 + BLOCK,
        }
    }

    /// Little-endian f32 of every weight; `blocks` is a whole count of blocks.
    pub(super) fn dequantise(self, blocks: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(blocks.len() / self.block_bytes() * BLOCK * 4);
        for block in blocks.chunks_exact(self.block_bytes()) {
            let scale = half_at(block, 0);
            let mut push = |weight: f32| out.extend_from_slice(&weight.to_le_bytes());
            match self {
                Self::Q4_0 => nibbles(&block[2..]).for_each(|q| push(scale * (f32::from(q) - 8.0))),
                Self::Q4_1 => {
                    let minimum = half_at(block, 2);
                    nibbles(&block[4..]).for_each(|q| push(scale * f32::from(q) + minimum));
                }
                Self::Q8_0 => block[2..].iter().for_each(|q| push(scale * f32::from(q.cast_signed()))),
            }
        }
        out
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves of all bytes, then the high halves: ggml's order.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn low_nibbles_come_first_and_each_type_has_its_zero() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let minimum = f16::from_f32(-2.0).to_le_bytes();
        let mut quants = [0_u8; 16];
        quants[0] = 0xf3; // weight 0 is 3, weight 16 is 15
        let q4_0 = floats(&Quant::Q4_0.dequantise(&[&scale[..], &quants].concat()));
        assert_eq!((q4_0[0], q4_0[16], q4_0[1]), (-2.5, 3.5, -4.0));
        let q4_1 = floats(&Quant::Q4_1.dequantise(&[&scale[..], &minimum, &quants].concat()));
        assert_eq!((q4_1[0], q4_1[16], q4_1[1]), (-0.5, 5.5, -2.0));
        let q8_0 = floats(&Quant::Q8_0.dequantise(&[&scale[..], &[0x80; 32]].concat()));
        assert_eq!(q8_0, vec![-64.0; 32]);
    }
}
