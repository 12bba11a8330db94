//! Numbers of telephones, and what looks like them: `(555) 555-1234`, `100 200 3000`.

use super::shapes::digits;

/// Length of the number that `text` begins with, blanks included; 0 where it begins with none.
pub(super) fn phone(text: &[char]) -> usize {
    if text.first() == Some(&'(') {
        let area = digits(&text[1..]);
        let is_area = (2..=3).contains(&area) && text.get(area + 1) == Some(&')');
        let end = area + 2;
        return if is_area { subscriber(text, end + usize::from(is_blank(text.get(end)))) } else { 0 };
    }
    let sign = text.iter().take(2).take_while(|c| **c == '+').count();
    let first = group(text, sign);
    let second = first.and_then(|end| group(text, end));
    let of = |end: Option<usize>| end.map_or(0, |end| subscriber(text, end));
    of(first).max(of(second))
}

/// The end of two to four digits and what divides them from the next ones.
fn group(text: &[char], start: usize) -> Option<usize> {
    let length = digits(&text[start..]);
    let end = start + length;
    ((2..=4).contains(&length) && is_divider(text.get(end))).then_some(end + 1)
}

/// The end of three or four digits and three to five more, divided or not.
fn subscriber(text: &[char], start: usize) -> usize {
    let Some(rest) = text.get(start..) else { return 0 };
    let length = digits(rest);
    let behind = match length {
        3 | 4 if is_divider(rest.get(length)) => digits(&rest[length + 1..]),
        _ => 0,
    };
    match (length, behind) {
        (6.., _) => start + length.min(9),
        (_, 3..) => start + length + 1 + behind.min(5),
        _ => 0,
    }
}

fn is_blank(character: Option<&char>) -> bool {
    matches!(character, Some(' ' | '\u{a0}'))
}

fn is_divider(character: Option<&char>) -> bool {
    is_blank(character) || character == Some(&'-')
}
