//! Weight files of other programs, read without running a line of them, and the one that LAVIS needs, written.
//!
//! [`pth`] reads what `torch.save` writes, [`gguf`] what llama.cpp reads, [`onnx`] the weights of an exported graph;
//! [`torch_save`] writes a `.pth`, [`llama`] says what a GGUF's tensors are called elsewhere.
//! All look at a file as hostile: every count is checked against what is left of the file before anything is
//! allocated by it, whatever is not on a short list is refused by its name, and tensors come off the disk one at a
//! time, so that memory stays near one tensor plus the file's own table of contents.

pub mod gguf;
pub mod llama;
pub mod onnx;
mod overlap;
mod pickle;
pub mod pth;
mod quant;
mod scan;
pub mod torch_save;
mod wire;
