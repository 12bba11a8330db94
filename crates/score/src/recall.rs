//! Retrieval recalls, as LAVIS's retrieval task reports them (paper, table 5).

/// Share of queries, 0 to 1, whose right partner is among the best 1, 5 or 10.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recalls {
    /// Among the best 1.
    pub r1: f64,
    /// Among the best 5.
    pub r5: f64,
    /// Among the best 10.
    pub r10: f64,
}

/// Recalls of a score matrix `[n, n]` (row-major, a row is a query) whose diagonal holds the right pairs; no queries
/// have recalls of 0.
///
/// # Panics
/// When `scores` does not hold n x n values.
pub fn diagonal_recalls(scores: &[f32], n: usize) -> Recalls {
    let right: Vec<Vec<usize>> = (0..n).map(|query| vec![query]).collect();
    retrieval_recalls(scores, n, n, &right)
}

/// Recalls of a score matrix `[rows, columns]` (row-major, a row is a query); `right[row]` lists the columns that are
/// right for that query, and finding one of them is enough.
///
/// A larger score is a better one. Equal scores have no order, so a query adds the *expected* value over all orders of
/// its ties: a model whose scores are all the same gets chance, wherever the right pairs stand. A NaN ranks behind every
/// number, and a right pair that is NaN is never found. Without ties and NaN the figures are LAVIS's.
///
/// # Panics
/// When `scores` or `right` do not have the sizes that `rows` and `columns` say, or `right` names a column beyond them.
pub fn retrieval_recalls(scores: &[f32], rows: usize, columns: usize, right: &[Vec<usize>]) -> Recalls {
    assert_eq!(scores.len(), rows * columns, "scores are [rows, columns]");
    assert_eq!(right.len(), rows, "right columns are listed for each row");
    let mut found = [0.0; 3];
    for (row, right) in right.iter().enumerate() {
        let row = &scores[row * columns..][..columns];
        for (sum, k) in found.iter_mut().zip([1, 5, 10]) {
            *sum += chance_among_best(row, right, k);
        }
    }
    let [r1, r5, r10] = found.map(|sum| sum / rows.max(1) as f64);
    Recalls { r1, r5, r10 }
}

/// Probability that one of the right columns is among the best k, over all orders of equal scores.
fn chance_among_best(row: &[f32], right: &[usize], k: usize) -> f64 {
    let numbers = right.iter().map(|&column| row[column]).filter(|score| !score.is_nan());
    let Some(best) = numbers.max_by(f32::total_cmp) else { return 0.0 };
    let better = row.iter().filter(|&&score| score > best).count();
    let tied = row.iter().filter(|&&score| score == best).count();
    let right_tied = right.iter().filter(|&&column| row[column] == best).count();
    // Drawing `places` of the tied columns without putting back: the chance that all of them are wrong.
    let places = k.saturating_sub(better).min(tied);
    let all_wrong =
        (0..places).map(|drawn| (tied - right_tied).saturating_sub(drawn) as f64 / (tied - drawn) as f64);
    1.0 - all_wrong.product::<f64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_perfect_and_a_reversed_matrix() {
        let n = 12;
        let matrix = |right: f32| -> Vec<f32> {
            (0..n * n).map(|at| if at / n == at % n { right } else { 0.5 - at as f32 * 1e-4 }).collect()
        };
        assert_eq!(diagonal_recalls(&matrix(1.0), n), Recalls { r1: 1.0, r5: 1.0, r10: 1.0 });
        assert_eq!(diagonal_recalls(&matrix(-1.0), n), Recalls::default());
        assert_eq!(diagonal_recalls(&[], 0), Recalls::default());
    }

    #[test]
    fn equal_scores_give_chance() {
        let recalls = diagonal_recalls(&[0.3; 400], 20);
        assert!((recalls.r1 - 0.05).abs() < 1e-12 && (recalls.r5 - 0.25).abs() < 1e-12, "{recalls:?}");
        // Two right columns of six: 1 - (4 * 3) / (6 * 5) among the best 2, here 1 - 4/6 among the best 1.
        let several = retrieval_recalls(&[0.0; 6], 1, 6, &[vec![1, 4]]);
        assert!((several.r1 - 1.0 / 3.0).abs() < 1e-12 && several.r5 == 1.0, "{several:?}");
    }

    #[test]
    fn nan_ranks_last() {
        let scores = [f32::NAN, 0.1, 0.2, 0.3, f32::NAN, f32::NAN, 0.1, 0.2, 0.3];
        let recalls = diagonal_recalls(&scores, 3);
        // Row 0: its pair is NaN. Row 1 (0.3, NaN, NaN): NaN as well. Row 2: 0.3 is the best.
        assert!((recalls.r1 - 1.0 / 3.0).abs() < 1e-12 && (recalls.r5 - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(retrieval_recalls(&[f32::NAN, -9.0], 1, 2, &[vec![1]]).r1, 1.0);
    }

    proptest! {
        /// Where all scores differ, sorting says the same.
        #[test]
        fn agrees_with_sorting(shuffled in Just((0..60).collect::<Vec<u8>>()).prop_shuffle(), right in 0usize..20) {
            let scores: Vec<f32> = shuffled.iter().map(|&score| f32::from(score)).collect();
            let right = [vec![right], vec![right, (right + 7) % 20], vec![(right + 3) % 20]];
            let recalls = retrieval_recalls(&scores, 3, 20, &right);
            let found = |k: usize| {
                let row = |row: usize| {
                    let mut order: Vec<usize> = (0..20).collect();
                    order.sort_by(|a, b| scores[row * 20 + b].total_cmp(&scores[row * 20 + a]));
                    order[..k].iter().any(|column| right[row].contains(column))
                };
                (0..3).filter(|&r| row(r)).count() as f64 / 3.0
            };
            for (recall, k) in [(recalls.r1, 1), (recalls.r5, 5), (recalls.r10, 10)] {
                prop_assert!((recall - found(k)).abs() < 1e-12);
            }
        }

        #[test]
        fn any_scores_give_shares_that_grow_with_k(scores in proptest::collection::vec(
            prop_oneof![any::<f32>(), Just(f32::NAN), Just(0.0), Just(-1e4)], 36)) {
            let Recalls { r1, r5, r10 } = diagonal_recalls(&scores, 6);
            prop_assert!(0.0 <= r1 && r1 <= r5 + 1e-12 && r5 <= r10 + 1e-12 && r10 <= 1.0);
        }
    }
}
