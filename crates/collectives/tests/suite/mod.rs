//! What every process group must do. A new fabric is one more test, not a new suite.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use collectives::{CommError, GradientDtype, ProcessGroup, ReduceOptions, Reduction};
use tch::{Device, Kind, Tensor};

pub fn conforms(group: &dyn ProcessGroup, folder: &Path) {
    gathers_in_rank_order(group);
    gathers_while_others_sum(group);
    sums(group);
    exchanges_rows(group);
    broadcasts(group);
    barrier_waits_for_all(group, folder);
    reduces(group, GradientDtype::Fp32);
    reduces(group, GradientDtype::Bf16);
    accumulates_before_it_reduces(group);
    leaves_out_what_no_loss_reaches(group);
    reduces_to_the_same_bits_again(group);
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_device(Device::Cpu).reshape([-1])).unwrap()
}

fn ints(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_device(Device::Cpu).reshape([-1])).unwrap()
}

fn numbers(group: &dyn ProcessGroup, values: &[f32]) -> Tensor {
    Tensor::from_slice(values).to_device(group.device())
}

fn gathers_in_rank_order(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as i64, group.world_size() as i64);
    let own = numbers(group, &[rank as f32, rank as f32 + 0.5]).view([2, 1]).set_requires_grad(true);
    let gathered = group.all_gather(&own).unwrap();
    assert_eq!(gathered.size(), [2 * n, 1]);
    let expected: Vec<f32> = (0..n).flat_map(|r| [r as f32, r as f32 + 0.5]).collect();
    assert_eq!(floats(&gathered), expected);
    assert!(!gathered.requires_grad(), "gathered is detached");
    let _ = gathered.shallow_clone().fill_(-1.0);
    assert_eq!(own.double_value(&[0, 0]), rank as f64, "gathered is a copy");

    let scalar = group.all_gather(&Tensor::from(rank).to_device(group.device())).unwrap();
    assert_eq!(ints(&scalar), (0..n).collect::<Vec<_>>());

    let strided = Tensor::from_slice(&[rank, 10, 20, 30]).to_device(group.device()).view([2, 2]);
    let gathered = group.all_gather(&strided.transpose(0, 1)).unwrap();
    let expected: Vec<i64> = (0..n).flat_map(|r| [r, 20, 10, 30]).collect();
    assert_eq!(ints(&gathered), expected);
}

/// Two gathers are under way, and another group of the same ranks is used meanwhile.
fn gathers_while_others_sum(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as i64, group.world_size() as i64);
    let beside = group.beside("suite").unwrap();
    assert_eq!(
        (beside.rank() as i64, beside.world_size() as i64, beside.device()),
        (rank, n, group.device())
    );
    let of = |factor: i64| Tensor::from_slice(&[factor * rank]).to_device(group.device());
    let room = || Tensor::zeros([n], (Kind::Int64, group.device()));
    let [one, two] = [1, 10].map(|factor| beside.start_all_gather(&of(factor), &room()).unwrap());
    let mut sum = numbers(group, &[1.0]);
    group.all_reduce_sum(&mut sum).unwrap();
    assert_eq!(floats(&sum), [n as f32]);
    for (gathering, factor) in [(two, 10), (one, 1)] {
        let expected: Vec<i64> = (0..n).map(|r| factor * r).collect();
        assert_eq!(ints(&gathering.finish().unwrap()), expected);
    }
}

fn sums(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as f64, group.world_size() as f64);
    let expected = n * (n + 1.0) / 2.0;
    for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16] {
        let mut tensor = Tensor::from(rank + 1.0).to_kind(kind).to_device(group.device());
        group.all_reduce_sum(&mut tensor).unwrap();
        assert_eq!((tensor.kind(), tensor.double_value(&[])), (kind, expected));
    }
    let whole = Tensor::zeros([3, 2], (Kind::Float, group.device()));
    let mut column = whole.select(1, 1);
    let _ = column.fill_(rank + 1.0);
    group.all_reduce_sum(&mut column).unwrap();
    let e = expected as f32;
    assert_eq!(floats(&whole), [0.0, e, 0.0, e, 0.0, e], "only the view is summed");
    let mut leaf = numbers(group, &[rank as f32 + 1.0]).set_requires_grad(true);
    group.all_reduce_sum(&mut leaf).unwrap();
    assert!(leaf.requires_grad() && leaf.is_leaf() && leaf.double_value(&[0]) == expected);
}

/// Rank r sends q rows to rank q, none to rank 0: each holds r and its number.
fn exchanges_rows(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as i64, group.world_size() as i64);
    let to: Vec<i64> = (0..n).collect();
    let rows: Vec<i64> = (0..to.iter().sum()).flat_map(|row| [rank, row]).collect();
    let own = Tensor::from_slice(&rows).to_device(group.device()).view([-1, 2]);
    let from = vec![rank; n as usize];
    let came = group.all_to_all(&own, &to, &from).unwrap();
    let before = rank * (rank - 1) / 2;
    let expected: Vec<i64> =
        (0..n).flat_map(|r| (before..before + rank).flat_map(move |row| [r, row])).collect();
    assert_eq!((came.size(), ints(&came)), (vec![n * rank, 2], expected));
    let refused = group.all_to_all(&own, &[1; 9], &[1; 9]).unwrap_err();
    assert!(matches!(refused, CommError::Backend { .. }), "{refused}");
}

fn broadcasts(group: &dyn ProcessGroup) {
    for root in 0..group.world_size() {
        let mut tensor = Tensor::from_slice(&[group.rank() as i64, 7]).to_device(group.device());
        group.broadcast(&mut tensor, root).unwrap();
        assert_eq!(ints(&tensor), [root as i64, 7]);
    }
}

fn barrier_waits_for_all(group: &dyn ProcessGroup, folder: &Path) {
    let here = |rank: usize| folder.join(format!("before_barrier_{rank}"));
    // The last rank comes late, so that a barrier that waits for nobody is found out.
    std::thread::sleep(Duration::from_millis(100 * group.rank() as u64));
    fs::write(here(group.rank()), "").unwrap();
    group.barrier().unwrap();
    assert!((0..group.world_size()).all(|rank| here(rank).exists()));
}

/// Three leaves, of which each message holds one: 40, 24 and 4 bytes of gradient.
fn leaves(group: &dyn ProcessGroup) -> Vec<Tensor> {
    let shapes: [&[i64]; 3] = [&[5, 2], &[2, 3], &[]];
    shapes
        .iter()
        .map(|shape| Tensor::ones(*shape, (Kind::Float, group.device())).set_requires_grad(true))
        .collect()
}

fn one_each(dtype: GradientDtype) -> ReduceOptions {
    ReduceOptions { bucket_bytes: 8, dtype }
}

/// The loss whose gradient of leaf i is `scale * (i + 1)` everywhere.
fn loss(leaves: &[Tensor], scale: f64) -> Tensor {
    let terms = leaves.iter().enumerate().map(|(i, leaf)| leaf.sum(Kind::Float) * (scale * (i + 1) as f64));
    terms.reduce(|one, other| one + other).unwrap()
}

fn assert_gradients(leaves: &[Tensor], scale: f64) {
    for (i, leaf) in leaves.iter().enumerate() {
        let (gradient, wanted) = (leaf.grad(), (scale * (i + 1) as f64) as f32);
        assert_eq!(gradient.size(), leaf.size());
        assert!(
            floats(&gradient).iter().all(|&value| (value - wanted).abs() < 1e-6),
            "leaf {i}: {gradient:?}"
        );
    }
}

/// The mean over ranks of what is 1, 2, 3, ... on them.
fn mean(group: &dyn ProcessGroup) -> f64 {
    (group.world_size() as f64 + 1.0) / 2.0
}

fn reduces(group: &dyn ProcessGroup, dtype: GradientDtype) {
    let leaves = leaves(group);
    let mut reducer = group.reducer(&leaves, one_each(dtype)).unwrap();
    let scale = group.rank() as f64 + 1.0;
    let waits = AtomicUsize::new(0);
    let count = || {
        waits.fetch_add(1, Ordering::SeqCst);
    };
    for _ in 0..3 {
        torch_bridge::drop_gradients(&leaves);
        let reduction = reducer.reduce(&loss(&leaves, scale), &count).unwrap();
        assert_gradients(&leaves, mean(group));
        assert_eq!(reduction.bytes, dtype.bytes(17));
        let Reduction { busy_seconds, exposed_seconds, .. } = reduction;
        assert!((0.0..=busy_seconds).contains(&exposed_seconds) && busy_seconds < 10.0, "{reduction:?}");
        assert!(busy_seconds > 0.0 || group.world_size() == 1, "{reduction:?}");
    }
    assert_eq!(waits.into_inner(), 3, "once a step");
}

/// Two micro-batches without, one with a reduction. Ranks are in different micro-steps meanwhile: nothing may travel.
fn accumulates_before_it_reduces(group: &dyn ProcessGroup) {
    let leaves = leaves(group);
    let mut reducer = group.reducer(&leaves, one_each(GradientDtype::Fp32)).unwrap();
    let scale = group.rank() as f64 + 1.0;
    for _ in 0..2 {
        torch_bridge::drop_gradients(&leaves);
        let late = Duration::from_millis(20 * group.rank() as u64);
        std::thread::sleep(late);
        reducer.accumulate(&loss(&leaves, scale)).unwrap();
        reducer.accumulate(&loss(&leaves[..2], scale)).unwrap();
        let own = leaves[0].grad().double_value(&[0, 0]) * group.world_size() as f64;
        assert!((own - 2.0 * scale).abs() < 1e-5, "nothing has travelled yet: {own}");
        reducer.reduce(&loss(&leaves, scale), &|| ()).unwrap();
        assert_gradients(&leaves[..2], 3.0 * mean(group));
        assert!(
            (leaves[2].grad().double_value(&[]) - 6.0 * mean(group)).abs() < 1e-6,
            "of two micro-batches"
        );
    }
}

/// A leaf that one rank's loss reaches has its share; one that no loss reaches has no gradient.
fn leaves_out_what_no_loss_reaches(group: &dyn ProcessGroup) {
    let leaves = leaves(group);
    let mut reducer = group.reducer(&leaves, one_each(GradientDtype::Fp32)).unwrap();
    let n = group.world_size() as f64;
    for _ in 0..2 {
        torch_bridge::drop_gradients(&leaves);
        let reached = if group.rank() == 0 { 2 } else { 1 };
        reducer.reduce(&loss(&leaves[..reached], 1.0), &|| ()).unwrap();
        assert_eq!(leaves[0].grad().double_value(&[0, 0]), 1.0);
        assert!((leaves[1].grad().double_value(&[0, 0]) - 2.0 / n).abs() < 1e-6, "rank 0's alone");
        assert!(!leaves[2].grad().defined());
    }
}

/// Whatever came before: a new reducer, as after a restart, sums in the same order.
fn reduces_to_the_same_bits_again(group: &dyn ProcessGroup) {
    let values: Vec<f32> =
        (0..4099).map(|i| ((i * 7919 + 104_729 * group.rank() as i64) as f32 * 0.37).sin() * 1e3).collect();
    let weights = numbers(group, &values);
    let leaf = Tensor::ones([4099], (Kind::Float, group.device())).set_requires_grad(true);
    let head = Tensor::ones([33], (Kind::Float, group.device())).set_requires_grad(true);
    let both = [head.shallow_clone(), leaf.shallow_clone()];
    let steps = Cell::new(0);
    let step = |reducer: &mut dyn collectives::GradientReducer| {
        torch_bridge::drop_gradients(&both);
        steps.set(steps.get() + 1);
        let loss = (&leaf * &weights).sum(Kind::Float) + head.sum(Kind::Float);
        reducer.reduce(&loss, &|| ()).unwrap();
        floats(&leaf.grad()).iter().map(|value| value.to_bits()).collect::<Vec<u32>>()
    };
    let options = ReduceOptions { bucket_bytes: 1 << 20, dtype: GradientDtype::Fp32 };
    let mut reducer = group.reducer(&both, options).unwrap();
    let (first, second) = (step(reducer.as_mut()), step(reducer.as_mut()));
    drop(reducer);
    let again = step(group.reducer(&both, options).unwrap().as_mut());
    assert!(first == second && first == again, "the first step, the next and one after a restart");
}
