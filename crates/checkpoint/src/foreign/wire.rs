//! Protocol Buffers' wire format, field by field, off a stream whose length is known.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>. Groups, which proto3 no longer has, are refused. A
//! nested message may not reach past the message it lies in.

use std::cmp::Ordering;
use std::io::{Read, Seek};

use super::scan::Scan;
use crate::CheckpointError;

/// One field's value. Who gets `Bytes(n)` takes exactly `n` bytes off the stream before the next field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed32,
    Fixed64,
    Bytes(u64),
}

/// A message: a stretch of the stream.
pub(super) struct Message {
    end: u64,
}

impl Message {
    /// The message in the next `len` bytes.
    pub(super) fn open<R: Read + Seek>(scan: &Scan<R>, len: u64) -> Result<Self, CheckpointError> {
        if len > scan.left() {
            return Err(scan.malformed(format!("a message of {len} bytes, {} are left", scan.left())));
        }
        Ok(Self { end: scan.pos() + len })
    }

    /// Number and value of the next field; `None` at the message's end.
    pub(super) fn next<R: Read + Seek>(
        &self,
        scan: &mut Scan<R>,
    ) -> Result<Option<(u32, Value)>, CheckpointError> {
        match scan.pos().cmp(&self.end) {
            Ordering::Less => {}
            Ordering::Equal => return Ok(None),
            Ordering::Greater => return Err(scan.malformed("a value reaches past the end of its message")),
        }
        let tag = varint(scan)?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let Some(number) = number else { return Err(scan.malformed("a field without a number")) };
        let value = match tag & 7 {
            0 => Value::Varint(varint(scan)?),
            1 => scan.array::<8>().map(|_| Value::Fixed64)?,
            2 => Value::Bytes(varint(scan)?),
            5 => scan.array::<4>().map(|_| Value::Fixed32)?,
            other => return Err(scan.malformed(format!("field {number} has wire type {other}"))),
        };
        let len = if let Value::Bytes(len) = value { len } else { 0 };
        if self.end.checked_sub(scan.pos()).is_none_or(|left| len > left) {
            return Err(scan.malformed(format!("field {number} reaches past the end of its message")));
        }
        Ok(Some((number, value)))
    }
}

/// Goes past a value that nobody wants.
pub(super) fn pass<R: Read + Seek>(scan: &mut Scan<R>, value: Value) -> Result<(), CheckpointError> {
    if let Value::Bytes(len) = value { scan.skip(len) } else { Ok(()) }
}

/// A base-128 number, least significant group first; at most ten bytes.
pub(super) fn varint<R: Read + Seek>(scan: &mut Scan<R>) -> Result<u64, CheckpointError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = scan.u8()?;
        let group = u64::from(byte & 0x7f);
        if shift == 63 && group > 1 {
            break;
        }
        value |= group << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(scan.malformed("a number of more than 64 bits"))
}
