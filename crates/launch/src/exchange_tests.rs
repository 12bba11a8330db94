//! What the page says of exchanges in the midst of a step.

use super::*;

#[test]
fn exchanges_interrupt_a_step_and_its_computing_stays_one_visit() {
    let mut beat = Beat::first(0);
    beat.advance(WorkerPhase::Compute, 3, 10);
    for began in [20, 50] {
        assert_eq!(beat.interrupt(began), Some(WorkerPhase::Compute));
        assert_eq!(beat.interrupt(began), None);
        assert_eq!((beat.phase, beat.step, beat.since_ns), (WorkerPhase::Exchange, 3, began));
        beat.resume(WorkerPhase::Compute, began + 5);
        assert_eq!((beat.phase, beat.step, beat.since_ns), (WorkerPhase::Compute, 3, began + 5));
    }
    beat.advance(WorkerPhase::Reduce, 3, 100);
    let computed = Visits { count: 1, total_ns: 80, last_ns: 80 };
    assert_eq!(beat.visits(WorkerPhase::Compute), computed);
    assert_eq!(beat.visits(WorkerPhase::Exchange), Visits { count: 2, total_ns: 10, last_ns: 5 });
    assert_eq!(beat.interrupt(110), Some(WorkerPhase::Reduce));
    beat.resume(WorkerPhase::Reduce, 112);
    beat.advance(WorkerPhase::Data, 4, 120);
    assert_eq!(beat.visits(WorkerPhase::Reduce), Visits { count: 1, total_ns: 18, last_ns: 18 });
    assert_eq!(beat.interrupt(130), None, "nobody waits there");
}
