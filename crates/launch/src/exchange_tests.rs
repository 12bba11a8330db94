//! What the page says of exchanges in the midst of a step.

use super::*;

#[test]
fn exchanges_interrupt_a_step_and_its_computing_stays_one_visit() {
    let mut beat = Beat::first(0);
    beat.advance(WorkerPhase::Compute, 3, 10);
    for began in [20, 50] {
        assert!(beat.interrupt(began) && !beat.interrupt(began));
        assert_eq!((beat.phase, beat.step, beat.since_ns), (WorkerPhase::Exchange, 3, began));
        beat.resume(began + 5);
        assert_eq!((beat.phase, beat.step, beat.since_ns), (WorkerPhase::Compute, 3, began + 5));
    }
    beat.advance(WorkerPhase::Reduce, 3, 100);
    let computed = Visits { count: 1, total_ns: 80, last_ns: 80 };
    assert_eq!(beat.visits(WorkerPhase::Compute), computed);
    assert_eq!(beat.visits(WorkerPhase::Exchange), Visits { count: 2, total_ns: 10, last_ns: 5 });
    assert!(!beat.interrupt(110), "who averages gradients waits anyway");
    beat.advance(WorkerPhase::Data, 4, 120);
    assert_eq!(beat.visits(WorkerPhase::Reduce).last_ns, 20);
}
