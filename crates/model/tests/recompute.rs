//! Gradient checkpointing changes memory and time, and no number.

mod common;

use collectives::SoloGroup;
use common::{WORDS, tiny_stage1};
use model::{Negatives, Stage1, Stage1Inputs, TextInput};
use tch::{Device, Kind, Tensor, nn};

fn inputs() -> Stage1Inputs {
    tch::manual_seed(2);
    let ids = Tensor::randint_low(1, WORDS, [6, 7], (Kind::Int64, Device::Cpu));
    let lengths = Tensor::from_slice(&[7i64, 3, 5, 2, 7, 4]).unsqueeze(1);
    let mask =
        Tensor::arange(7, (Kind::Int64, Device::Cpu)).unsqueeze(0).lt_tensor(&lengths).to_kind(Kind::Int64);
    Stage1Inputs {
        image: Tensor::randn([6, 9, 16], (Kind::Float, Device::Cpu)),
        text: TextInput { ids: ids * &mask, mask },
        concepts: None,
        negatives: Negatives::Drawn { uniforms: Tensor::rand([2, 6], (Kind::Double, Device::Cpu)) },
    }
}

/// Total loss and every gradient, by name.
fn step(gradient_checkpointing: bool, dtype: Option<Kind>) -> Vec<(String, Tensor)> {
    tch::manual_seed(1);
    let store = nn::VarStore::new(Device::Cpu);
    let mut config = tiny_stage1();
    config.qformer.dropout = 0.2;
    config.qformer.gradient_checkpointing = gradient_checkpointing;
    let stage1 = Stage1::new(&store.root(), &config);
    let inputs = inputs();
    tch::manual_seed(3);
    let losses = torch_bridge::autocast(Device::Cpu, dtype, || {
        stage1.losses(&inputs, &SoloGroup::new(Device::Cpu), true).expect("alone")
    });
    losses.total.backward();
    let mut found = vec![("loss".to_owned(), losses.total.detach())];
    let mut named: Vec<_> = store.variables().into_iter().collect();
    named.sort_by(|one, two| one.0.cmp(&two.0));
    found.extend(named.into_iter().map(|(name, variable)| (name, variable.grad())));
    found
}

#[test]
fn recomputed_layers_give_the_same_loss_and_gradients() {
    for dtype in [None, Some(Kind::BFloat16)] {
        let (kept, again) = (step(false, dtype), step(true, dtype));
        for ((name, one), (_, two)) in kept.iter().zip(&again) {
            let apart = (one - two).abs().max().double_value(&[]);
            // Gradients of passes that share weights are summed in another order.
            let limit = 1e-6 + if dtype.is_some() { 1e-2 } else { 1e-5 } * one.abs().max().double_value(&[]);
            assert!(apart <= limit, "{name} in {dtype:?}: {apart:e} apart, limit {limit:e}");
        }
        assert!(kept[0].1.double_value(&[]) > 1.0);
    }
}
