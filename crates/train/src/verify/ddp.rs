//! `stage1_ddp`: stage 1 on real ranks, started by our own launcher, over Gloo.
//!
//! Each rank compares what is its own and the averaged gradients, and leaves its lines in a file. The gradients *before*
//! averaging are not compared: LAVIS routes those of exchanged images back to their rank, we keep them where they were
//! drawn, and only the averages agree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use collectives::{GradientDtype, ReduceOptions};
use launch::World;
use tch::Device;

use super::case::{Case, EXPECTED, INPUTS, broken};
use super::gradients;
use super::sheet::{Row, Sheet};
use super::stage1::{Limits, Model, Pass, compare_pass};
use crate::error::TrainError;
use crate::ranks;
use crate::reduction;

/// Hidden subcommand of `blip2-worker` that [`verify_rank`] is behind.
const SUBCOMMAND: &str = "verify-rank";
/// Small, so that the gradients of a small case travel in several messages.
const REDUCE: ReduceOptions = ReduceOptions { bucket_bytes: 1 << 16, dtype: GradientDtype::Fp32 };

/// Starts the ranks of the case and collects what they found.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    let nproc: usize = case.value("data", "world_size")?;
    let folder = ranks::folder()?;
    let args = [SUBCOMMAND.into(), case.folder().into(), folder.path().into()].to_vec();
    ranks::run(args, nproc, folder.path()).map_err(|error| case.broken(&error.to_string()))?;
    let mut rows = BTreeMap::new();
    for rank in 0..nproc {
        let path = rows_file(folder.path(), rank);
        let bytes = std::fs::read(&path).map_err(|error| broken(&path, &error.to_string()))?;
        let found: Vec<Row> =
            serde_json::from_slice(&bytes).map_err(|error| broken(&path, &error.to_string()))?;
        for row in found {
            keep_worse(&mut rows, row);
        }
    }
    for name in case.tensors(EXPECTED)?.map.into_keys() {
        rows.entry(name.clone())
            .or_insert_with(|| Row::short(&name, "it belongs to no rank of [data] world_size"));
    }
    Ok(rows.into_values().collect())
}

/// One rank of a case: writes its lines into `out`. Started by [`super::verify`] through the launcher.
///
/// # Errors
/// [`TrainError::Verify`] for a case that cannot be read, [`TrainError::Peer`] when another rank is gone.
pub fn verify_rank(folder: &Path, out: &Path) -> Result<(), TrainError> {
    let world = World::from_env()?;
    launch::die_with_parent(&world)?;
    // As in `verify`, and ranks share this machine's cores.
    tch::set_num_threads(1);
    let case = Case::open(folder)?;
    let limits = Limits::of(&case)?;
    let prefix = format!("rank{}.", world.rank);
    let mut sheet = Sheet::open(&case)?;
    sheet.retain(|name| name.starts_with(&prefix) || name.starts_with("grad."));
    let model = Model::load(&case)?;
    let inputs = model.inputs(&case.tensors(INPUTS)?, &prefix)?;
    let group = collectives::connect(&world, Device::Cpu)?;
    let (losses, trace) = model.stage1.forward(&inputs, group.as_ref(), true)?;
    let parameters = reduction::in_order_of_gradients(model.store.variables());
    group.reducer(&parameters, REDUCE)?.reduce(&losses.total, &|| ())?;
    let gradients = gradients::of(&model.store);
    let pass = Pass { inputs: &inputs, losses: &losses, trace: &trace, group: group.as_ref() };
    compare_pass(&mut sheet, &prefix, &pass, limits);
    gradients::compare(&mut sheet, &gradients, limits.gradient);
    let text = serde_json::to_vec(&sheet.finish()).map_err(|error| TrainError::Verify(error.to_string()))?;
    let path = rows_file(out, world.rank);
    std::fs::write(&path, text).map_err(|source| TrainError::Write { path, source })
}

fn rows_file(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rows-{rank}.json"))
}

/// The averaged gradients are compared on every rank; the table shows the rank that is furthest off.
fn keep_worse(rows: &mut BTreeMap<String, Row>, row: Row) {
    let badness = |row: &Row| (row.is_short(), row.max_abs.unwrap_or(f64::INFINITY));
    let is_worse = rows.get(&row.tensor).is_none_or(|kept| badness(&row) > badness(kept));
    if is_worse {
        rows.insert(row.tensor.clone(), row);
    }
}
