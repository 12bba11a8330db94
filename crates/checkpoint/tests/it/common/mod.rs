//! What the tests of all foreign readers share.
#![allow(dead_code, clippy::unwrap_used, reason = "every test program uses some of these")]

pub mod files;
pub mod gguf_file;
pub mod onnx_file;
pub mod pth_file;

/// `bytes` cut at `cut` where there are no `flips`, else with some bytes replaced: (place, value).
pub fn damaged(mut bytes: Vec<u8>, cut: usize, flips: Vec<(usize, u8)>) -> Vec<u8> {
    if flips.is_empty() {
        bytes.truncate(cut);
    }
    let len = bytes.len().max(1);
    for (at, value) in flips {
        if let Some(byte) = bytes.get_mut(at % len) {
            *byte = value;
        }
    }
    bytes
}
