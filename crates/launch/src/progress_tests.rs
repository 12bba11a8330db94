//! The page between a writer and its reader, and what it says of exchanges in the midst of a step.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

fn writer(page: &PageReader) -> ProgressPage {
    let file = OpenOptions::new().write(true).open(page.path()).unwrap();
    ProgressPage { page: Some(file), beat: Mutex::new(Beat::first(monotonic_ns())) }
}

#[test]
fn the_launcher_reads_what_the_worker_wrote() {
    let page = PageReader::new().unwrap();
    assert_eq!(page.read(), None);
    let before = monotonic_ns();
    let writer = writer(&page);
    writer.write(WorkerPhase::Data, 7);
    writer.write(WorkerPhase::Compute, 7);
    let beat = page.read().unwrap();
    assert_eq!((beat.sequence, beat.phase, beat.step), (2, WorkerPhase::Compute, 7));
    assert!((before..=monotonic_ns()).contains(&beat.since_ns));
    assert_eq!(beat.visits(WorkerPhase::Data).count, 1);
    assert_eq!(beat.visits(WorkerPhase::Compute).count, 0);
}

#[test]
fn a_later_part_of_the_run_has_saved_more_and_nothing_is_taken_back() {
    let page = PageReader::new().unwrap();
    let writer = writer(&page);
    let mut before = 0;
    for (part, step) in [(0, 5), (0, 6), (1, 1), (1, 7), (2, 0)] {
        writer.saved(part, step);
        let beat = page.read().unwrap();
        assert!(beat.saved > before && beat.phase == WorkerPhase::Start, "{part}, {step}");
        before = beat.saved;
    }
    writer.saved(1, 9);
    assert_eq!(page.read().unwrap().saved, before);
}

#[test]
fn a_reader_never_sees_half_of_a_write() {
    let page = PageReader::new().unwrap();
    let writer = writer(&page);
    writer.write(WorkerPhase::Data, 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (1..20_000).for_each(|step| writer.write(WorkerPhase::Data, step));
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            // Each write makes the sequence number one more than the step.
            if let Some(beat) = page.read() {
                assert_eq!((beat.sequence, beat.visits(WorkerPhase::Data).count), (beat.step + 1, beat.step));
            }
        }
    });
    assert_eq!(page.read().unwrap().step, 19_999);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_a_flipped_bit_is_seen(
        noise in prop::collection::vec(any::<u8>(), 0..2 * BYTES),
        bit in 0..8 * BYTES,
    ) {
        let _ = Beat::from_bytes(&noise);
        let mut bytes = Beat::first(5).to_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Beat::from_bytes(&bytes), None);
    }
}

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
