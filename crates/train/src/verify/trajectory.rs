//! `trajectory_*`: some epochs of training as LAVIS runs them: model, AdamW and schedule together.

use std::collections::{BTreeMap, BTreeSet};

use model::{LmText, Negatives, Stage1Inputs, Stage2Inputs, TextInput};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Tensor, nn};

use super::case::{Case, INPUTS, Tensors, Tolerance};
use super::schedules::{Decay, LavisSchedule};
use super::sheet::{Row, Sheet};
use super::{stage1, stage2};
use crate::config::OptimConfig;
use crate::error::TrainError;
use crate::names::{LavisEntry, from_lavis};
use crate::optim::AdamW;

/// Steps whose losses have a tighter limit of their own.
const FIRST: usize = 5;

#[derive(Deserialize)]
struct Train {
    iters_per_epoch: usize,
    lr_sched: Decay,
    weight_decay: f64,
    beta2: f64,
    accum_grad_iters: usize,
}

/// Named losses of a step; the first is differentiated.
type Losses = Vec<(&'static str, Tensor)>;

/// `trajectory_stage1`: negatives are given for each step.
pub(super) fn compare_stage1(case: &Case) -> Result<Vec<Row>, TrainError> {
    let model = stage1::Model::load(case)?;
    let inputs = case.tensors(INPUTS)?;
    let group = collectives::SoloGroup::new(Device::Cpu);
    replay(case, &model.store, &|step, batch| {
        let image = model.vision.forward(&inputs.with_dims("image", 5)?.get(batch));
        let (ids, mask) = texts(&inputs, batch)?;
        let negatives = Negatives::Given {
            images: inputs.with_dims("neg_image_idx", 2)?.get(step),
            texts: inputs.with_dims("neg_text_idx", 2)?.get(step),
        };
        let inputs = Stage1Inputs { image, text: TextInput { ids, mask }, concepts: None, negatives };
        let losses = model.stage1.losses(&inputs, &group, true)?;
        Ok(vec![
            ("loss", losses.total),
            ("loss_itc", losses.itc),
            ("loss_itm", losses.itm),
            ("loss_lm", losses.itg),
        ])
    })
}

/// `trajectory_stage2_opt`.
pub(super) fn compare_stage2(case: &Case) -> Result<Vec<Row>, TrainError> {
    let model = stage2::Model::load(case)?;
    let inputs = case.tensors(INPUTS)?;
    let prompt_length = stage2::prompt_length(case)?;
    replay(case, &model.store, &|_, batch| {
        let image = model.vision.forward(&inputs.with_dims("image", 5)?.get(batch));
        let (ids, mask) = texts(&inputs, batch)?;
        let inputs = Stage2Inputs { image, text: LmText::new(ids, mask, prompt_length) };
        Ok(vec![("loss", model.stage2.loss(&inputs, true).0)])
    })
}

fn texts(inputs: &Tensors, batch: i64) -> Result<(Tensor, Tensor), TrainError> {
    let get = |name: &str| inputs.with_dims(&format!("batch{batch}.{name}"), 2);
    Ok((get("input_ids")?, get("attention_mask")?))
}

/// Trains `store` on `losses` of (step, batch) and compares losses and learning rates of each step, and what comes out.
fn replay(
    case: &Case,
    store: &nn::VarStore,
    losses: &dyn Fn(i64, i64) -> Result<Losses, TrainError>,
) -> Result<Vec<Row>, TrainError> {
    let train: Train = case.section("train")?;
    let schedule: LavisSchedule = case.section("train")?;
    let n_batches: usize = case.value("data", "n_batches")?;
    let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
    let mut optimizer = AdamW::new(&variables, &BTreeSet::new(), &optim(&train, &schedule));
    let mut curves: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for step in 0..train.iters_per_epoch * schedule.max_epoch as usize {
        let (epoch, in_epoch) = (step / train.iters_per_epoch, step % train.iters_per_epoch);
        let lr = schedule.lr(train.lr_sched, epoch as u32, in_epoch as u32);
        curves.entry("lr").or_default().push(lr);
        let named = losses(step as i64, (step % n_batches) as i64)?;
        // LAVIS 1.0.2 sums the gradients of accumulated steps and does not divide.
        named[0].1.backward();
        for (name, loss) in &named {
            curves.entry(name).or_default().push(loss.double_value(&[]));
        }
        if (in_epoch + 1) % train.accum_grad_iters == 0 {
            optimizer.step(&optimizer.gradients(), lr, 1.0);
            optimizer.drop_gradients();
        }
    }
    let mut sheet = Sheet::open(case)?;
    compare_curves(case, &mut sheet, &curves)?;
    compare_parameters(case, &mut sheet, &variables)?;
    Ok(sheet.finish())
}

fn optim(train: &Train, schedule: &LavisSchedule) -> OptimConfig {
    OptimConfig {
        peak_lr: schedule.init_lr,
        min_lr: schedule.min_lr,
        warmup_steps: schedule.warmup_steps.into(),
        weight_decay: train.weight_decay,
        betas: (0.9, train.beta2),
        max_grad_norm: None,
        pretrained_lr_ratio: 1.0,
        word_embedding_lr_ratio: 1.0,
        ema_decay: None,
    }
}

fn compare_curves(
    case: &Case,
    sheet: &mut Sheet,
    curves: &BTreeMap<&str, Vec<f64>>,
) -> Result<(), TrainError> {
    const FILE: &str = "expected.json";
    let expected: Value = case.json(FILE)?;
    let steps: Vec<BTreeMap<String, f64>> = case.part(FILE, &expected, &["steps"])?;
    let (all, first) = (case.tolerance("loss")?, case.tolerance("first5_loss")?);
    let lr_limit = Tolerance { abs: 0.0, rel: case.value("tolerance", "lr_rel")? };
    let names: BTreeSet<&String> = steps.iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let theirs: Vec<f64> = steps.iter().filter_map(|step| step.get(name).copied()).collect();
        let ours = curves.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        if name == "lr" {
            sheet.push(Row::list(name, ours, &theirs, lr_limit));
            continue;
        }
        let few = |values: &[f64]| values.iter().take(FIRST).copied().collect::<Vec<f64>>();
        sheet.push(Row::list(&format!("{name}, first {FIRST} steps"), &few(ours), &few(&theirs), first));
        sheet.push(Row::list(&format!("{name}, all steps"), ours, &theirs, all));
    }
    Ok(())
}

/// The trained parameters. The bias of a key moves no probability, so that its gradient is rounding noise, which Adam
/// blows up to steps of the learning rate.
fn compare_parameters(
    case: &Case,
    sheet: &mut Sheet,
    variables: &BTreeMap<String, Tensor>,
) -> Result<(), TrainError> {
    let limit = case.tolerance("param")?;
    for name in sheet.named("param.") {
        let key = format!("param.{name}");
        if name.ends_with(".key.bias") {
            sheet.leave_out(&key, "its gradient is rounding noise");
            continue;
        }
        if let Some(LavisEntry::Parameter(ours)) = from_lavis(&name)
            && let Some(variable) = variables.get(&ours)
        {
            sheet.close(&key, variable, limit);
        }
    }
    Ok(())
}
