//! ONNX files, field by field.

pub fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub fn int(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

pub fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [&number(field << 3 | 2)[..], &number(value.len() as u64), value].concat()
}

pub fn node(name: &str, op_type: &str, inputs: &[&str]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    // an attribute (5) lies between what is read
    bytes(
        1,
        &[inputs, bytes(3, name.as_bytes()), bytes(5, b"\x0a\x01a"), bytes(4, op_type.as_bytes())].concat(),
    )
}

pub fn tensor(name: &str, kind: u64, sizes: &[u64], raw: &[u8]) -> Vec<u8> {
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| int(1, *size)).collect();
    bytes(5, &[sizes, int(2, kind), bytes(8, name.as_bytes()), bytes(9, raw)].concat())
}

/// A model of IR version 7 with a producer's name, and these parts of a graph.
pub fn model(parts: &[Vec<u8>]) -> Vec<u8> {
    [int(1, 7), bytes(2, b"test"), bytes(7, &parts.concat()), bytes(8, &int(2, 14))].concat()
}

pub fn floats() -> Vec<u8> {
    (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect()
}

pub fn whole() -> Vec<u8> {
    model(&[
        node("/layer/MatMul", "MatMul", &["x", "onnx::MatMul_1"]),
        node("", "Relu", &["/layer/MatMul_output_0"]),
        bytes(2, b"main"),
        tensor("onnx::MatMul_1", 1, &[2, 3], &floats()),
        tensor("half", 10, &[], &[0x00, 0x3c]),
    ])
}
