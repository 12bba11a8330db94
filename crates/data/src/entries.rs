//! Where samples lie, in few bytes each: every rank holds this table of all samples.

use sha2::{Digest, Sha256};

use crate::index_file::hex;
use crate::scan::{ImageKind, Members, Span};

/// One usable sample: an image and at least one source of captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleEntry<'a> {
    /// Name of the sample, unique over the shards of its folder.
    pub key: &'a str,
    /// Number of its shard, see [`crate::Index::shard`].
    pub shard: u32,
    /// The image.
    pub image: Span,
    /// What the image's name says it is.
    pub image_kind: ImageKind,
    /// The `.txt`, if there is one.
    pub text: Option<Span>,
    /// The `.json`, if there is one.
    pub json: Option<Span>,
}

/// The samples of all shards, in their order: 44 bytes each, and the key.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    shards: Vec<Start>,
    rows: Vec<Row>,
    /// Every key, one behind the other.
    keys: String,
}

/// Where a shard's samples and their keys begin.
#[derive(Debug, Clone, Copy)]
struct Start {
    row: usize,
    key: usize,
}

#[derive(Debug)]
struct Row {
    image: Place,
    text: Place,
    json: Place,
    /// Behind the key, counted from where the shard's keys begin.
    key_end: u32,
    image_kind: ImageKind,
}

/// A [`Span`] or none in twelve bytes: offset (low, high), size. Sizes above 4 GiB are kept as 4 GiB; nobody reads so much.
#[derive(Debug, Clone, Copy)]
struct Place([u32; 3]);

impl Place {
    const NONE: Self = Self([u32::MAX; 3]);

    fn of(span: Option<Span>) -> Self {
        let Some(Span { offset, size }) = span else { return Self::NONE };
        let [low, high] = [offset as u32, (offset >> 32) as u32];
        Self([low, high, u32::try_from(size).unwrap_or(u32::MAX)])
    }

    fn span(self) -> Option<Span> {
        let Self([low, high, size]) = self;
        // No file is so long that a member could begin there.
        (self.0 != Self::NONE.0)
            .then(|| Span { offset: u64::from(high) << 32 | u64::from(low), size: u64::from(size) })
    }
}

impl Entries {
    /// What comes from now on is of the next shard.
    pub fn begin_shard(&mut self) {
        self.shards.push(Start { row: self.rows.len(), key: self.keys.len() });
    }

    /// Adds a sample of the shard that was begun last; false where its shard's keys are above 4 GiB.
    pub fn push(&mut self, sample: &Members) -> bool {
        let start = self.shards.last().map_or(0, |start| start.key);
        let Ok(key_end) = u32::try_from(self.keys.len() + sample.key.len() - start) else { return false };
        self.keys.push_str(&sample.key);
        self.rows.push(Row {
            image: Place::of(Some(sample.image)),
            text: Place::of(sample.text),
            json: Place::of(sample.json),
            key_end,
            image_kind: sample.image_kind,
        });
        true
    }

    /// Gives back the room for more.
    pub fn close(&mut self) {
        self.rows.shrink_to_fit();
        self.keys.shrink_to_fit();
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Sample `number`, below [`Entries::len`].
    pub fn get(&self, number: usize) -> SampleEntry<'_> {
        // The last of those that begin here: an empty shard begins where the next one does.
        let shard = self.shards.partition_point(|start| start.row <= number) - 1;
        let (start, row) = (self.shards[shard], &self.rows[number]);
        let key_start = if number == start.row { 0 } else { self.rows[number - 1].key_end };
        SampleEntry {
            key: &self.keys[start.key + key_start as usize..start.key + row.key_end as usize],
            shard: shard as u32,
            image: row.image.span().unwrap_or(Span { offset: 0, size: 0 }),
            image_kind: row.image_kind,
            text: row.text.span(),
            json: row.json.span(),
        }
    }

    /// SHA-256 over keys, shard numbers, offsets and sizes, in hex.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, value: u64| hash.update(value.to_le_bytes());
        for entry in (0..self.len()).map(|number| self.get(number)) {
            number(&mut hash, entry.key.len() as u64);
            hash.update(entry.key.as_bytes());
            number(&mut hash, u64::from(entry.shard));
            for span in [Some(entry.image), entry.text, entry.json] {
                let span = span.unwrap_or(Span { offset: 0, size: 0 });
                number(&mut hash, span.offset);
                number(&mut hash, span.size);
            }
        }
        hex(&hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span() -> impl Strategy<Value = Span> {
        (0u64..1 << 60, 0u64..1 << 32).prop_map(|(offset, size)| Span { offset, size })
    }

    fn members() -> impl Strategy<Value = Members> {
        let kind = prop_oneof![Just(ImageKind::Jpeg), Just(ImageKind::Png), Just(ImageKind::Webp)];
        let sidecar = || prop::option::of(span());
        ("\\PC{0,12}", span(), kind, sidecar(), sidecar()).prop_map(|(key, image, image_kind, text, json)| {
            Members { key: key.into(), image, image_kind, text, json }
        })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(shards in prop::collection::vec(prop::collection::vec(members(), 0..4), 1..6)) {
            let mut entries = Entries::default();
            for shard in &shards {
                entries.begin_shard();
                prop_assert!(shard.iter().all(|sample| entries.push(sample)));
            }
            entries.close();
            let all = shards.iter().enumerate().flat_map(|(number, shard)| shard.iter().map(move |it| (number, it)));
            for (number, (shard, Members { key, image, image_kind, text, json })) in all.enumerate() {
                let wanted = SampleEntry {
                    key, shard: shard as u32, image: *image, image_kind: *image_kind, text: *text, json: *json,
                };
                prop_assert_eq!(entries.get(number), wanted);
            }
            prop_assert_eq!(entries.len(), shards.iter().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn a_row_is_44_bytes() {
        assert_eq!(size_of::<Row>(), 44);
    }
}
