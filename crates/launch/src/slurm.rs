//! What `srun` tells its tasks.

use crate::error::LaunchError;
use crate::nodes::Rdzv;
use crate::world::{Source, Vars, World, refuse};

/// Ports for jobs that name none: below the range that Linux hands out by itself (32768 and up).
const FIRST_PORT: u64 = 20_000;
const NUM_PORTS: u64 = 12_000;

/// The task of an `srun` step.
pub(crate) fn world(vars: Vars<'_>) -> Result<World, LaunchError> {
    let because = "SLURM_PROCID";
    let rank = vars.need("SLURM_PROCID", because)?;
    let world_size = match vars.number("SLURM_STEP_NUM_TASKS")? {
        Some(world_size) => world_size,
        None => vars.need("SLURM_NTASKS", because)?,
    };
    let local_rank = vars.need("SLURM_LOCALID", because)?;
    let node_rank: usize = vars.need("SLURM_NODEID", because)?;
    let local_world_size = local_world_size(vars, node_rank, world_size)?;
    let one_node = local_world_size == world_size;
    let port = port(vars)?;
    let (master_addr, master_port) = match (vars.has("MASTER_ADDR"), first_host_of_step(vars)) {
        (false, Some(host)) if !one_node => (host, vars.number("MASTER_PORT")?.unwrap_or(port)),
        _ => vars.master(world_size, one_node, Some(port))?,
    };
    Ok(World {
        rank,
        local_rank,
        world_size,
        local_world_size,
        node_rank,
        master_addr,
        master_port,
        generation: vars.number("SLURM_RESTART_COUNT")?.unwrap_or(0),
        source: Source::Slurm,
    })
}

fn local_world_size(vars: Vars<'_>, node_rank: usize, world_size: usize) -> Result<usize, LaunchError> {
    let name = "SLURM_STEP_TASKS_PER_NODE";
    let Some(text) = vars.text(name) else {
        if world_size == 1 {
            return Ok(1);
        }
        return refuse(format!("SLURM_PROCID is set but {name} is not; start the tasks with srun"));
    };
    match tasks_of_node(&text, node_rank) {
        Some(tasks) => Ok(tasks),
        None => refuse(format!("{name}={text:?} names no number of tasks for SLURM_NODEID={node_rank}")),
    }
}

/// Where the launchers of a step meet; `None` where no list of hosts is set.
pub(crate) fn meeting(vars: Vars<'_>) -> Result<Option<Rdzv>, LaunchError> {
    let port = port(vars)?;
    Ok(first_host_of_step(vars).map(|host| Rdzv { host, port }))
}

/// A port that two jobs on one host rarely share.
fn port(vars: Vars<'_>) -> Result<u16, LaunchError> {
    let job: u64 = vars.number("SLURM_JOB_ID")?.unwrap_or(0);
    let step: u64 = vars.number("SLURM_STEP_ID")?.unwrap_or(0);
    let offset = job.wrapping_mul(101).wrapping_add(step) % NUM_PORTS;
    Ok(u16::try_from(FIRST_PORT + offset).unwrap_or(u16::MAX))
}

fn first_host_of_step(vars: Vars<'_>) -> Option<String> {
    let list = vars.text("SLURM_STEP_NODELIST").or_else(|| vars.text("SLURM_JOB_NODELIST"))?;
    first_host(&list)
}

/// Tasks of node number `node` in SLURM's run-length list: `"2(x3),1"` is 2, 2, 2, 1.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut nodes_before = 0usize;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1usize),
        };
        let tasks = tasks.trim().parse().ok()?;
        nodes_before = nodes_before.checked_add(nodes)?;
        if node < nodes_before {
            return Some(tasks);
        }
    }
    None
}

/// First host of SLURM's compressed list: `"gpu[03-05,9]-ib,login1"` gives `"gpu03-ib"`.
fn first_host(list: &str) -> Option<String> {
    let Some((prefix, rest)) = list.split_once('[') else {
        return list.split(',').next().filter(|host| !host.is_empty()).map(str::to_owned);
    };
    if let Some((host, _)) = prefix.split_once(',') {
        return (!host.is_empty()).then(|| host.to_owned());
    }
    let (numbers, suffix) = rest.split_once(']')?;
    let number = numbers.split([',', '-']).next()?;
    let suffix = suffix.split(',').next().unwrap_or_default();
    (!number.is_empty() && !suffix.contains('[')).then(|| format!("{prefix}{number}{suffix}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_read_from_the_compressed_list() {
        assert_eq!(first_host("node7").as_deref(), Some("node7"));
        assert_eq!(first_host("a,b[1-2]").as_deref(), Some("a"));
        assert_eq!(first_host("gpu[03-05,9]-ib,login1").as_deref(), Some("gpu03-ib"));
        assert_eq!(first_host("gpu[11,13]").as_deref(), Some("gpu11"));
        assert_eq!(first_host(""), None);
        assert_eq!(first_host("gpu[1"), None);
    }

    proptest! {
        #[test]
        fn run_length_lists_read_back(counts in prop::collection::vec((1usize..9, 1usize..5), 1..6)) {
            let list: Vec<String> = counts
                .iter()
                .map(|(tasks, nodes)| if *nodes == 1 { tasks.to_string() } else { format!("{tasks}(x{nodes})") })
                .collect();
            let flat: Vec<usize> =
                counts.iter().flat_map(|(tasks, nodes)| std::iter::repeat_n(*tasks, *nodes)).collect();
            for (node, tasks) in flat.iter().enumerate() {
                prop_assert_eq!(tasks_of_node(&list.join(","), node), Some(*tasks));
            }
            prop_assert_eq!(tasks_of_node(&list.join(","), flat.len()), None);
        }

        #[test]
        fn no_list_makes_it_panic(text in "\\PC*", node in 0usize..4) {
            let _ = (tasks_of_node(&text, node), first_host(&text));
        }
    }
}
