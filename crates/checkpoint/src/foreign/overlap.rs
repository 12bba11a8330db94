//! Two tensors that claim the same bytes: no program writes that, and what one reads is then the other's.

/// The first two of `ranges` (start, length in bytes, name) that share a byte. Empty ranges share none.
pub(super) fn first_overlap<'a>(
    ranges: impl IntoIterator<Item = (u64, u64, &'a str)>,
) -> Option<(&'a str, &'a str)> {
    let mut ranges: Vec<_> = ranges.into_iter().filter(|(_, len, _)| *len > 0).collect();
    ranges.sort_unstable();
    let meet = |pair: &&[(u64, u64, &'a str)]| pair[0].0.saturating_add(pair[0].1) > pair[1].0;
    ranges.windows(2).find(meet).map(|pair| (pair[0].2, pair[1].2))
}

#[cfg(test)]
mod tests {
    use super::first_overlap;

    #[test]
    fn neighbours_are_no_overlap_and_one_byte_is() {
        assert_eq!(first_overlap([(8, 8, "b"), (0, 8, "a"), (8, 0, "empty")]), None);
        assert_eq!(first_overlap([(7, 8, "b"), (0, 8, "a")]), Some(("a", "b")));
        assert_eq!(first_overlap([(0, u64::MAX, "a"), (u64::MAX - 1, 8, "b")]), Some(("a", "b")));
    }
}
