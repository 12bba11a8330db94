//! ONNX files: the stored tensors, and which node takes which of them.
//!
//! Format: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>. Only `ModelProto.graph`'s `initializer` and
//! `node` are looked at; nothing is run. Tensors must lie in the file as `raw_data`, which is what exporters write:
//! typed lists and external files are refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::scan::Scan;
use super::wire::{Message, Value, pass, varint};
use crate::tensor::byte_len;
use crate::{CheckpointError, Dtype, HostTensor};

/// Tensors of one file.
const MAX_TENSORS: usize = 1 << 16;
/// Nodes of one graph.
const MAX_NODES: usize = 1 << 18;
/// Inputs of all nodes.
const MAX_INPUTS: usize = 1 << 20;
/// Bytes of one name.
const MAX_NAME: u64 = 4096;
/// Dimensions of one tensor.
const MAX_DIMENSIONS: usize = 16;

/// An ONNX file whose graph is read and checked; tensors are read one by one.
#[derive(Debug)]
pub struct OnnxFile {
    file: File,
    path: PathBuf,
    graph: Graph,
}

/// One operation of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `MatMul`, `Conv`, ...
    pub op_type: String,
    /// Names of tensors or of other nodes' outputs, in the operator's order; empty where an optional one is absent.
    pub inputs: Vec<String>,
}

#[derive(Debug, Default)]
struct Graph {
    tensors: BTreeMap<String, Place>,
    nodes: BTreeMap<String, Node>,
    inputs: usize,
}

/// Where one tensor lies.
#[derive(Debug)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte offset in the file.
    start: u64,
    len: usize,
}

impl OnnxFile {
    /// Opens a file and reads its graph: names, types and sizes of the tensors, and the nodes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when it cannot be read; [`CheckpointError::Malformed`] when it is no ONNX file, is cut
    /// off, or holds a tensor we do not read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let len = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let mut scan = Scan::new(BufReader::new(&file), path, len);
        let model = Message::open(&scan, len)?;
        let mut graph = None;
        while let Some((number, value)) = model.next(&mut scan)? {
            match (number, value) {
                (7, Value::Bytes(len)) if graph.is_none() => graph = Some(read_graph(&mut scan, len)?),
                (7, _) => return Err(scan.malformed("more than one graph")),
                _ => pass(&mut scan, value)?,
            }
        }
        let graph = graph.ok_or_else(|| scan.malformed("no ONNX file: it holds no graph"))?;
        Ok(Self { file, path: path.to_path_buf(), graph })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.graph.tensors.keys().map(String::as_str)
    }

    /// Type and sizes of a tensor; `None` when the file has none of this name.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.graph.tensors.get(name).map(|place| (place.dtype, place.shape.as_slice()))
    }

    /// The nodes that have a name, sorted by it.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.graph.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.graph.nodes.get(name)
    }

    /// Reads one tensor; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(place) = self.graph.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; place.len];
        let read =
            self.file.seek(SeekFrom::Start(place.start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(CheckpointError::io("read", &self.path))?;
        Ok(Some(HostTensor { dtype: place.dtype, shape: place.shape.clone(), bytes }))
    }
}

type FileScan<'a> = Scan<BufReader<&'a File>>;

/// `GraphProto`: node 1, initializer 5, sparse_initializer 15.
fn read_graph(scan: &mut FileScan<'_>, len: u64) -> Result<Graph, CheckpointError> {
    let message = Message::open(scan, len)?;
    let mut graph = Graph::default();
    let mut nodes = 0;
    while let Some((number, value)) = message.next(scan)? {
        match (number, value) {
            (1, Value::Bytes(len)) => {
                nodes += 1;
                if nodes > MAX_NODES {
                    return Err(scan.malformed(format!("more than {MAX_NODES} nodes")));
                }
                read_node(scan, len, &mut graph)?;
            }
            (5, Value::Bytes(len)) => {
                let (name, place) = read_tensor(scan, len)?;
                if graph.tensors.len() == MAX_TENSORS {
                    return Err(scan.malformed(format!("more than {MAX_TENSORS} tensors")));
                }
                if graph.tensors.contains_key(&name) {
                    return Err(scan.malformed(format!("two tensors are named {name}")));
                }
                graph.tensors.insert(name, place);
            }
            (15, _) => return Err(scan.malformed("it holds a sparse tensor, which we do not read")),
            _ => pass(scan, value)?,
        }
    }
    Ok(graph)
}

/// `NodeProto`: input 1, name 3, op_type 4. Names are optional; a node without one cannot be asked for.
fn read_node(scan: &mut FileScan<'_>, len: u64, graph: &mut Graph) -> Result<(), CheckpointError> {
    let message = Message::open(scan, len)?;
    let (mut name, mut node) = (String::new(), Node::default());
    while let Some((number, value)) = message.next(scan)? {
        match (number, value) {
            (1, Value::Bytes(len)) => {
                graph.inputs += 1;
                if graph.inputs > MAX_INPUTS {
                    return Err(scan.malformed(format!("more than {MAX_INPUTS} inputs of nodes")));
                }
                node.inputs.push(read_name(scan, len)?);
            }
            (3, Value::Bytes(len)) => name = read_name(scan, len)?,
            (4, Value::Bytes(len)) => node.op_type = read_name(scan, len)?,
            _ => pass(scan, value)?,
        }
    }
    if !name.is_empty() && graph.nodes.contains_key(&name) {
        return Err(scan.malformed(format!("two nodes are named {name}")));
    }
    if !name.is_empty() {
        graph.nodes.insert(name, node);
    }
    Ok(())
}

fn read_name(scan: &mut FileScan<'_>, len: u64) -> Result<String, CheckpointError> {
    if len > MAX_NAME {
        return Err(scan.malformed(format!("a name of {len} bytes")));
    }
    scan.text(len)
}

/// `TensorProto`: dims 1, data_type 2, name 8, raw_data 9; segment 3, external_data 13 and data_location 14 mean
/// values elsewhere, 4 to 7, 10 and 11 are typed lists.
fn read_tensor(scan: &mut FileScan<'_>, len: u64) -> Result<(String, Place), CheckpointError> {
    let message = Message::open(scan, len)?;
    let (mut name, mut kind, mut shape, mut raw, mut other) = (String::new(), 0, Vec::new(), None, None);
    while let Some((number, value)) = message.next(scan)? {
        match (number, value) {
            (1, Value::Varint(size)) => push_size(scan, &mut shape, size)?,
            (1, Value::Bytes(len)) => {
                let end = scan.pos() + len; // packed
                while scan.pos() < end {
                    let size = varint(scan)?;
                    push_size(scan, &mut shape, size)?;
                }
            }
            (2, Value::Varint(value)) => kind = value,
            (8, Value::Bytes(len)) => name = read_name(scan, len)?,
            (9, Value::Bytes(len)) => {
                raw = Some((scan.pos(), len));
                scan.skip(len)?;
            }
            (14, Value::Varint(0)) => {} // DEFAULT: in this file
            (3..=7 | 10 | 11 | 13 | 14, value) => {
                other = Some(number);
                pass(scan, value)?;
            }
            _ => pass(scan, value)?,
        }
    }
    if let Some(number) = other {
        let reason = format!("tensor {name} keeps values in field {number}; we read raw_data only");
        return Err(scan.malformed(reason));
    }
    let dtype = dtype(kind).ok_or_else(|| scan.malformed(format!("tensor {name} is of ONNX type {kind}")))?;
    let (start, len) = raw.unwrap_or((scan.pos(), 0));
    let expected = byte_len(dtype, &shape).filter(|expected| *expected as u64 == len);
    let len = expected
        .ok_or_else(|| scan.malformed(format!("tensor {name} has {len} bytes for sizes {shape:?}")))?;
    Ok((name, Place { dtype, shape, start, len }))
}

fn push_size(scan: &FileScan<'_>, shape: &mut Vec<usize>, size: u64) -> Result<(), CheckpointError> {
    match usize::try_from(size) {
        Ok(size) if shape.len() < MAX_DIMENSIONS => {
            shape.push(size);
            Ok(())
        }
        _ => Err(scan.malformed("a tensor has too many sizes, or one out of reach")),
    }
}

/// The element type of a `TensorProto.DataType`.
fn dtype(kind: u64) -> Option<Dtype> {
    Some(match kind {
        1 => Dtype::F32,
        2 => Dtype::U8,
        3 => Dtype::I8,
        5 => Dtype::I16,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        10 => Dtype::F16,
        11 => Dtype::F64,
        16 => Dtype::BF16,
        _ => return None,
    })
}
