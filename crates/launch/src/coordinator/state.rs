//! Who belongs to a generation, and when it begins, ends and is over: events in, actions out. No socket and no clock.
//!
//! One generation at a time: the next begins only when every node of the last has said that its workers have ended, or
//! has been silent for so long that it has ended them by itself (a lease on *this* machine's clock, and as long again).

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::{FromCoordinator, FromNode, Hello, exit_of};
use crate::Exit;
use crate::budget::Budget;
use crate::standing::Standing;

/// Names a connection; never used twice.
pub(crate) type Conn = u64;

/// Bounds that do not change during a run.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// What every node must say alike.
    pub expected: Hello,
    pub max_restarts: u32,
    /// A node that is silent for so long is lost.
    pub lease: Duration,
    /// So long may it take until all nodes are there.
    pub join: Duration,
}

/// What happens to the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A node said something.
    Said(Conn, FromNode),
    /// A connection is gone.
    Closed(Conn),
    /// Time has passed.
    Tick,
    /// Node 0 is about to end, and the coordinator with it.
    Leave,
}

/// What the coordinator does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Send(Conn, FromCoordinator),
    Close(Conn),
    /// Tell these nodes their places: connection, node rank, first rank.
    Form {
        generation: u32,
        world_size: usize,
        nodes: Vec<(Conn, usize, usize)>,
    },
}

#[derive(Debug)]
struct Member {
    hello: Hello,
    heard: Duration,
    /// Its number in the generation that runs, if it is part of it.
    node_rank: Option<usize>,
    /// How its workers of that generation ended.
    ended: Option<Exit>,
    /// How far they have come.
    standing: Option<Standing>,
}

/// The first failure that the coordinator heard of; one that only reports a lost peer gives way to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cause {
    rank: Option<usize>,
    exit: Exit,
    lost_peer: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for nodes since then; not before `after`, when what a lost node left has surely ended.
    Gathering {
        since: Duration,
        after: Duration,
    },
    Running,
    Over(Exit),
}

/// The state of a run of several nodes.
#[derive(Debug)]
pub(crate) struct State {
    rules: Rules,
    members: BTreeMap<Conn, Member>,
    stage: Stage,
    generation: Option<u32>,
    budget: Budget,
    /// The furthest checkpoint that a worker of the generation wrote.
    saved: u64,
    cause: Option<Cause>,
    stop: Option<i32>,
    /// When a node of the generation that runs was lost.
    lost: Option<Duration>,
    /// No generation is formed any more.
    leaving: bool,
}

impl State {
    pub(crate) fn new(rules: Rules, now: Duration) -> Self {
        Self {
            budget: Budget::new(rules.max_restarts),
            rules,
            members: BTreeMap::new(),
            stage: Stage::Gathering { since: now, after: now },
            generation: None,
            saved: 0,
            cause: None,
            stop: None,
            lost: None,
            leaving: false,
        }
    }

    /// The run's exit once it is over.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.stage {
            Stage::Over(exit) => Some(exit),
            Stage::Gathering { .. } | Stage::Running => None,
        }
    }

    /// No launcher is connected any more.
    pub(crate) fn is_alone(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes an event at a time of the coordinator's monotonic clock.
    pub(crate) fn on(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = match event {
            Event::Said(conn, FromNode::Hello(hello)) => self.hello(conn, hello, now),
            Event::Said(conn, message) => self.said(conn, &message, now),
            Event::Closed(conn) => self.lose(conn, now),
            Event::Tick => Vec::new(),
            Event::Leave => {
                self.leaving = true;
                Vec::new()
            }
        };
        let silent = |member: &Member| now.saturating_sub(member.heard) > self.rules.lease;
        let lapsed: Vec<Conn> =
            self.members.iter().filter(|(_, member)| silent(member)).map(|(conn, _)| *conn).collect();
        for conn in lapsed {
            actions.extend(self.lose(conn, now));
            actions.push(Action::Close(conn));
        }
        actions.extend(self.go_on(now));
        actions
    }

    fn hello(&mut self, conn: Conn, hello: Hello, now: Duration) -> Vec<Action> {
        if self.members.contains_key(&conn) {
            return Vec::new();
        }
        if let Some(answer) = self.keeps_out(&hello) {
            return vec![Action::Send(conn, answer), Action::Close(conn)];
        }
        let stop = self.stop.map(|signal| Action::Send(conn, FromCoordinator::Stop { signal }));
        let member = Member { hello, heard: now, node_rank: None, ended: None, standing: None };
        self.members.insert(conn, member);
        [Action::Send(conn, FromCoordinator::Welcome)].into_iter().chain(stop).collect()
    }

    /// The answer to a node that is not taken in.
    ///
    /// Who comes to a run that is over ends as its nodes did: after 75 the scheduler starts all of them again, and nothing
    /// is left to do after 0 or 93. A node of another run came to a coordinator that is about to leave the place to its own,
    /// and a number is free again once the lease of the node that had it has run out.
    fn keeps_out(&self, hello: &Hello) -> Option<FromCoordinator> {
        let refusal = |detail, later| Some(FromCoordinator::Refused { detail, later });
        match (self.differs(hello), self.exit()) {
            (Some(detail), over) => refusal(detail, over.is_some()),
            (None, Some(exit)) => Some(self.over(Some(exit.code()))),
            (None, None) => refusal(self.taken(hello)?, true),
        }
    }

    /// The field by which a node is not one of this run.
    fn differs(&self, hello: &Hello) -> Option<String> {
        let expected = &self.rules.expected;
        let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            Some(format!("{what} differs: {theirs} here, {ours} on node 0; launch all nodes alike"))
        };
        if hello.version != expected.version {
            return differs("the version of blip2", &hello.version, &expected.version);
        }
        if hello.run_id != expected.run_id {
            return differs("the name of the run folder", &hello.run_id, &expected.run_id);
        }
        if hello.args != expected.args {
            return differs("the digest of config path and --set", &hello.args, &expected.args);
        }
        if hello.nnodes != expected.nnodes {
            return differs("--nnodes", &hello.nnodes, &expected.nnodes);
        }
        let rank = hello.node_rank.filter(|rank| *rank >= expected.nnodes)?;
        Some(format!("--node-rank {rank} must be below --nnodes {}", expected.nnodes))
    }

    fn taken(&self, hello: &Hello) -> Option<String> {
        let rank = hello.node_rank?;
        self.members.values().any(|member| member.hello.node_rank == Some(rank)).then(|| {
            format!("--node-rank {rank} is taken by another node; give each node a number of its own")
        })
    }

    fn said(&mut self, conn: Conn, message: &FromNode, now: Duration) -> Vec<Action> {
        let Some(member) = self.members.get_mut(&conn) else {
            return vec![Action::Close(conn)];
        };
        member.heard = now;
        let current = self.generation.filter(|_| self.stage == Stage::Running && member.node_rank.is_some());
        match *message {
            FromNode::Failed { generation, rank, code, lost_peer } if current == Some(generation) => {
                self.fail(Cause { rank: Some(rank), exit: exit_of(code), lost_peer })
            }
            FromNode::Ended { generation, code, saved } if current == Some(generation) => {
                member.ended.get_or_insert(exit_of(code));
                // Nobody waits for it any more.
                member.standing = None;
                self.saved = self.saved.max(saved);
                Vec::new()
            }
            FromNode::Stands { generation, standing } if current == Some(generation) => {
                member.standing = Some(standing);
                self.others(conn, generation)
            }
            FromNode::Stop { signal } if self.stop.is_none() => {
                self.stop = Some(signal);
                self.members
                    .keys()
                    .map(|conn| Action::Send(*conn, FromCoordinator::Stop { signal }))
                    .collect()
            }
            // Late news of a generation that is over must change nothing of the next.
            _ => Vec::new(),
        }
    }

    /// Tells a node how far the others have come.
    fn others(&self, conn: Conn, generation: u32) -> Vec<Action> {
        let others = self.members.iter().filter(|(other, _)| **other != conn);
        let standing = others.filter_map(|(_, member)| member.standing).reduce(Standing::and);
        vec![Action::Send(conn, FromCoordinator::Others { generation, standing })]
    }

    /// A worker or a node has failed: all nodes end theirs, told once.
    fn fail(&mut self, cause: Cause) -> Vec<Action> {
        let first = self.cause.is_none();
        if self.cause.is_none_or(|before| before.lost_peer && !cause.lost_peer) {
            self.cause = Some(cause);
        }
        let Some(generation) = self.generation.filter(|_| first) else { return Vec::new() };
        let of_generation = self.members.iter().filter(|(_, member)| member.node_rank.is_some());
        of_generation.map(|(conn, _)| Action::Send(*conn, FromCoordinator::End { generation })).collect()
    }

    fn lose(&mut self, conn: Conn, now: Duration) -> Vec<Action> {
        let Some(member) = self.members.remove(&conn) else { return Vec::new() };
        if self.stage != Stage::Running || member.node_rank.is_none() || member.ended.is_some() {
            return Vec::new();
        }
        self.lost = Some(now);
        self.fail(Cause { rank: None, exit: Exit::Unavailable, lost_peer: false })
    }

    /// Forms a generation, or closes one whose nodes have all ended.
    fn go_on(&mut self, now: Duration) -> Vec<Action> {
        match self.stage {
            Stage::Gathering { since, after } => {
                if self.stop.is_some() {
                    return self.finish(Exit::Stopped);
                }
                if self.leaving {
                    return self.finish(Exit::Unavailable);
                }
                match (now >= after).then(|| self.places()).flatten() {
                    Some(places) => self.form(&places),
                    None if now.saturating_sub(since) > self.rules.join => self.finish(Exit::Unavailable),
                    None => Vec::new(),
                }
            }
            Stage::Running => {
                let mut of_generation = self.members.values().filter(|member| member.node_rank.is_some());
                match of_generation.all(|member| member.ended.is_some()) {
                    true => self.close_generation(now),
                    false => Vec::new(),
                }
            }
            Stage::Over(_) => Vec::new(),
        }
    }

    /// Nodes by number, if there are enough: first those that name theirs, then the others in the order they came.
    fn places(&self) -> Option<Vec<Conn>> {
        let nnodes = self.rules.expected.nnodes;
        let mut places: Vec<Option<Conn>> = vec![None; nnodes];
        for (conn, member) in &self.members {
            if let Some(rank) = member.hello.node_rank {
                places[rank] = Some(*conn);
            }
        }
        let mut others =
            self.members.iter().filter(|(_, member)| member.hello.node_rank.is_none()).map(|(conn, _)| *conn);
        places.into_iter().map(|place| place.or_else(|| others.next())).collect()
    }

    fn form(&mut self, places: &[Conn]) -> Vec<Action> {
        let generation = self.generation.map_or(0, |generation| generation + 1);
        self.generation = Some(generation);
        (self.stage, self.cause, self.lost, self.saved) = (Stage::Running, None, None, 0);
        for member in self.members.values_mut() {
            (member.node_rank, member.ended, member.standing) = (None, None, None);
        }
        let (mut nodes, mut world_size) = (Vec::new(), 0);
        for (node_rank, conn) in places.iter().enumerate() {
            if let Some(member) = self.members.get_mut(conn) {
                member.node_rank = Some(node_rank);
                nodes.push((*conn, node_rank, world_size));
                world_size += member.hello.nproc;
            }
        }
        vec![Action::Form { generation, world_size, nodes }]
    }

    fn close_generation(&mut self, now: Duration) -> Vec<Action> {
        let stopped = self.members.values().any(|member| member.ended == Some(Exit::Stopped));
        let exit = match self.cause {
            // A node that left with its checkpoint first pulls the rest out of their collective.
            Some(Cause { exit: Exit::Unavailable, .. }) if self.stop.is_some() && stopped => Exit::Stopped,
            Some(cause) => cause.exit,
            None if stopped => Exit::Stopped,
            None => self.worst_end(),
        };
        if exit != Exit::Unavailable || self.stop.is_some() || self.leaving {
            return self.finish(exit);
        }
        if let Err(exit) = self.budget.restart(self.saved) {
            return self.finish(exit);
        }
        let after = self.lost.map_or(now, |lost| lost + self.rules.lease);
        self.stage = Stage::Gathering { since: now, after };
        self.tell_over(None)
    }

    fn worst_end(&self) -> Exit {
        let ends = self.members.values().filter_map(|member| member.ended);
        ends.fold(Exit::Done, |worst, exit| if exit == Exit::Done { worst } else { exit })
    }

    fn finish(&mut self, exit: Exit) -> Vec<Action> {
        self.stage = Stage::Over(exit);
        self.tell_over(Some(exit.code()))
    }

    fn tell_over(&self, code: Option<u8>) -> Vec<Action> {
        let over = self.over(code);
        self.members.keys().map(|conn| Action::Send(*conn, over.clone())).collect()
    }

    fn over(&self, code: Option<u8>) -> FromCoordinator {
        let (generation, cause) = (self.generation.unwrap_or(0), self.cause.and_then(|cause| cause.rank));
        FromCoordinator::Over { generation, cause, code }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
