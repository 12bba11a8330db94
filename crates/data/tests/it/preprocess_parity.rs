//! Decoding, resampling and normalising against Pillow's and torchvision's own numbers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use data::resize::Crop;
use data::{DecodeOptions, Decoded, Transform, TransformConfig, decode};
use safetensors::SafeTensors;
use serde_json::Value;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

struct Case {
    folder: PathBuf,
    inputs: Vec<u8>,
    expected: Vec<u8>,
    images: HashMap<String, Value>,
    transform: Transform,
}

impl Case {
    fn read(name: &str, image_size: usize) -> Self {
        let folder = case(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let inputs: Value = serde_json::from_slice(&read("inputs.json")).unwrap();
        let images = serde_json::from_value(inputs["images"].clone()).unwrap();
        let transform = Transform::new(TransformConfig { image_size, ..TransformConfig::default() }).unwrap();
        Self {
            inputs: read("inputs.safetensors"),
            expected: read("expected.safetensors"),
            folder,
            images,
            transform,
        }
    }

    fn decoded(&self, name: &str) -> Decoded {
        let tensors = SafeTensors::deserialize(&self.inputs).unwrap();
        let tensor = tensors.tensor(&format!("decoded.{name}")).unwrap();
        let [height, width, 3] = *tensor.shape() else { panic!("shape of {name}") };
        Decoded { width, height, rgb: tensor.data().to_vec() }
    }

    /// Largest difference and number of differing bytes.
    fn compare(&self, name: &str, got: &[u8]) -> (u8, usize) {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let expected = tensors.tensor(name).unwrap().data();
        assert_eq!(expected.len(), got.len(), "{name}");
        let differences = expected.iter().zip(got).map(|(a, b)| a.abs_diff(*b));
        (differences.clone().max().unwrap(), differences.filter(|difference| *difference > 0).count())
    }

    /// Largest difference of every 16th row and column of `[3, S, S]`, or of all where that is what is stored.
    fn compare_floats(&self, name: &str, pixels: &data::Pixels, step: usize) -> f32 {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let expected: Vec<f32> =
            tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
        let size = pixels.size;
        let mut got = Vec::new();
        for channel in 0..3 {
            for row in (0..size).step_by(step) {
                for column in (0..size).step_by(step) {
                    got.push(pixels.values[(channel * size + row) * size + column]);
                }
            }
        }
        assert_eq!(expected.len(), got.len(), "{name}");
        expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn crops(&self, name: &str) -> Vec<(Crop, bool)> {
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let crops = self.images[name]["train_crops"].as_array().unwrap().iter();
        crops
            .map(|crop| {
                let [top, left, height, width] = ["i", "j", "h", "w"].map(|key| number(&crop[key]));
                (Crop { top, left, height, width }, crop["flip"].as_bool().unwrap())
            })
            .collect()
    }
}

#[test]
fn resampling_equals_pillow_bit_for_bit() {
    for (name, size) in [("preprocess", 84), ("preprocess_224", 224)] {
        let case = Case::read(name, size);
        for image in case.images.keys() {
            let decoded = case.decoded(image);
            let eval = case.transform.eval_bytes(&decoded);
            assert_eq!(case.compare(&format!("eval_u8.{image}"), &eval), (0, 0), "{name} {image}");
            for (number, (crop, flip)) in case.crops(image).into_iter().enumerate() {
                let mut train = case.transform.resize(&decoded, crop);
                if flip {
                    data::augment::flip(&mut train, size);
                }
                let difference = case.compare(&format!("train_u8.{image}.{number}"), &train);
                assert_eq!(difference, (0, 0), "{name} {image} {number}");
                let pixels = case.transform.normalize(&train);
                let largest = case.compare_floats(&format!("train_sample.{image}.{number}"), &pixels, 16);
                assert!(largest <= 1e-6, "{name} {image} {number}: {largest}");
            }
        }
    }
}

#[test]
fn normalised_values_equal_torchs() {
    for (name, size) in [("preprocess", 84), ("preprocess_224", 224)] {
        let case = Case::read(name, size);
        for image in case.images.keys() {
            let pixels = case.transform.eval(&case.decoded(image));
            let largest = case.compare_floats(&format!("eval_sample.{image}"), &pixels, 16);
            assert!(largest <= 1e-6, "{name} {image}: {largest}");
        }
    }
    let case = Case::read("preprocess", 84);
    let pixels = case.transform.eval(&case.decoded("photo_420.jpg"));
    assert!(case.compare_floats("eval.photo_420.jpg", &pixels, 1) <= 1e-6);
}

#[test]
fn files_decode_as_pillow_decodes_them() {
    for (name, size) in [("preprocess", 84), ("preprocess_224", 224)] {
        let case = Case::read(name, size);
        for image in case.images.keys() {
            let bytes = std::fs::read(case.folder.join("images").join(image)).unwrap();
            let decoded = decode(&bytes, &DecodeOptions::default()).unwrap();
            assert_eq!(decoded, case.decoded(image), "{name} {image}");
        }
    }
}
