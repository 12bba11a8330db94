//! A pickle machine that can build tensors and nothing else.
//!
//! It knows the opcodes of protocol 2 (what `torch.save` writes by default; Python's `pickletools.py` documents
//! them) and a dozen names. Nothing is ever imported or called: each allowed name has its own arm in [`call`], every
//! other name is refused with the name in the error. Containers live in a flat arena and refer to each other by
//! index, so nesting, sharing and cycles cost neither stack nor memory.

mod call;

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::rc::Rc;

use super::scan::Scan;
use crate::{CheckpointError, Dtype};

/// Opcodes of one pickle; a state dict needs about 40 for each tensor.
const MAX_OPS: usize = 4_000_000;
/// Bytes of all strings of one pickle.
const MAX_TEXT: usize = 64 << 20;
/// Bytes of one module or class name.
const MAX_NAME: usize = 256;
/// Dimensions of one tensor (torch's own limit).
const MAX_DIMENSIONS: usize = 64;

/// Something the pickle built. Containers are indices into [`Pickle::nodes`].
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float,
    Text(Rc<str>),
    Callable(Callable),
    Node(usize),
    Storage(usize),
    Tensor(usize),
}

/// A container. `Dict` keeps the order of insertion.
#[derive(Debug)]
pub(super) enum Node {
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
}

/// The names a pickle may refer to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// A run of elements that tensors are views of.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) key: Rc<str>,
    pub(super) dtype: Dtype,
    pub(super) numel: u64,
}

/// A strided view of a storage, in elements.
#[derive(Debug)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

/// What one pickle says.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) root: Value,
    pub(super) nodes: Vec<Node>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<View>,
}

/// Reads one pickle, up to and with its STOP.
///
/// # Errors
/// [`CheckpointError::Malformed`] for whatever `torch.save` does not write.
pub(super) fn load<R: Read + Seek>(scan: &mut Scan<R>) -> Result<Pickle, CheckpointError> {
    let mut machine = Machine {
        scan,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        text_bytes: 0,
        built: Pickle { root: Value::None, nodes: Vec::new(), storages: Vec::new(), tensors: Vec::new() },
    };
    for _ in 0..MAX_OPS {
        if machine.step()? {
            machine.built.root = machine.pop()?;
            return Ok(machine.built);
        }
    }
    Err(machine.scan.malformed(format!("the pickle has more than {MAX_OPS} opcodes")))
}

struct Machine<'a, R> {
    scan: &'a mut Scan<R>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    text_bytes: usize,
    built: Pickle,
}

impl<R: Read + Seek> Machine<'_, R> {
    /// Runs one opcode; true for STOP.
    fn step(&mut self) -> Result<bool, CheckpointError> {
        let op = self.scan.u8()?;
        let value = match op {
            b'.' => return Ok(true),
            0x80 => return self.protocol().map(|()| false),
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(self.scan.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.scan.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.scan.array()?).into()),
            0x8a => self.long()?,
            b'G' => self.scan.array::<8>().map(|_| Value::Float)?, // no shape or name is a float
            b'X' => {
                let count = self.scan.u32()?;
                self.text(count.into())?
            }
            b'U' => {
                let count = self.scan.u8()?; // Python 2's str
                self.text(count.into())?
            }
            b'c' => Value::Callable(self.callable()?),
            b'h' => {
                let slot = self.scan.u8()?;
                self.recall(slot.into())?
            }
            b'j' => {
                let slot = self.scan.u32()?;
                self.recall(slot)?
            }
            b')' => self.node(Node::Tuple(Vec::new())),
            b']' => self.node(Node::List(Vec::new())),
            b'}' => self.node(Node::Dict(Vec::new())),
            b't' => {
                let items = self.above_mark()?;
                self.node(Node::Tuple(items))
            }
            0x85..=0x87 => {
                let items = self.top(usize::from(op - 0x84))?;
                self.node(Node::Tuple(items))
            }
            b'R' => self.reduce()?,
            b'Q' => self.persistent()?,
            _ => return self.effect(op).map(|()| false),
        };
        self.stack.push(value);
        Ok(false)
    }

    /// The opcodes that push nothing new.
    fn effect(&mut self, op: u8) -> Result<(), CheckpointError> {
        match op {
            b'(' => self.marks.push(self.stack.len()),
            b'q' => {
                let slot = self.scan.u8()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = self.scan.u32()?;
                self.remember(slot)?;
            }
            b'a' => {
                let items = self.top(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.top(2)?;
                self.set_items(items)?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(items)?;
            }
            b'b' => self.build()?,
            _ => {
                let name =
                    if op.is_ascii_graphic() { format!(" ('{}')", char::from(op)) } else { String::new() };
                return Err(self.refused(format!("opcode {op:#04x}{name}")));
            }
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), CheckpointError> {
        match self.scan.u8()? {
            2 => Ok(()),
            other => Err(self.refused(format!("pickle protocol {other} (torch.save's default is 2)"))),
        }
    }

    fn long(&mut self) -> Result<Value, CheckpointError> {
        let count = self.scan.u8()?;
        let bytes = self.scan.bytes(count.into())?;
        if bytes.len() > 8 {
            return Err(self.refused(format!("an integer of {} bytes", bytes.len())));
        }
        let sign = if bytes.last().is_some_and(|high| high & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, count: u64) -> Result<Value, CheckpointError> {
        let budget = MAX_TEXT.saturating_sub(self.text_bytes) as u64;
        if count > budget {
            return Err(self.scan.malformed(format!("the pickle's strings exceed {MAX_TEXT} bytes")));
        }
        let text = self.scan.text(count)?;
        self.text_bytes += text.len();
        Ok(Value::Text(text.into()))
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), CheckpointError> {
        match self.stack.last() {
            Some(Value::Node(index)) => match self.built.nodes.get_mut(*index) {
                Some(Node::List(list)) => {
                    list.extend(items);
                    Ok(())
                }
                _ => Err(self.refused("an append to something that is no list")),
            },
            _ => Err(self.refused("an append to something that is no list")),
        }
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), CheckpointError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.refused("a key without a value"));
        }
        match self.stack.last() {
            Some(Value::Node(index)) => match self.built.nodes.get_mut(*index) {
                Some(Node::Dict(entries)) => {
                    entries.extend(pairs.iter().map(|[key, value]| (key.clone(), value.clone())));
                    Ok(())
                }
                _ => Err(self.refused("an item of something that is no dictionary")),
            },
            _ => Err(self.refused("an item of something that is no dictionary")),
        }
    }

    fn node(&mut self, node: Node) -> Value {
        self.built.nodes.push(node);
        Value::Node(self.built.nodes.len() - 1)
    }

    fn remember(&mut self, slot: u32) -> Result<(), CheckpointError> {
        let Some(value) = self.stack.last().cloned() else { return Err(self.underflow()) };
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&self, slot: u32) -> Result<Value, CheckpointError> {
        self.memo.get(&slot).cloned().ok_or_else(|| self.scan.malformed(format!("memo {slot} was never set")))
    }

    fn pop(&mut self) -> Result<Value, CheckpointError> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(self.underflow());
        }
        self.stack.pop().ok_or_else(|| self.underflow())
    }

    /// The top `count` values, in the order they were pushed.
    fn top(&mut self, count: usize) -> Result<Vec<Value>, CheckpointError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count).filter(|start| *start >= floor) {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err(self.underflow()),
        }
    }

    fn above_mark(&mut self) -> Result<Vec<Value>, CheckpointError> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| self.scan.malformed("the pickle closes a group it never opened"))?;
        Ok(self.stack.split_off(mark))
    }

    fn underflow(&self) -> CheckpointError {
        self.scan.malformed("the pickle takes more values than it gave")
    }

    /// The one answer to whatever tensors do not need.
    fn refused(&self, what: impl std::fmt::Display) -> CheckpointError {
        self.scan.malformed(format!("refused: the pickle holds {what}, which plain tensors do not need"))
    }
}
