//! Memory for the pixels of batches that goes round: fresh pages would take longer than what is written to them.
//!
//! A batch that is dropped, on whatever thread, gives its memory back to the loader that made it.

use std::io;
use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};
use memmap2::MmapMut;
use pulp::bytemuck::{cast_slice, cast_slice_mut};

/// The pixels of one batch, a slice of f32 that begins on a page.
#[derive(Debug)]
pub struct Room {
    /// `None` once it has gone back.
    memory: Option<MmapMut>,
    /// Where the memory goes back to.
    home: Sender<MmapMut>,
}

/// Where the memory of batches is kept while no batch has it.
#[derive(Debug)]
pub(crate) struct Rooms {
    home: Sender<MmapMut>,
    back: Receiver<MmapMut>,
}

impl Rooms {
    /// Keeps up to `most`.
    pub(crate) fn new(most: usize) -> Self {
        let (home, back) = bounded(most);
        Self { home, back }
    }

    /// A room of `length` values, which are what they are. Fails where the system has no memory left.
    pub(crate) fn take(&self, length: usize) -> io::Result<Room> {
        let bytes = length * size_of::<f32>();
        // All batches of a stream are as large.
        let kept = self.back.try_iter().find(|memory| memory.len() == bytes);
        let memory = kept.map_or_else(|| fresh(bytes), Ok)?;
        Ok(Room { memory: Some(memory), home: self.home.clone() })
    }
}

/// In pages as large as there are: a batch is written from one end to the other, and each page of 4 KiB would be looked
/// up for it. A system that has no others refuses, and that is as well.
fn fresh(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

impl Deref for Room {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.memory.as_deref().map_or(&[], cast_slice)
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.memory.as_deref_mut().map_or(&mut [], cast_slice_mut)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            // Refused where enough is kept, or where the loader has gone: then it is freed.
            let _ = self.home.try_send(memory);
        }
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
    fn memory_of_a_dropped_batch_is_used_again_and_begins_on_a_page() {
        let rooms = Rooms::new(1);
        let mut first = rooms.take(100).unwrap();
        first.fill(3.0);
        let place = first.as_ptr();
        assert_eq!((first.len(), place.align_offset(4096)), (100, 0));
        std::thread::spawn(move || drop(first)).join().unwrap();
        let again = rooms.take(100).unwrap();
        assert_eq!(again.as_ptr(), place);
        assert!(rooms.take(99).unwrap().iter().all(|&value| value == 0.0), "another length is other memory");
    }

    #[test]
    fn no_more_is_kept_than_goes_round_and_a_batch_outlives_its_loader() {
        let rooms = Rooms::new(2);
        drop((rooms.take(7).unwrap(), rooms.take(7).unwrap(), rooms.take(7).unwrap()));
        assert_eq!(rooms.back.len(), 2);
        let last = rooms.take(7).unwrap();
        drop(rooms);
        assert_eq!(last.len(), 7);
    }
}
