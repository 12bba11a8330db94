//! The coordinator's rules under schedules that no network would think of.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// That a random schedule writes at most.
const CHECKPOINTS: u64 = 2;

fn event() -> impl Strategy<Value = Event> {
    let conn = || 0u64..6;
    let generation = || 0u32..4;
    let code = || prop::sample::select(vec![0u8, 69, 73, 75, 78, 93, 101]);
    let rank = prop_oneof![Just(None), (0usize..4).prop_map(Some)];
    prop_oneof![
        4 => (conn(), rank, 1usize..4)
            .prop_map(|(conn, rank, nproc)| Event::Said(conn, FromNode::Hello(hello(rank, nproc, 3)))),
        4 => conn().prop_map(|conn| Event::Said(conn, FromNode::Beat)),
        2 => (conn(), generation(), 0usize..9, code())
            .prop_map(|(conn, generation, rank, code)| Event::Said(conn, failed(generation, rank, code, rank > 4))),
        6 => (conn(), generation(), code(), 0..=CHECKPOINTS).prop_map(|(conn, generation, code, saved)| {
            Event::Said(conn, FromNode::Ended { generation, code, saved })
        }),
        2 => (conn(), generation(), 0u64..9).prop_map(|(conn, generation, step)| {
            Event::Said(conn, FromNode::Stands { generation, standing: standing(WorkerPhase::Data, step, 1) })
        }),
        1 => conn().prop_map(|conn| Event::Said(conn, FromNode::Stop { signal: 15 })),
        1 => conn().prop_map(Event::Closed),
        2 => Just(Event::Tick),
    ]
}

/// What an outsider knows of the nodes of the generation that runs.
#[derive(Default)]
struct Observer {
    generation: Option<u32>,
    /// Nodes whose workers may still compute, and until when if the node was lost.
    alive: BTreeMap<Conn, Option<Duration>>,
    over: bool,
    /// Node 0 is about to end.
    left: bool,
    formed: u32,
}

impl Observer {
    fn before(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Said(conn, FromNode::Ended { generation, .. })
                if Some(*generation) == self.generation && self.alive.get(conn) == Some(&None) =>
            {
                self.alive.remove(conn);
            }
            Event::Closed(conn) => self.lost(*conn, now),
            Event::Leave => self.left = true,
            Event::Said(..) | Event::Tick => {}
        }
    }

    /// A lost node hears nothing more and ends its workers within a lease.
    fn lost(&mut self, conn: Conn, now: Duration) {
        if let Some(until) = self.alive.get_mut(&conn) {
            until.get_or_insert(now + LEASE);
        }
    }

    fn after(&mut self, actions: &[Action], now: Duration) {
        for action in actions {
            match action {
                Action::Close(conn) => self.lost(*conn, now),
                Action::Form { generation, world_size, nodes } => {
                    self.formed(*generation, *world_size, nodes, now)
                }
                Action::Send(_, FromCoordinator::Over { code: Some(_), .. }) => self.over = true,
                Action::Send(..) => {}
            }
        }
    }

    fn formed(&mut self, generation: u32, world_size: usize, nodes: &[(Conn, usize, usize)], now: Duration) {
        assert!(!self.over && !self.left, "a run that is over forms nothing");
        assert_eq!(self.generation.map_or(0, |last| last + 1), generation, "each number once, in order");
        assert!(
            self.alive.values().all(|until| until.is_some_and(|until| until <= now)),
            "two generations at once: {:?} at {now:?}",
            self.alive
        );
        let conns: BTreeSet<Conn> = nodes.iter().map(|(conn, ..)| *conn).collect();
        let ranks: Vec<usize> = nodes.iter().map(|(_, rank, _)| *rank).collect();
        assert_eq!((conns.len(), ranks), (3, vec![0, 1, 2]));
        let firsts: Vec<usize> = nodes.iter().map(|(_, _, first)| *first).collect();
        assert!(firsts[0] == 0 && firsts.windows(2).all(|pair| pair[0] < pair[1]) && firsts[2] < world_size);
        self.generation = Some(generation);
        self.alive = conns.into_iter().map(|conn| (conn, None)).collect();
        self.formed += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Whatever is said by whom and when: never two generations at once, never more than restarts and checkpoints allow,
    /// nothing after the end, and silence ends every run.
    #[test]
    fn no_schedule_runs_two_generations_at_once(
        events in prop::collection::vec((event(), 0u64..4), 0..60),
        max_restarts in 0u32..3,
        leaves in prop::option::weighted(0.3, 0usize..60),
    ) {
        let mut events = events;
        if let Some(at) = leaves {
            events.insert(at.min(events.len()), (Event::Leave, 0));
        }
        let mut state = state(3, max_restarts);
        let (mut observer, mut now) = (Observer::default(), Duration::ZERO);
        for (event, seconds) in events {
            now += secs(seconds);
            observer.before(&event, now);
            let actions = state.on(event, now);
            observer.after(&actions, now);
        }
        let checkpoints = u32::try_from(CHECKPOINTS).unwrap();
        prop_assert!(observer.formed <= max_restarts * (checkpoints + 1) + 1);
        for _ in 0..40 {
            now += secs(20);
            let actions = state.on(Event::Tick, now);
            observer.after(&actions, now);
        }
        prop_assert!(state.exit().is_some(), "{:?}", state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Nodes say no time of theirs, so theirs may jump; of the coordinator's own clock only differences count.
    #[test]
    fn t5_a_schedule_goes_alike_whatever_the_clock_says(
        events in prop::collection::vec((event(), 0u64..4), 0..40),
        up in 0u64..1 << 32,
    ) {
        let course = |up: u64| {
            let mut now = secs(up);
            let mut state = State::new(rules(3, 2), now);
            let events = events.iter().map(|(event, seconds)| {
                now += secs(*seconds);
                state.on(event.clone(), now)
            });
            events.collect::<Vec<_>>()
        };
        prop_assert_eq!(course(up), course(0));
    }
}
