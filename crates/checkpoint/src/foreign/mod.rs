//! Weight files of other programs, read without running a line of them.
//!
//! [`pth`] reads what `torch.save` writes, [`gguf`] what llama.cpp reads, [`onnx`] the weights of an exported graph.
//! All look at a file as hostile: every count is checked against what is left of the file before anything is
//! allocated by it, whatever is not on a short list is refused by its name, and tensors come off the disk one at a
//! time, so that memory stays near one tensor plus the file's own table of contents.

pub mod gguf;
pub mod onnx;
mod pickle;
pub mod pth;
mod quant;
mod scan;
mod wire;
