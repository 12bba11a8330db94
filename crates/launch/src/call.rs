//! What launcher and worker tell each other on the worker's page beside its progress: who outlives a lost peer says so,
//! and is called to meet the others again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The launcher's call, and the worker's answer.
pub(crate) const BYTES: u64 = 2 * NUMBER;
const NUMBER: u64 = 16;

/// Where and as whom a worker is to meet the others of another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The generation's number.
    pub generation: u32,
    /// This worker's number in it.
    pub rank: u16,
    /// Where rank 0 listens.
    pub port: u16,
}

impl Call {
    fn to_number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.rank) << 16 | u64::from(self.port)
    }

    fn from_number(number: u64) -> Self {
        Self { generation: (number >> 32) as u32, rank: (number >> 16) as u16, port: number as u16 }
    }
}

/// The part of a page behind its first `offset` bytes.
#[derive(Debug)]
pub(crate) struct Calls<'a> {
    pub file: &'a File,
    pub offset: u64,
}

impl Calls<'_> {
    /// The launcher calls.
    pub(crate) fn call(&self, call: Call) -> io::Result<()> {
        self.put(0, call.to_number())
    }

    /// The last call, if there was any.
    pub(crate) fn called(&self) -> Option<Call> {
        self.get(0).map(Call::from_number)
    }

    /// The worker has met the others of `generation`, and will outlive the loss of one.
    pub(crate) fn met(&self, generation: u64) -> io::Result<()> {
        self.put(NUMBER, generation)
    }

    /// The last generation in which the worker has met the others; `None` as well for one that ends with its peers.
    pub(crate) fn has_met(&self) -> Option<u64> {
        self.get(NUMBER)
    }

    /// Twice, the second time inverted: a reader that meets a writer sees that they do not fit, and zeros do not either.
    fn put(&self, place: u64, number: u64) -> io::Result<()> {
        let bytes = [number.to_le_bytes(), (!number).to_le_bytes()].concat();
        self.file.write_all_at(&bytes, self.offset + place)
    }

    fn get(&self, place: u64) -> Option<u64> {
        let mut words = [[0; 8]; 2];
        for (word, at) in words.iter_mut().zip([0, 8]) {
            self.file.read_exact_at(word, self.offset + place + at).ok()?;
        }
        let [number, inverted] = words.map(u64::from_le_bytes);
        (number == !inverted).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_and_its_answer_are_read_as_they_were_written_and_nothing_is_read_before() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100 + BYTES).unwrap();
        let calls = Calls { file: &file, offset: 100 };
        assert_eq!((calls.called(), calls.has_met()), (None, None));
        let call = Call { generation: 70_000, rank: 65_535, port: 29_400 };
        calls.call(call).unwrap();
        calls.met(0).unwrap();
        assert_eq!((calls.called(), calls.has_met()), (Some(call), Some(0)));
        file.write_all_at(&[1], 100).unwrap();
        assert_eq!((calls.called(), calls.has_met()), (None, Some(0)), "half of another call");
    }
}
