//! Dropout (Srivastava et al. 2014) with few random numbers.

use tch::{Kind, Tensor};

/// Values of a 16-bit draw.
const DRAWS: f64 = 65536.0;

/// Drops each element of `x` with probability `p` and scales the others by `1 / (1 - p)`; outside training, `x` itself.
///
/// A 64-bit random number serves four elements, so `p` is met to 1 / 65536. libtorch's own draws one such number for
/// each element, serially, which on a CPU was 7 % of a training step.
pub(crate) fn dropout(x: &Tensor, p: f64, train: bool) -> Tensor {
    if !train || p == 0.0 {
        return x.shallow_clone();
    }
    let elements = x.numel() as i64;
    let words =
        Tensor::empty([(elements + 3) / 4], (Kind::Int64, x.device())).random_from_(i64::MIN, None::<i64>);
    let draws = words.view_dtype(Kind::Int16).narrow(0, 0, elements).view(x.size().as_slice());
    let first_kept = (p * DRAWS).round() as i64 - i64::from(i16::MAX) - 1;
    x * (draws.ge(first_kept).to_kind(x.kind()) / (1.0 - p))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn drops_the_share_and_keeps_the_mean_and_the_gradient_follows() {
        tch::manual_seed(1);
        let x = Tensor::ones([1001, 97], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let y = dropout(&x, 0.1, true);
        let dropped = y.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // 97 097 draws: the standard error is 0.00096.
        assert!((dropped - 0.1).abs() < 0.004, "{dropped}");
        assert!((y.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.005);
        y.sum(Kind::Float).backward();
        assert_eq!(x.grad(), y.detach(), "what was kept is scaled alike both ways");
    }

    #[test]
    fn the_same_seed_drops_the_same_and_neighbours_are_independent() {
        let x = Tensor::ones([40_000], (Kind::Float, Device::Cpu));
        let draw = |seed| {
            tch::manual_seed(seed);
            dropout(&x, 0.5, true)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The four draws out of one word must not move together.
        let kept = draw(9).gt(0.0).to_kind(Kind::Double) - 0.5;
        for lag in 1..5 {
            let ahead = kept.narrow(0, lag, 40_000 - lag);
            let correlation =
                (kept.narrow(0, 0, 40_000 - lag) * ahead).mean(Kind::Double).double_value(&[]) / 0.25;
            assert!(correlation.abs() < 0.02, "lag {lag}: {correlation}");
        }
    }

    #[test]
    fn outside_training_nothing_happens() {
        let x = Tensor::ones([3], (Kind::Float, Device::Cpu));
        assert_eq!(dropout(&x, 0.9, false), x);
    }
}
