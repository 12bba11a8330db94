//! What this processor is fast at.

/// True where the CPU multiplies bf16 matrices in hardware, which is worth 3 to 4 times fp32.
///
/// Asks for AVX512-BF16 only: every processor with AMX-BF16 has it too, and oneDNN picks the better of the two. Without
/// either, bf16 is emulated and slower than fp32.
#[must_use]
pub fn cpu_has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
