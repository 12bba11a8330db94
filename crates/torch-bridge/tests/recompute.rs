//! A recomputed piece gives the values and gradients of one that is kept.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind, Tensor};
use torch_bridge::{autocast, recomputed};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn leaf(shape: [i64; 2]) -> Tensor {
    Tensor::randn(shape, CPU).set_requires_grad(true)
}

/// Two layers with dropout between them; two outputs, one of them an intermediate.
fn piece(x: &Tensor, first: &Tensor, second: &Tensor) -> Vec<Tensor> {
    let hidden = x.matmul(first).gelu("none").dropout(0.5, true);
    let out = hidden.matmul(second) + x;
    vec![out, hidden]
}

fn run(keep: bool, x: &Tensor, weights: &[Tensor; 2], dtype: Option<Kind>) -> Vec<Tensor> {
    tch::manual_seed(5);
    let leaves = [x, &weights[0], &weights[1]];
    let [first, second] = [0, 1].map(|i| weights[i].shallow_clone());
    let loss = autocast(Device::Cpu, dtype, || {
        let out = match keep {
            true => piece(x, &first, &second),
            false => recomputed(&[x], &[&weights[0], &weights[1]], 2, move |inputs| {
                piece(&inputs[0], &first, &second)
            }),
        };
        // Numbers drawn behind the piece must not change because it is computed again.
        let noise = Tensor::rand_like(&out[0]);
        (&out[0] * noise).sum(Kind::Float) + out[1].to_kind(Kind::Float).square().mean(Kind::Float)
    });
    loss.backward();
    let mut found = vec![loss.detach()];
    for leaf in leaves {
        found.push(leaf.grad().copy());
        let _ = leaf.grad().zero_();
    }
    found.push(Tensor::rand([3], CPU));
    found
}

#[test]
fn values_gradients_and_random_numbers_are_those_of_the_kept_piece() {
    let x = leaf([6, 8]);
    let weights = [leaf([8, 8]), leaf([8, 8])];
    for dtype in [None, Some(Kind::BFloat16)] {
        let kept = run(true, &x, &weights, dtype);
        let again = run(false, &x, &weights, dtype);
        for (one, two) in kept.iter().zip(&again) {
            assert_eq!(one, two, "{dtype:?}");
        }
    }
}

#[test]
fn the_piece_runs_once_more_in_the_backward_pass_and_ends_with_the_graph() {
    let (calls, x) = (Arc::new(AtomicUsize::new(0)), leaf([2, 2]));
    let counted = Arc::clone(&calls);
    let out = recomputed(&[&x], &[], 1, move |inputs| {
        counted.fetch_add(1, Ordering::Relaxed);
        vec![inputs[0].square()]
    });
    assert_eq!((calls.load(Ordering::Relaxed), Arc::strong_count(&calls)), (1, 2));
    out[0].sum(Kind::Float).backward();
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(x.grad(), &x * 2.0);
    drop(out);
    assert_eq!(Arc::strong_count(&calls), 1);
}

#[test]
fn without_gradients_nothing_is_kept() {
    let x = Tensor::ones([2], CPU);
    let out = recomputed(&[&x], &[], 1, |inputs| vec![&inputs[0] + 1.0]);
    assert!(!out[0].requires_grad());
    assert_eq!(Vec::<f32>::try_from(&out[0]).unwrap(), [2.0, 2.0]);
}

#[test]
#[should_panic(expected = "recomputed")]
fn a_panic_in_the_piece_is_a_panic_of_the_caller() {
    let x = leaf([2, 2]);
    let _ = recomputed(&[&x], &[], 1, |_| panic!("no layer"));
}
