//! Fuzz targets of every reader: valid files, mutated where it hurts, for as long as there is time.
//!
//! Coverage-guided fuzzers need a nightly compiler, and this workspace is built by a stable one. So the targets mutate
//! whole files by structure: bytes flip, counts become huge, spans are repeated, cut out, swapped, spliced in from
//! another file. `scripts/test --long` gives each reader a minute, the short test half a second. Address space is
//! limited meanwhile, of the whole program, which therefore has no other tests: a reader that allocates by what a file
//! claims ends the test. A failure prints its seed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "it/common/mod.rs"]
mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::foreign::gguf::GgufFile;
use checkpoint::foreign::onnx::OnnxFile;
use checkpoint::foreign::pth::PthFile;
use checkpoint::{TensorFile, WeightSource};
use common::files;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// All that a reader of files of some kilobytes may ever ask for, with the test program itself.
const ADDRESS_SPACE: u64 = 1 << 30;
/// Reading a mutated file of some kilobytes takes less, or something is quadratic.
const PATIENCE: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(60);

/// Reads as much of a file as it gives; refusals are fine.
type Reader = fn(&Path);

/// SplitMix64: small, and a case can be had again from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    /// A place and a length inside `len` bytes; short ones are likelier.
    fn span(&mut self, len: usize) -> (usize, usize) {
        let start = self.below(len);
        let most = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        (start, self.below(most + 1))
    }
}

/// Numbers at which counts, offsets and lengths go wrong.
const SHARP: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let (start, len) = random.span(bytes.len());
    match random.below(8) {
        0 => bytes[start] ^= 1 << random.below(8),
        1 => bytes[start] = random.next() as u8,
        2 => {
            let width = [1, 2, 4, 8][random.below(4)];
            let value = SHARP[random.below(SHARP.len())].to_le_bytes();
            let end = (start + width).min(bytes.len());
            bytes[start..end].copy_from_slice(&value[..end - start]);
        }
        3 => bytes.truncate(start),
        4 => drop(bytes.drain(start..start + len)),
        5 => {
            let span = bytes[start..start + len].repeat(1 + random.below(64));
            let room = (64_usize << 10).saturating_sub(bytes.len());
            bytes.splice(start..start, span.into_iter().take(room));
        }
        6 => {
            let (from, count) = random.span(other.len());
            let end = (start + count).min(bytes.len());
            bytes.splice(start..end, other[from..from + count].iter().copied());
        }
        _ => {
            let (from, _) = random.span(bytes.len() - len + 1);
            let span: Vec<u8> = bytes.drain(start..start + len).collect();
            let at = from.min(bytes.len());
            bytes.splice(at..at, span);
        }
    }
}

fn fuzz(seeds: &[Vec<u8>], read: Reader, time: Duration) {
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE.min(hard), hard).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let begun = Instant::now();
    // each day its own cases; what fails prints what repeats it
    let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() << 20;
    let mut cases = 0;
    while begun.elapsed() < time {
        let seed = start + cases;
        let mut random = Random(seed);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        for _ in 0..1 + random.below(6) {
            mutate(&mut bytes, other, &mut random);
        }
        fs::write(&path, &bytes).unwrap();
        let (began, outcome) = (Instant::now(), catch_unwind(AssertUnwindSafe(|| read(&path))));
        assert!(outcome.is_ok(), "seed {seed}: {bytes:02x?}");
        assert!(began.elapsed() < PATIENCE, "seed {seed} took {:?}: {bytes:02x?}", began.elapsed());
        cases += 1;
    }
    println!("{cases} cases in {:?}", begun.elapsed());
}

fn read_pth(path: &Path) {
    let Ok(mut file) = PthFile::open(path) else { return };
    let _ = file.read_all();
}

fn read_gguf(path: &Path) {
    let Ok(mut file) = GgufFile::open(path) else { return };
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in names {
        let _ = file.read(&name);
    }
    let _ = checkpoint::foreign::llama::config(&file, "float32");
    let _ = checkpoint::foreign::llama::byte_level_bpe(&file);
}

fn read_onnx(path: &Path) {
    let Ok(mut file) = OnnxFile::open(path) else { return };
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    for name in names {
        let _ = file.read(&name);
    }
}

fn read_safetensors(path: &Path) {
    let Ok(mut file) = TensorFile::open(path) else { return };
    let names: Vec<String> = file.header().tensors.keys().cloned().collect();
    for name in names {
        let _ = file.read(&name);
    }
}

/// Whatever the bytes say they are.
fn read_any(path: &Path) {
    let Ok(mut source) = WeightSource::open(path) else { return };
    let names: Vec<String> = source.infos().map(|(name, ..)| name.to_owned()).collect();
    for name in names {
        let _ = source.read(&name);
    }
}

/// A short and a long test of one reader.
macro_rules! target {
    ($short:ident, $long:ident, $seeds:expr, $read:expr) => {
        #[test]
        fn $short() {
            fuzz(&$seeds, $read, SHORT);
        }

        #[test]
        fn $long() {
            fuzz(&$seeds, $read, LONG);
        }
    };
}

target!(pth_zip, long_pth_zip, files::pth_zips(), read_pth);
target!(pth_legacy, long_pth_legacy, files::pth_legacies(), read_pth);
target!(gguf, long_gguf, files::ggufs(), read_gguf);
target!(onnx, long_onnx, files::onnxes(), read_onnx);
target!(safetensors, long_safetensors, files::safetensors(), read_safetensors);
target!(any, long_any, files::all(), read_any);
