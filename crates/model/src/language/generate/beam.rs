//! Beam search by transformers' rules: twice as many candidates as beams, of which only those ranked among the first
//! `num_beams` may finish; finished texts compete by their score over a power of their length.

use tch::{Device, Kind, Tensor};

use super::rules::{Rules, to_host};
use super::{Beams, Decoder, EarlyStopping, GenerateOptions, Generated};

/// The score of what is no candidate: the peers' number.
const NONE: f32 = -1e9;

/// A text that goes on.
#[derive(Clone)]
struct Beam {
    /// Sum of log-probabilities.
    sum: f32,
    ids: Vec<i64>,
    /// Row of the decoder that it comes from.
    row: i64,
}

/// One row of the decoder at the start.
struct Item {
    /// Its number in the batch.
    index: usize,
    beams: Vec<Beam>,
    /// Best first, at most `num_beams`.
    finished: Vec<Generated>,
    is_open: bool,
}

/// A way to go on, in the order of the scores.
struct Candidate {
    sum: f32,
    beam: usize,
    token: i64,
}

pub(super) fn generate(
    decoder: &mut dyn Decoder,
    said: &[Vec<i64>],
    options: &GenerateOptions,
    settings: &Beams,
) -> Vec<Vec<Generated>> {
    let mut scores = decoder.scores();
    let mut rules = Rules::new(options, said, &scores);
    let mut items: Vec<Item> =
        (0..scores.size()[0]).map(|row| Item::new(row as usize, settings.num_beams)).collect();
    let mut done = vec![Vec::new(); items.len()];
    for step in 0..options.max_new_tokens {
        let log_probabilities = rules.apply(scores.log_softmax(-1, Kind::Float));
        let candidates = candidates(&items, &log_probabilities, options.end.len());
        for (item, candidates) in items.iter_mut().zip(&candidates) {
            item.step(candidates, step + 1, options, settings);
        }
        let is_last = step + 1 == options.max_new_tokens;
        let (open, closed): (Vec<Item>, Vec<Item>) =
            items.into_iter().partition(|item| item.is_open && !is_last);
        for item in closed {
            done[item.index] = item.finished;
        }
        items = open;
        if items.is_empty() {
            break;
        }
        let beams = || items.iter().flat_map(|item| &item.beams);
        let rows: Vec<i64> = beams().map(|beam| beam.row).collect();
        let tokens: Vec<i64> = beams().map(|beam| *beam.ids.last().expect("a step adds a token")).collect();
        rules.advance(&rows, &tokens);
        decoder.advance(&rows, &tokens);
        for (row, beam) in items.iter_mut().flat_map(|item| &mut item.beams).enumerate() {
            beam.row = row as i64;
        }
        scores = decoder.scores();
    }
    for texts in &mut done {
        texts.truncate(settings.num_return_sequences);
    }
    done
}

/// The best ways to go on for each item; `log_probabilities` `[R, N]` are of the decoder's rows.
fn candidates(items: &[Item], log_probabilities: &Tensor, num_ends: usize) -> Vec<Vec<Candidate>> {
    let (device, vocabulary) = (log_probabilities.device(), log_probabilities.size()[1]);
    let beams = || items.iter().flat_map(|item| &item.beams);
    let rows: Vec<i64> = beams().map(|beam| beam.row).collect();
    let sums: Vec<f32> = beams().map(|beam| beam.sum).collect();
    let num_beams = (rows.len() / items.len()) as i64;
    let each = log_probabilities.index_select(0, &Tensor::from_slice(&rows).to_device(device));
    let totals = each + Tensor::from_slice(&sums).to_device(device).unsqueeze(1);
    let totals = totals.view([items.len() as i64, num_beams * vocabulary]);
    // With every end of text among the best, there are still so many left as there are beams.
    let count = (num_beams * (1 + num_ends as i64).max(2)).min(num_beams * vocabulary);
    let (best, places) = totals.topk(count, 1, true, true);
    let best = to_host(&best);
    let places: Vec<i64> = Vec::try_from(places.to_device(Device::Cpu).view([-1])).expect("integers");
    let all: Vec<Candidate> = best
        .into_iter()
        .zip(places)
        .map(|(sum, place)| Candidate { sum, beam: (place / vocabulary) as usize, token: place % vocabulary })
        .collect();
    let mut all = all.into_iter();
    items.iter().map(|_| all.by_ref().take(count as usize).collect()).collect()
}

impl Item {
    /// All beams are one text at first, so that all but one count for nothing.
    fn new(index: usize, num_beams: usize) -> Self {
        let beam =
            |i: usize| Beam { sum: if i == 0 { 0.0 } else { NONE }, ids: Vec::new(), row: index as i64 };
        Self { index, beams: (0..num_beams).map(beam).collect(), finished: Vec::new(), is_open: true }
    }

    /// Takes the candidates of one step, which have `length` new tokens each.
    fn step(&mut self, candidates: &[Candidate], length: usize, options: &GenerateOptions, settings: &Beams) {
        let num_beams = settings.num_beams;
        let is_full_length = length == options.max_new_tokens;
        let is_end = |candidate: &&Candidate| options.end.contains(&candidate.token);
        for candidate in candidates.iter().take(num_beams).filter(|it| is_full_length || is_end(it)) {
            let beam = self.extended(candidate, 0.0);
            self.finish(beam, length, options, settings);
        }
        let going_on = candidates.iter().filter(|it| !is_end(it)).map(|it| (it, 0.0));
        // Only where the vocabulary is tiny is there nothing else to go on with.
        let ended = candidates.iter().filter(is_end).map(|it| (it, NONE));
        let next: Vec<Beam> =
            going_on.chain(ended).take(num_beams).map(|(it, less)| self.extended(it, less)).collect();
        self.beams = next;
        self.is_open = self.may_improve(length, options, settings);
    }

    fn extended(&self, candidate: &Candidate, less: f32) -> Beam {
        let before = &self.beams[candidate.beam];
        let ids = before.ids.iter().copied().chain([candidate.token]).collect();
        Beam { sum: candidate.sum + less, ids, row: before.row }
    }

    /// Puts a text among the finished ones, best first, and drops the worst.
    fn finish(&mut self, mut beam: Beam, length: usize, options: &GenerateOptions, settings: &Beams) {
        let score = f64::from(beam.sum) / (length as f64).powf(settings.length_penalty);
        let end = beam.ids.last().copied().filter(|id| options.end.contains(id));
        if end.is_some() {
            beam.ids.pop();
        }
        let place = self.finished.partition_point(|other| other.score >= Some(score));
        self.finished.insert(place, Generated { ids: beam.ids, end, score: Some(score) });
        self.finished.truncate(settings.num_beams);
    }

    /// Whether looking further can change what is returned.
    fn may_improve(&self, length: usize, options: &GenerateOptions, settings: &Beams) -> bool {
        let Some(worst) = self.finished.get(settings.num_beams - 1).and_then(|worst| worst.score) else {
            return true;
        };
        let penalty = settings.length_penalty;
        let length = match settings.early_stopping {
            EarlyStopping::Immediate => return false,
            EarlyStopping::Never if penalty > 0.0 => options.max_new_tokens,
            EarlyStopping::Never | EarlyStopping::Heuristic => length,
        };
        f64::from(self.beams[0].sum) / (length as f64).powf(penalty) > worst
    }
}
