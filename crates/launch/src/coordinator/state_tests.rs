//! The coordinator's rules, one by one.

use super::*;
use crate::progress::WorkerPhase;
use crate::standing::tests::standing;

const LEASE: Duration = Duration::from_secs(10);

fn hello(node_rank: Option<usize>, nproc: usize, nnodes: usize) -> Hello {
    Hello { version: "1".into(), run_id: "run".into(), args: "digest".into(), nnodes, node_rank, nproc }
}

fn rules(nnodes: usize, max_restarts: u32) -> Rules {
    Rules { expected: hello(None, 1, nnodes), max_restarts, lease: LEASE, join: Duration::from_secs(60) }
}

fn state(nnodes: usize, max_restarts: u32) -> State {
    State::new(rules(nnodes, max_restarts), Duration::ZERO)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two nodes of two and three workers, running since second 0.
fn running(max_restarts: u32) -> State {
    let mut state = state(2, max_restarts);
    assert_eq!(state.on(Event::Said(1, FromNode::Hello(hello(Some(1), 3, 2))), secs(0)), [welcome(1)]);
    let formed = state.on(Event::Said(2, FromNode::Hello(hello(None, 2, 2))), secs(0));
    let nodes = vec![(2, 0, 0), (1, 1, 2)];
    assert_eq!(formed, [welcome(2), Action::Form { generation: 0, world_size: 5, nodes }]);
    state
}

fn welcome(conn: Conn) -> Action {
    Action::Send(conn, FromCoordinator::Welcome)
}

fn ended(generation: u32, exit: Exit) -> FromNode {
    FromNode::Ended { generation, code: exit.code(), saved: 0 }
}

fn failed(generation: u32, rank: usize, code: u8, lost_peer: bool) -> FromNode {
    FromNode::Failed { generation, rank, code, lost_peer }
}

#[test]
fn the_lost_peer_is_the_cause_and_not_the_node_that_reports_it_first() {
    let mut state = running(0);
    state.on(Event::Said(2, failed(0, 0, 69, true)), secs(1));
    state.on(Event::Said(1, failed(0, 3, 69, false)), secs(1));
    state.on(Event::Said(2, failed(0, 1, 69, true)), secs(1));
    state.on(Event::Said(1, ended(0, Exit::Unavailable)), secs(2));
    let told = state.on(Event::Said(2, ended(0, Exit::Unavailable)), secs(2));
    let over = FromCoordinator::Over { generation: 0, cause: Some(3), code: Some(69) };
    assert_eq!(told, vec![Action::Send(1, over.clone()), Action::Send(2, over)]);
}

#[test]
fn all_done_is_done() {
    let mut state = running(3);
    assert_eq!(state.on(Event::Said(1, ended(0, Exit::Done)), secs(1)), vec![]);
    let over = FromCoordinator::Over { generation: 0, cause: None, code: Some(0) };
    let told = state.on(Event::Said(2, ended(0, Exit::Done)), secs(2));
    assert_eq!(told, vec![Action::Send(1, over.clone()), Action::Send(2, over)]);
    assert_eq!(state.exit(), Some(Exit::Done));
}

#[test]
fn a_failed_worker_ends_all_nodes_and_the_set_is_formed_again() {
    let mut state = running(1);
    let killed = failed(0, 4, 69, false);
    let end = FromCoordinator::End { generation: 0 };
    assert_eq!(
        state.on(Event::Said(1, killed), secs(1)),
        vec![Action::Send(1, end.clone()), Action::Send(2, end)]
    );
    assert_eq!(state.on(Event::Said(1, ended(0, Exit::Unavailable)), secs(2)), vec![]);
    let told = state.on(Event::Said(2, ended(0, Exit::Unavailable)), secs(2));
    let over = FromCoordinator::Over { generation: 0, cause: Some(4), code: None };
    assert_eq!(told, vec![Action::Send(1, over.clone()), Action::Send(2, over)]);
    let formed = state.on(Event::Tick, secs(2));
    assert!(matches!(formed[..], [Action::Form { generation: 1, world_size: 5, .. }]), "{formed:?}");
    // Late news of generation 0 is nobody's any more.
    assert_eq!(state.on(Event::Said(1, failed(0, 4, 69, false)), secs(3)), vec![]);
    state.on(Event::Said(1, failed(1, 4, 101, false)), secs(3));
    state.on(Event::Said(1, ended(1, Exit::Unavailable)), secs(3));
    state.on(Event::Said(2, ended(1, Exit::Unavailable)), secs(3));
    assert_eq!(state.exit(), Some(Exit::Unavailable), "no restart is left");
}

#[test]
fn a_new_checkpoint_on_any_node_gives_the_restarts_back() {
    let mut state = running(1);
    let mut fail = |generation, saved| {
        state.on(Event::Said(1, failed(generation, 4, 101, false)), secs(1));
        let ended = |saved| FromNode::Ended { generation, code: 69, saved };
        state.on(Event::Said(1, ended(saved)), secs(1));
        state.on(Event::Said(2, ended(0)), secs(1));
        state.on(Event::Tick, secs(1));
        state.exit()
    };
    for generation in 0..10 {
        assert_eq!(fail(generation, u64::from(generation)), None);
    }
    assert_eq!(fail(10, 9), Some(Exit::Unavailable), "nothing new");
}

#[test]
fn a_node_hears_how_far_the_others_have_come() {
    let mut state = running(0);
    let stands = |generation, step| {
        let standing = standing(WorkerPhase::Compute, step, 2);
        (FromNode::Stands { generation, standing }, standing)
    };
    let others =
        |conn, standing| vec![Action::Send(conn, FromCoordinator::Others { generation: 0, standing })];
    let told = state.on(Event::Said(1, stands(0, 7).0), secs(1));
    assert_eq!(told, others(1, None), "nobody else has said anything");
    assert_eq!(state.on(Event::Said(2, stands(0, 9).0), secs(1)), others(2, Some(stands(0, 7).1)));
    state.on(Event::Said(1, ended(0, Exit::Done)), secs(2));
    let told = state.on(Event::Said(2, stands(0, 9).0), secs(3));
    assert_eq!(told, others(2, None), "nobody waits for a node whose workers have ended");
    assert_eq!(state.on(Event::Said(2, stands(1, 9).0), secs(3)), vec![], "of no generation that runs");
}

#[test]
fn a_run_that_node_0_leaves_in_its_midst_is_over_for_all() {
    let over = |cause| FromCoordinator::Over { generation: 0, cause, code: Some(69) };
    // Its worker cannot be started.
    let mut state = running(3);
    let told = state.on(Event::Closed(2), secs(1));
    assert_eq!(told, [Action::Send(1, FromCoordinator::End { generation: 0 })]);
    assert_eq!(state.on(Event::Leave, secs(1)), []);
    let told = state.on(Event::Said(1, ended(0, Exit::Unavailable)), secs(2));
    assert_eq!(told, [Action::Send(1, over(None))], "and none is formed again");
    // Between two generations.
    let mut state = running(3);
    state.on(Event::Said(2, failed(0, 0, 69, false)), secs(1));
    for conn in [1, 2] {
        state.on(Event::Said(conn, ended(0, Exit::Unavailable)), secs(1));
    }
    state.on(Event::Closed(2), secs(2));
    assert_eq!(state.on(Event::Leave, secs(2)), [Action::Send(1, over(Some(0)))]);
    // Done: that stays as it was said.
    let mut state = running(3);
    for conn in [1, 2] {
        state.on(Event::Said(conn, ended(0, Exit::Done)), secs(1));
    }
    assert_eq!((state.on(Event::Leave, secs(2)), state.exit()), (vec![], Some(Exit::Done)));
}

#[test]
fn codes_that_a_retry_cannot_mend_end_the_run() {
    for exit in [Exit::Config, Exit::Busy, Exit::GiveUp] {
        let mut state = running(3);
        state.on(Event::Said(2, failed(0, 0, exit.code(), false)), secs(1));
        state.on(Event::Said(1, ended(0, Exit::Unavailable)), secs(2));
        state.on(Event::Said(2, ended(0, exit)), secs(2));
        assert_eq!(state.exit(), Some(exit));
    }
}

#[test]
fn a_silent_node_is_lost_and_its_place_stays_empty_until_its_workers_have_surely_ended() {
    let mut state = running(3);
    for second in 1..=10 {
        assert_eq!(state.on(Event::Said(2, FromNode::Beat), secs(second)), vec![]);
    }
    let told = state.on(Event::Said(2, FromNode::Beat), secs(11));
    assert_eq!(told, vec![Action::Send(2, FromCoordinator::End { generation: 0 }), Action::Close(1)]);
    state.on(Event::Said(2, ended(0, Exit::Unavailable)), secs(12));
    // Its place is taken by a node that had not been there.
    assert_eq!(state.on(Event::Said(3, FromNode::Hello(hello(Some(1), 3, 2))), secs(13)), [welcome(3)]);
    assert_eq!(state.on(Event::Said(2, FromNode::Beat), secs(20)), vec![], "the lost one may still compute");
    let formed = state.on(Event::Said(3, FromNode::Beat), secs(21));
    assert_eq!(
        formed,
        vec![Action::Form { generation: 1, world_size: 5, nodes: vec![(2, 0, 0), (3, 1, 2)] }]
    );
    assert_eq!(state.on(Event::Said(1, ended(1, Exit::Done)), secs(22)), vec![Action::Close(1)]);
}

#[test]
fn a_node_that_differs_is_told_in_what() {
    let mut state = running(0);
    let other = |change: &dyn Fn(&mut Hello)| {
        let mut other = hello(None, 1, 2);
        change(&mut other);
        other
    };
    let cases = [
        (other(&|hello| hello.version = "2".into()), "version"),
        (other(&|hello| hello.run_id = "other".into()), "run folder"),
        (other(&|hello| hello.args = "0".into()), "--set"),
        (other(&|hello| hello.nnodes = 3), "--nnodes"),
        (other(&|hello| hello.node_rank = Some(1)), "--node-rank 1 is taken"),
        (other(&|hello| hello.node_rank = Some(2)), "below"),
    ];
    for (conn, (hello, word)) in (10..).zip(cases) {
        let told = state.on(Event::Said(conn, FromNode::Hello(hello)), secs(1));
        let (detail, later) = refused(conn, &told);
        assert!(detail.contains(word), "{detail}");
        assert_eq!(later, word.contains("taken"), "only a number may be free later: {detail}");
    }
}

fn refused(conn: Conn, told: &[Action]) -> (String, bool) {
    let [Action::Send(to, FromCoordinator::Refused { detail, later }), Action::Close(closed)] = told else {
        panic!("{told:?}");
    };
    assert_eq!((*to, *closed), (conn, conn));
    (detail.clone(), *later)
}

#[test]
fn a_number_is_free_again_when_the_lease_of_its_node_has_run_out() {
    let mut state = running(3);
    let again = |conn| Event::Said(conn, FromNode::Hello(hello(Some(1), 3, 2)));
    for second in 1..=10 {
        state.on(Event::Said(2, FromNode::Beat), secs(second));
        let conn = 10 + second;
        let (_, later) = refused(conn, &state.on(again(conn), secs(second)));
        assert!(later, "node 1 is silent, and may be dead");
    }
    state.on(Event::Said(2, FromNode::Beat), secs(11));
    assert_eq!(state.on(again(30), secs(11)), [welcome(30)]);
}

#[test]
fn who_comes_to_a_run_that_is_over_ends_as_it_did_and_a_node_of_the_next_run_waits() {
    for exit in [Exit::Done, Exit::Stopped, Exit::GiveUp] {
        let mut state = running(3);
        if exit == Exit::GiveUp {
            state.on(Event::Said(1, failed(0, 4, exit.code(), false)), secs(1));
        }
        state.on(Event::Said(1, ended(0, exit)), secs(2));
        state.on(Event::Said(2, ended(0, exit)), secs(2));
        assert_eq!(state.exit(), Some(exit));
        let told = state.on(Event::Said(3, FromNode::Hello(hello(None, 1, 2))), secs(3));
        let [Action::Send(3, FromCoordinator::Over { code, .. }), Action::Close(3)] = told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(code, Some(exit.code()));
        let other = Hello { run_id: "next".into(), ..hello(None, 1, 2) };
        assert!(refused(4, &state.on(Event::Said(4, FromNode::Hello(other)), secs(3))).1);
    }
}

#[test]
fn a_stop_reaches_all_and_never_restarts() {
    let mut state = running(3);
    let stop = FromCoordinator::Stop { signal: 15 };
    let told = state.on(Event::Said(1, FromNode::Stop { signal: 15 }), secs(1));
    assert_eq!(told, vec![Action::Send(1, stop.clone()), Action::Send(2, stop)]);
    state.on(Event::Said(1, ended(0, Exit::Stopped)), secs(2));
    state.on(Event::Said(2, failed(0, 0, 69, true)), secs(2));
    state.on(Event::Said(2, ended(0, Exit::Unavailable)), secs(2));
    assert_eq!(state.exit(), Some(Exit::Stopped));
}

#[test]
fn nodes_that_never_come_are_not_waited_for_for_ever() {
    let mut state = state(2, 3);
    for second in 0..=60 {
        let told = state.on(Event::Said(1, FromNode::Hello(hello(None, 1, 2))), secs(second));
        assert!(told.is_empty() || (second == 0 && told == [welcome(1)]), "{told:?}");
        assert!(state.on(Event::Said(1, FromNode::Beat), secs(second)).is_empty());
        assert_eq!(state.exit(), None);
    }
    state.on(Event::Said(1, FromNode::Beat), secs(61));
    assert_eq!(state.exit(), Some(Exit::Unavailable));
}

#[path = "state_schedules.rs"]
mod schedules;
