//! The loader and its parts from outside. One program: linked once.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

#[path = "../common/mod.rs"]
mod common;
mod elastic;
mod faults_jpeg;
mod faults_shards;
mod faults_stream;
mod preprocess_parity;
mod quickstart;
mod source;
mod text_parity;
