//! Captions that the Q-Former says itself, held against the training pass over the same texts, which equals LAVIS's.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use collectives::SoloGroup;
use common::{WORDS, tiny_stage1};
use model::language::{Beams, EarlyStopping, GenerateOptions, Generated, Strategy};
use model::{Negatives, Stage1, Stage1Inputs, TextInput};
use tch::{Device, Kind, Tensor, nn};

const IMAGES: i64 = 5;
/// As many as there are positions behind `[DEC]`.
const TOKENS: usize = 9;
const END: i64 = 2;
const PADDING: i64 = 0;

/// A model whose images and words matter: fresh weights make all texts alike.
fn stage1() -> (nn::VarStore, Stage1) {
    tch::set_num_threads(1);
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let stage1 = Stage1::new(&store.root(), &tiny_stage1());
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            if name != "temperature" && variable.dim() > 1 {
                let noise = Tensor::randn_like(&variable) * 0.3;
                let _ = variable.g_add_(&noise);
            }
        }
    });
    (store, stage1)
}

fn images() -> Tensor {
    tch::manual_seed(6);
    Tensor::randn([IMAGES, 7, 16], (Kind::Float, Device::Cpu))
}

/// What the training pass thinks of each token of `texts`: log-probabilities `[tokens, words]` for each text.
fn trained(stage1: &Stage1, images: &Tensor, texts: &[Vec<i64>]) -> Vec<Tensor> {
    let cols = texts.iter().map(Vec::len).max().unwrap() + 1;
    let mut ids = vec![PADDING; texts.len() * cols];
    let mut mask = vec![0i64; texts.len() * cols];
    for (row, text) in texts.iter().enumerate() {
        // The first token is what the decoder replaces by [DEC].
        ids[row * cols + 1..][..text.len()].copy_from_slice(text);
        mask[row * cols..][..=text.len()].fill(1);
    }
    let shape = [texts.len() as i64, cols as i64];
    let order: Vec<i64> = (0..texts.len() as i64).collect();
    let others = Tensor::from_slice(&order).roll([1], [0]);
    let inputs = Stage1Inputs {
        image: images.shallow_clone(),
        text: TextInput {
            ids: Tensor::from_slice(&ids).view(shape),
            mask: Tensor::from_slice(&mask).view(shape),
        },
        concepts: None,
        negatives: Negatives::Given { images: others.shallow_clone(), texts: others },
    };
    let (_, trace) = stage1.forward(&inputs, &SoloGroup::new(Device::Cpu), false).unwrap();
    let logits = trace.lm_logits.log_softmax(-1, Kind::Float);
    let sizes: Vec<i64> = texts.iter().map(|text| text.len() as i64).collect();
    logits.split_with_sizes(&sizes, 0)
}

/// The tokens of a text with the one that ended it.
fn whole(text: &Generated) -> Vec<i64> {
    text.ids.iter().copied().chain(text.end).collect()
}

#[test]
fn greedy_says_what_the_training_pass_finds_most_probable() {
    let (_store, stage1) = stage1();
    let said = stage1.generate(&images(), &GenerateOptions::greedy(TOKENS, &[END]));
    let texts: Vec<Vec<i64>> = said.iter().map(|texts| whole(&texts[0])).collect();
    assert!(texts.iter().any(|text| text != &texts[0]), "what is said depends on the image: {texts:?}");
    assert!(texts.iter().all(|text| !text.is_empty() && text.iter().all(|&id| id < WORDS)), "{texts:?}");
    for (text, scores) in texts.iter().zip(trained(&stage1, &images(), &texts)) {
        let best = Vec::<i64>::try_from(scores.argmax(1, false)).unwrap();
        assert_eq!(&best, text);
    }
}

#[test]
fn a_beams_score_is_the_training_passs_log_probability() {
    let (_store, stage1) = stage1();
    let strategy = Strategy::Beam(Beams {
        num_beams: 4,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Never,
        num_return_sequences: 2,
    });
    let options = GenerateOptions { strategy, ..GenerateOptions::greedy(TOKENS, &[END]) };
    let found = stage1.generate(&images(), &options);
    for place in 0..2 {
        let texts: Vec<Vec<i64>> = found.iter().map(|texts| whole(&texts[place])).collect();
        for (image, (text, scores)) in texts.iter().zip(trained(&stage1, &images(), &texts)).enumerate() {
            let each = scores.gather(1, &Tensor::from_slice(text).unsqueeze(1), false);
            let expected = each.sum(Kind::Double).double_value(&[]) / text.len() as f64;
            let score = found[image][place].score.unwrap();
            assert!(
                (score - expected).abs() < 1e-5,
                "image {image}, text {place}: {score} against {expected}"
            );
        }
    }
    assert!(found.iter().all(|texts| texts[0].score >= texts[1].score), "best first");
}
