//! The searches on a made-up language: properties that hold for any model.

use tch::Tensor;

use super::*;

const VOCABULARY: u64 = 11;
const END: i64 = 3;

/// Scores are a hash of all that a row has said.
struct Toy {
    rows: Vec<Vec<i64>>,
}

impl Toy {
    fn new(rows: usize) -> Self {
        Self { rows: (0..rows as i64).map(|row| vec![100 + row]).collect() }
    }

    fn score(said: &[i64], token: u64) -> f32 {
        let hash = said.iter().map(|&id| id as u64).chain([token]).fold(17u64, |hash, part| {
            let mixed = (hash ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            mixed ^ (mixed >> 29)
        });
        (hash % 1000) as f32 / 250.0 - 2.0
    }
}

impl Decoder for Toy {
    fn scores(&self) -> Tensor {
        let flat: Vec<f32> =
            self.rows.iter().flat_map(|row| (0..VOCABULARY).map(|token| Self::score(row, token))).collect();
        Tensor::from_slice(&flat).view([-1, VOCABULARY as i64])
    }

    fn advance(&mut self, rows: &[i64], tokens: &[i64]) {
        let next = |(&row, &token): (&i64, &i64)| [self.rows[row as usize].as_slice(), &[token]].concat();
        self.rows = rows.iter().zip(tokens).map(next).collect();
    }
}

fn beams(num_beams: usize, length_penalty: f64, early_stopping: EarlyStopping) -> Strategy {
    Strategy::Beam(Beams { num_beams, length_penalty, early_stopping, num_return_sequences: num_beams })
}

fn nucleus(top_p: f64, top_k: usize, seed: u64) -> Strategy {
    Strategy::Nucleus(Nucleus { top_p, top_k, temperature: 0.7, seed, num_return_sequences: 1 })
}

fn options(strategy: Strategy, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { strategy, ..GenerateOptions::greedy(max_new_tokens, &[END]) }
}

fn run(rows: usize, options: &GenerateOptions) -> Vec<Vec<Generated>> {
    options.check().unwrap();
    generate(&mut Toy::new(rows), &vec![Vec::new(); rows], options)
}

fn ids(texts: &[Vec<Generated>]) -> Vec<(Vec<i64>, Option<i64>)> {
    texts.iter().map(|item| (item[0].ids.clone(), item[0].end)).collect()
}

#[test]
fn one_beam_is_greedy() {
    for max_new_tokens in [1, 2, 9] {
        let greedy = ids(&run(40, &options(Strategy::Greedy, max_new_tokens)));
        assert!(max_new_tokens == 1 || greedy.iter().any(|(_, end)| end.is_some()));
        for penalty in [-1.0, 0.0, 1.0] {
            let one = options(beams(1, penalty, EarlyStopping::Immediate), max_new_tokens);
            assert_eq!(ids(&run(40, &one)), greedy);
        }
        // A nucleus of one token draws nothing.
        assert_eq!(ids(&run(40, &options(nucleus(1e-9, 0, 5), max_new_tokens))), greedy);
        assert_eq!(ids(&run(40, &options(nucleus(1.0, 1, 5), max_new_tokens))), greedy);
    }
}

#[test]
fn enough_beams_find_the_most_probable_text_of_all() {
    // All texts of at most two tokens, by hand.
    let log_probabilities = |said: &[i64]| -> Vec<f64> {
        let scores: Vec<f64> = (0..VOCABULARY).map(|token| f64::from(Toy::score(said, token))).collect();
        let sum = scores.iter().map(|score| score.exp()).sum::<f64>().ln();
        scores.into_iter().map(|score| score - sum).collect()
    };
    for row in 0..12 {
        let first = log_probabilities(&[100 + row]);
        let mut best = (f64::NEG_INFINITY, Vec::new());
        for (a, &p) in (0..).zip(&first) {
            let behind = if a == END { vec![0.0] } else { log_probabilities(&[100 + row, a]) };
            for (b, q) in (0..).zip(behind) {
                let text =
                    if a == END || b == END { [a, b][..usize::from(a != END)].to_vec() } else { vec![a, b] };
                if p + q > best.0 {
                    best = (p + q, text);
                }
            }
        }
        let found = run(12, &options(beams(VOCABULARY as usize, 0.0, EarlyStopping::Never), 2));
        let found = &found[row as usize][0];
        assert_eq!(found.ids, best.1);
        assert!((found.score.unwrap() - best.0).abs() < 1e-5);
    }
}

#[test]
fn other_rows_of_the_batch_change_nothing() {
    for strategy in [Strategy::Greedy, beams(3, 1.0, EarlyStopping::Heuristic), nucleus(0.8, 0, 9)] {
        let options = options(strategy, 8);
        let many = run(9, &options);
        for rows in 1..9 {
            assert_eq!(run(rows, &options), many[..rows]);
        }
    }
}

#[test]
fn texts_are_as_long_as_they_must_and_may_be() {
    for strategy in [Strategy::Greedy, beams(3, 1.0, EarlyStopping::Heuristic), nucleus(1.0, 0, 2)] {
        let options = GenerateOptions { min_new_tokens: 5, ..options(strategy, 7) };
        for text in run(30, &options).iter().flatten() {
            assert!(text.ids.len() >= 5 && text.ids.len() + usize::from(text.end.is_some()) <= 7, "{text:?}");
            assert!(!text.ids.contains(&END));
        }
        let none = GenerateOptions { max_new_tokens: 0, ..options };
        assert!(run(3, &none).iter().flatten().all(|text| text.ids.is_empty()));
    }
}

#[test]
fn a_penalty_lowers_what_was_said_in_prompt_or_text() {
    let penalty = 1.7f32;
    let options = GenerateOptions {
        repetition_penalty: f64::from(penalty),
        end: vec![],
        ..options(Strategy::Greedy, 8)
    };
    for row in 0..30i64 {
        let told = [row % 11, (row * 7) % 11, 5000];
        let mut toy = Toy { rows: vec![vec![100 + row]] };
        let found = generate(&mut toy, &[told.to_vec()], &options)[0][0].ids.clone();
        let (mut said, mut text) = (told.to_vec(), vec![100 + row]);
        for &token in &found {
            let score = |id: u64| match (Toy::score(&text, id), said.contains(&(id as i64))) {
                (score, false) => score,
                (score, true) if score < 0.0 => score * penalty,
                (score, true) => score / penalty,
            };
            let best = (0..VOCABULARY).map(score).fold(f32::NEG_INFINITY, f32::max);
            assert!((score(token as u64) - best).abs() < 1e-5, "{found:?} behind {told:?}: {token}");
            said.push(token);
            text.push(token);
        }
    }
}

#[test]
fn returned_texts_are_different_and_best_first() {
    for stopping in [EarlyStopping::Heuristic, EarlyStopping::Immediate, EarlyStopping::Never] {
        for item in run(20, &options(beams(4, 1.0, stopping), 6)) {
            assert_eq!(item.len(), 4);
            assert!(item.is_sorted_by(|a, b| a.score >= b.score), "{item:?}");
            let mut distinct: Vec<_> = item.iter().map(|text| (&text.ids, text.end)).collect();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), 4, "{item:?}");
        }
    }
}

#[test]
fn looking_longer_never_makes_the_best_score_worse() {
    let best = |stopping| -> Vec<f64> {
        run(40, &options(beams(3, 1.0, stopping), 8)).iter().map(|item| item[0].score.unwrap()).collect()
    };
    let [immediate, heuristic, never] =
        [EarlyStopping::Immediate, EarlyStopping::Heuristic, EarlyStopping::Never].map(best);
    assert!(immediate.iter().zip(&heuristic).all(|(a, b)| a <= b));
    assert!(heuristic.iter().zip(&never).all(|(a, b)| a <= b));
    assert_ne!(immediate, never);
}

#[test]
fn draws_are_named_by_seed_and_row() {
    let draw = |seed| run(20, &options(nucleus(0.95, 0, seed), 6));
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let several = Nucleus { top_p: 1.0, top_k: 0, temperature: 1.0, seed: 1, num_return_sequences: 6 };
    let texts = run(2, &options(Strategy::Nucleus(several), 6));
    assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6]);
    assert!(texts[0].iter().any(|text| text != &texts[0][0]));
}

#[test]
fn options_out_of_range_are_named() {
    let told = |strategy, penalty| {
        let options = GenerateOptions { repetition_penalty: penalty, ..options(strategy, 3) };
        options.check().unwrap_err().to_string()
    };
    assert!(told(Strategy::Greedy, 0.0).contains("repetition_penalty = 0"));
    assert!(told(beams(0, 1.0, EarlyStopping::Never), 1.0).contains("num_beams = 0"));
    assert!(told(nucleus(0.0, 0, 1), 1.0).contains("top_p = 0"));
    let many = Beams {
        num_beams: 2,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Never,
        num_return_sequences: 3,
    };
    assert!(told(Strategy::Beam(many), 1.0).contains("num_return_sequences = 3"));
}
