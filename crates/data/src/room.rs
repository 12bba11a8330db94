//! Memory for the pixels of batches that goes round: fresh pages would take longer than what is written to them.
//!
//! A batch that is dropped, on whatever thread, gives its memory back to the loader that made it.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Values of a line of the processor's cache: a register that is stored then touches one line and not two.
const LINE: usize = 64 / size_of::<f32>();

/// The pixels of one batch, a slice of f32.
#[derive(Debug, Default)]
pub struct Room {
    memory: Vec<f32>,
    /// Where the first line begins.
    start: usize,
    length: usize,
    /// Where the memory goes back to.
    home: Option<Sender<Vec<f32>>>,
}

/// Where the memory of batches is kept while no batch has it.
#[derive(Debug)]
pub(crate) struct Rooms {
    home: Sender<Vec<f32>>,
    back: Receiver<Vec<f32>>,
}

impl Rooms {
    /// Keeps up to `most`.
    pub(crate) fn new(most: usize) -> Self {
        let (home, back) = bounded(most);
        Self { home, back }
    }

    /// A room of `length` values, which are what they are.
    pub(crate) fn take(&self, length: usize) -> Room {
        let wanted = length + LINE;
        // All batches of a stream are as large.
        let kept = self.back.try_iter().find(|memory| memory.len() == wanted);
        let memory = kept.unwrap_or_else(|| vec![0.0; wanted]);
        let start = memory.as_ptr().align_offset(64).min(LINE);
        Room { memory, start, length, home: Some(self.home.clone()) }
    }
}

impl Deref for Room {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // Refused where enough is kept, or where the loader has gone: then it is freed.
            let _ = home.try_send(std::mem::take(&mut self.memory));
        }
    }
}

/// The copy has memory of its own, which goes nowhere.
impl Clone for Room {
    fn clone(&self) -> Self {
        Self { memory: self.to_vec(), start: 0, length: self.length, home: None }
    }
}

impl PartialEq for Room {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_dropped_batch_is_used_again_and_begins_on_a_line() {
        let rooms = Rooms::new(1);
        let mut first = rooms.take(100);
        first.fill(3.0);
        let place = first.as_ptr();
        assert_eq!((first.len(), place.align_offset(64)), (100, 0));
        let copy = first.clone();
        std::thread::spawn(move || drop(first)).join().unwrap();
        drop(copy);
        let again = rooms.take(100);
        assert_eq!(again.as_ptr(), place);
        assert!(rooms.take(99).iter().all(|&value| value == 0.0), "another length is other memory");
    }

    #[test]
    fn no_more_is_kept_than_goes_round_and_a_batch_outlives_its_loader() {
        let rooms = Rooms::new(2);
        drop((rooms.take(7), rooms.take(7), rooms.take(7)));
        assert_eq!(rooms.back.len(), 2);
        let last = rooms.take(7);
        drop(rooms);
        assert_eq!(last.len(), 7);
    }
}
