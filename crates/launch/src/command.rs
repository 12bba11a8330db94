//! The command line and environment of a worker.

use std::path::Path;
use std::process::Command;

use crate::coordinator::Place;
use crate::cores::cores;
use crate::environment;
use crate::token::TOKEN;
use crate::world::{LAUNCHER_PID, SPARE};

/// A command for `program` that finds libtorch where the variable `LIBTORCH` says, if it is set. A program that was
/// not moved finds it by its own run path. It is not told the launchers' token: a worker reads files that others wrote, and
/// needs no more than it uses.
#[must_use]
pub fn worker_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove(TOKEN);
    if let Some(libtorch) = environment::read_filled("LIBTORCH") {
        let before = environment::read_filled("LD_LIBRARY_PATH");
        command.env("LD_LIBRARY_PATH", library_path(&libtorch, before.as_deref()));
    }
    command
}

fn library_path(libtorch: &str, before: Option<&str>) -> String {
    match before {
        Some(before) => format!("{libtorch}/lib:{before}"),
        None => format!("{libtorch}/lib"),
    }
}

/// What the workers of one node in one generation have in common.
pub(crate) struct Generation<'a> {
    pub place: &'a Place,
    pub max_restarts: u32,
    /// Workers on this node.
    pub nproc: usize,
    /// Names the run in torchrun's words.
    pub run_id: &'a str,
}

impl Generation<'_> {
    /// The environment of a process that is to take the place of a worker that dies: it learns later of which.
    pub(crate) fn environment_of_spare(&self) -> Vec<(&'static str, String)> {
        let mut variables = self.environment(0);
        variables.push((SPARE, "1".into()));
        variables
    }

    /// torchrun's environment for the worker number `local_rank` of this node.
    pub(crate) fn environment(&self, local_rank: usize) -> Vec<(&'static str, String)> {
        let place = self.place;
        let (rank, world_size) = ((place.first_rank + local_rank).to_string(), place.world_size.to_string());
        let mut variables = vec![
            ("RANK", rank.clone()),
            ("WORLD_SIZE", world_size.clone()),
            ("LOCAL_RANK", local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", self.nproc.to_string()),
            ("GROUP_RANK", place.node_rank.to_string()),
            ("GROUP_WORLD_SIZE", place.nnodes.to_string()),
            ("ROLE_RANK", rank),
            ("ROLE_WORLD_SIZE", world_size),
            ("ROLE_NAME", "default".into()),
            ("MASTER_ADDR", place.master_addr.clone()),
            ("MASTER_PORT", place.master_port.to_string()),
            ("TORCHELASTIC_RESTART_COUNT", place.generation.to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", self.max_restarts.to_string()),
            ("TORCHELASTIC_RUN_ID", self.run_id.into()),
            (LAUNCHER_PID, std::process::id().to_string()),
        ];
        if environment::read_filled("OMP_NUM_THREADS").is_none() {
            // Without it every worker starts as many threads as there are cores, and they fight for them.
            variables.push(("OMP_NUM_THREADS", (cores() / self.nproc).max(1).to_string()));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_not_told_the_token_of_the_launchers() {
        let command = worker_command(Path::new("/bin/true"));
        let tokens: Vec<_> = command.get_envs().filter(|(name, _)| *name == TOKEN).collect();
        assert_eq!(tokens, [(TOKEN.as_ref(), None)], "taken out of what they inherit");
    }

    #[test]
    fn libtorch_goes_in_front_of_the_library_path() {
        assert_eq!(library_path("/opt/libtorch", None), "/opt/libtorch/lib");
        assert_eq!(library_path("/opt/libtorch", Some("/usr/lib:/x")), "/opt/libtorch/lib:/usr/lib:/x");
    }

    #[test]
    fn a_world_reads_back_what_the_launcher_sets() {
        let place = Place {
            generation: 2,
            node_rank: 1,
            nnodes: 2,
            first_rank: 3,
            world_size: 7,
            master_addr: "node0".into(),
            master_port: 23456,
        };
        let generation = Generation { place: &place, max_restarts: 3, nproc: 4, run_id: "demo" };
        let variables = generation.environment(3);
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        let world = crate::World::from_vars(&lookup).unwrap();
        assert_eq!((world.rank, world.local_rank, world.world_size, world.local_world_size), (6, 3, 7, 4));
        assert_eq!((world.master_addr.as_str(), world.master_port), ("node0", 23456));
        assert_eq!((world.node_rank, world.generation), (1, 2));
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(world.source, crate::Source::Launcher { pid });

        let variables = generation.environment_of_spare();
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        let spare = crate::World::from_vars(&lookup).unwrap();
        assert_eq!(spare.source, crate::Source::Spare { pid });
        let called = spare.called(crate::Call { generation: 3, rank: 5, port: 999 });
        let expected = crate::World { rank: 5, local_rank: 5, generation: 3, master_port: 999, ..spare };
        assert_eq!(called, crate::World { source: crate::Source::Launcher { pid }, ..expected });
    }
}
