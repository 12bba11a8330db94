//! Which code does the arithmetic on pixels: scalar, or one of the vector codes, found out when the program runs.

use pulp::NullaryFnOnce;

#[cfg(target_arch = "x86_64")]
use crate::wide::{Avx2, Avx512, Wide};

/// Which code does it. All give the same bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kernel {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Kernel {
    /// The widest that the processor has; the look-up is remembered.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || Avx2::try_new().map(Self::Avx2);
            if let Some(wide) = Avx512::try_new().map(Self::Avx512).or_else(avx2) {
                return wide;
            }
        }
        Self::Scalar
    }

    /// Runs `work`, which is to be inlined, compiled for this code's registers.
    pub(crate) fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output {
        match self {
            Self::Scalar => work.call(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.vectorize(work),
        }
    }

    /// Every vector code that the processor has.
    #[cfg(test)]
    pub(crate) fn wide() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = Avx512::try_new();
            let without = avx512.map(|avx512| avx512.without_vnni());
            let avx2 = Avx2::try_new().map(Self::Avx2);
            [avx512, without].into_iter().flatten().map(Self::Avx512).chain(avx2).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        Vec::new()
    }
}
