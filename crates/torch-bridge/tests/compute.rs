//! The fused update against its formula, and autocast's scope.

use tch::{Device, Kind, Tensor};
use torch_bridge::{AdamWStep, autocast, cpu_has_fast_bf16, fused_adamw};

/// PyTorch's defaults, without decay.
const FIRST_STEP: AdamWStep =
    AdamWStep { step: 1, lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, grad_divisor: 1.0 };

/// `torch.optim.AdamW`, single tensor, written out.
fn reference(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, h: &AdamWStep) -> (Tensor, Tensor, Tensor) {
    let decayed = p * (1.0 - h.lr * h.weight_decay);
    let m = m * h.beta1 + g * (1.0 - h.beta1);
    let v = v * h.beta2 + g * g * (1.0 - h.beta2);
    let corrected_m = &m / (1.0 - h.beta1.powi(h.step as i32));
    let corrected_v = &v / (1.0 - h.beta2.powi(h.step as i32));
    (decayed - corrected_m * h.lr / (corrected_v.sqrt() + h.eps), m, v)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn fused_adamw_follows_the_formula() {
    tch::manual_seed(1);
    let shapes: [&[i64]; 3] = [&[33, 17], &[129], &[]];
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let params: Vec<Tensor> = shapes.iter().map(|s| normal(s).set_requires_grad(true)).collect();
    let zeros = || shapes.map(|s| Tensor::zeros(s, (Kind::Float, Device::Cpu)));
    let (first, second) = (zeros(), zeros());
    let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
    let mut expected: Vec<_> =
        (0..3).map(|i| (double(&params[i]), double(&first[i]), double(&second[i]))).collect();
    for step in 1..=5 {
        let hyper = AdamWStep {
            step,
            lr: 1e-2 / step as f64,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.05,
            grad_divisor: 1.0,
        };
        let grads = shapes.map(normal);
        fused_adamw(&params, &grads, &first, &second, &hyper);
        for (i, (p, m, v)) in expected.iter_mut().enumerate() {
            (*p, *m, *v) = reference(p, &double(&grads[i]), m, v, &hyper);
            assert!(largest_difference(&params[i], p) < 1e-6, "parameter {i} at step {step}");
            assert!(largest_difference(&first[i], m) < 1e-6, "first moment {i} at step {step}");
            assert!(largest_difference(&second[i], v) < 1e-6, "second moment {i} at step {step}");
        }
    }
    assert!(params.iter().all(Tensor::requires_grad), "still leaves that autograd knows");
}

#[test]
fn a_gradient_in_another_memory_layout_is_the_same_gradient() {
    let zeros = || [Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))];
    let gradient = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([3, 2]).transpose(0, 1);
    let (strided, packed) = (zeros(), zeros());
    let (m, v) = (zeros(), zeros());
    fused_adamw(&strided, &[gradient.shallow_clone()], &m, &v, &FIRST_STEP);
    let expected_m = gradient.contiguous() * 0.1;
    assert!(largest_difference(&m[0], &expected_m) < 1e-7);
    fused_adamw(&packed, &[gradient.contiguous()], &zeros(), &zeros(), &FIRST_STEP);
    assert_eq!(strided[0], packed[0]);
}

#[test]
#[should_panic(expected = "gradient 0 of shape")]
fn a_gradient_of_another_shape_is_refused() {
    let zeros = |n: i64| [Tensor::zeros([n], (Kind::Float, Device::Cpu))];
    fused_adamw(&zeros(3), &zeros(2), &zeros(3), &zeros(3), &FIRST_STEP);
}

/// Dtype of a matrix product of fp32 operands here and now.
fn product_kind() -> Kind {
    let x = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
    x.matmul(&x).kind()
}

#[test]
fn autocast_lasts_as_long_as_its_region() {
    let inside = autocast(Device::Cpu, Some(Kind::BFloat16), || {
        let outer = product_kind();
        let off = autocast(Device::Cpu, None, product_kind);
        (outer, off, product_kind())
    });
    assert_eq!(inside, (Kind::BFloat16, Kind::Float, Kind::BFloat16));
    assert_eq!(autocast(Device::Cpu, Some(Kind::Half), product_kind), Kind::Half);
    assert_eq!(product_kind(), Kind::Float);
}

#[test]
fn autocast_ends_with_a_panic() {
    let panicked = std::panic::catch_unwind(|| {
        autocast(Device::Cpu, Some(Kind::BFloat16), || assert_eq!(product_kind(), Kind::Float));
    });
    assert!(panicked.is_err());
    assert_eq!(product_kind(), Kind::Float);
}

#[test]
fn autocast_sees_weights_that_changed_between_regions() {
    let weight = Tensor::ones([4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let x = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
    let product = || autocast(Device::Cpu, Some(Kind::BFloat16), || x.matmul(&weight).double_value(&[0, 0]));
    assert_eq!(product(), 4.0);
    let _ = tch::no_grad(|| weight.detach().fill_(2.0));
    assert_eq!(product(), 8.0);
}

#[test]
fn fast_bf16_is_what_the_kernel_reports() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("Linux");
    assert_eq!(cpu_has_fast_bf16(), cpuinfo.contains("avx512_bf16"));
}

#[test]
fn a_divisor_divides_the_gradients() {
    let hyper = |grad_divisor| AdamWStep {
        step: 1,
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-2,
        weight_decay: 0.1,
        grad_divisor,
    };
    let updated = |gradient: f64, divisor: f64| {
        let parameter = Tensor::from_slice(&[1.0f32, -2.0]);
        let (first, second) = (parameter.zeros_like(), parameter.zeros_like());
        let gradient = Tensor::from_slice(&[gradient as f32, -3.0 * gradient as f32]);
        fused_adamw(
            &[parameter.shallow_clone()],
            &[gradient],
            &[first.shallow_clone()],
            &[second.shallow_clone()],
            &hyper(divisor),
        );
        Tensor::cat(&[parameter, first, second], 0)
    };
    assert_eq!(updated(0.5, 4.0), updated(0.125, 1.0));
    assert_ne!(updated(0.5, 1.0), updated(0.125, 1.0));
}

#[test]
fn a_dropped_gradient_is_gone_and_the_next_one_is_its_own() {
    let parameter = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
    (&parameter * 3.0).sum(Kind::Float).backward();
    assert_eq!(parameter.grad().double_value(&[0]), 3.0);
    torch_bridge::drop_gradients(&[parameter.shallow_clone()]);
    assert!(!parameter.grad().defined());
    (&parameter * 5.0).sum(Kind::Float).backward();
    assert_eq!(parameter.grad().double_value(&[0]), 5.0);
}
