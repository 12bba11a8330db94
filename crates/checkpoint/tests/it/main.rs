//! Checkpoint folders and foreign weight files from outside. One program: linked once.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;
mod folders;
mod gguf;
mod onnx;
mod pth;
mod quickstart;
mod safetensors;
mod source;
