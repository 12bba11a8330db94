//! The records of a PAX extended header: `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
//!
//! Lengths alone say where a record ends: a value may hold newlines, and what looks like a record behind one is none.

/// What the records of one header say of the member behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Records<'a> {
    /// `path`, if it is not empty.
    pub(super) path: Option<&'a [u8]>,
    /// `size`.
    pub(super) size: Option<u64>,
    /// Whether there is a record of a sparse file (`GNU.sparse.*`): its bytes are not the member's contents.
    pub(super) sparse: bool,
}

/// Reads the records; of two with one key the last one counts, as in Python. `None`: they are no such records.
pub(super) fn records(mut bytes: &[u8]) -> Option<Records<'_>> {
    let mut found = Records::default();
    while let Some(&first) = bytes.first() {
        if first == 0 {
            break; // padding
        }
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        let length = usize::try_from(number(&bytes[..space])?).ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => found.path = Some(value).filter(|value| !value.is_empty()),
            b"size" => found.size = Some(number(value)?),
            _ => found.sparse |= key.starts_with(b"GNU.sparse."),
        }
        bytes = &bytes[length..];
    }
    Some(found)
}

/// Decimal digits and nothing else, at most twenty.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = digits.len() <= 20 && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One record, as `pax` and Python write it: the length counts its own digits.
    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn a_newline_in_a_value_ends_no_record_and_hides_none() {
        let bytes = [record(b"comment", b"a\n12 size=99\nb"), record(b"size", b"1024")].concat();
        assert_eq!(records(&bytes).unwrap().size, Some(1024));
        let bytes = [record(b"path", b"a\nb.jpg"), record(b"path", b"c\n"), record(b"mtime", b"")].concat();
        assert_eq!(records(&bytes).unwrap().path, Some(&b"c\n"[..]));
        assert!(records(&record(b"GNU.sparse.major", b"1")).unwrap().sparse);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let padded = [record(b"size", b"7"), vec![0; 9]].concat();
        assert_eq!(records(&padded).unwrap().size, Some(7));
        for wrong in
            ["5 x=", "9 x=\n", "x", "-5 x=\n", "+5 x=\n", "6 =ab\n", "6 size\n", "10 size=x\n", "4 =\n"]
        {
            assert_eq!(records(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            pairs in prop::collection::vec(("(path|comment|GNU\\.sparse\\.name|é)", prop::collection::vec(any::<u8>(), 0..120)), 0..5),
            size in prop::option::of(any::<u64>()),
        ) {
            let mut bytes: Vec<u8> = pairs.iter().flat_map(|(key, value)| record(key.as_bytes(), value)).collect();
            bytes.extend(size.into_iter().flat_map(|size| record(b"size", size.to_string().as_bytes())));
            let last = pairs.iter().rev().find(|(key, _)| key == "path").map(|(_, value)| &value[..]);
            let expected = Records {
                path: last.filter(|value| !value.is_empty()),
                size,
                sparse: pairs.iter().any(|(key, _)| key.starts_with("GNU")),
            };
            prop_assert_eq!(records(&bytes), Some(expected));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), digits in 0usize..90) {
            let _ = records(&bytes);
            let _ = records(&[digits.to_string().as_bytes(), b" path=", &bytes, b"\n"].concat());
        }
    }
}
