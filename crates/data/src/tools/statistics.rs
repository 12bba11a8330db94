//! Numbers about a data set, kept as counts so that any number of samples costs the same memory.

use std::collections::BTreeMap;

use crate::index::ImageKind;
use crate::sample::Captions;

/// How one quantity is spread over the samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    counts: BTreeMap<u64, u64>,
    total: u64,
}

impl Spread {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        *self.counts.entry(value).or_default() += 1;
        self.total += 1;
    }

    /// The smallest value that at least this share (0 to 1) of all values does not exceed; 0 without values.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = ((share * self.total as f64).ceil() as u64).max(1);
        let mut below = 0;
        for (&value, &count) in &self.counts {
            below += count;
            if below >= wanted {
                return value;
            }
        }
        0
    }

    /// The mean; 0 without values.
    pub fn mean(&self) -> f64 {
        let sum: f64 = self.counts.iter().map(|(&value, &count)| value as f64 * count as f64).sum();
        sum / self.total.max(1) as f64
    }

    /// Smallest, 5 %, median, 95 %, largest.
    pub fn five(&self) -> [u64; 5] {
        [0.0, 0.05, 0.5, 0.95, 1.0].map(|share| self.quantile(share))
    }
}

/// A data set in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Shards.
    pub shards: u64,
    /// Samples that decode and have a caption.
    pub samples: u64,
    /// Captions of all of them.
    pub captions: u64,
    /// Bytes of all image files.
    pub image_bytes: u64,
    /// Samples by what the image's name says it is: JPEG, PNG, WebP.
    pub kinds: [u64; 3],
    /// Columns of the pictures.
    pub widths: Spread,
    /// Rows of the pictures.
    pub heights: Spread,
    /// Bytes of an image file, rounded up to KB.
    pub kilobytes: Spread,
    /// Captions of a sample.
    pub captions_each: Spread,
    /// Words of a caption.
    pub words: Spread,
}

impl Statistics {
    /// Counts one good sample.
    pub(super) fn add(&mut self, size: [usize; 2], bytes: u64, kind: ImageKind, captions: &Captions) {
        self.samples += 1;
        self.image_bytes += bytes;
        self.kinds[match kind {
            ImageKind::Jpeg => 0,
            ImageKind::Png => 1,
            ImageKind::Webp => 2,
        }] += 1;
        self.widths.add(size[0] as u64);
        self.heights.add(size[1] as u64);
        self.kilobytes.add(bytes.div_ceil(1000));
        self.captions_each.add(captions.captions.len() as u64);
        for caption in &captions.captions {
            self.captions += 1;
            self.words.add(caption.split_whitespace().count() as u64);
        }
    }

    /// Name and value of each number, for people.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let [jpeg, png, webp] = self.kinds;
        let spread = |spread: &Spread| {
            let [least, low, middle, high, most] = spread.five();
            format!("{middle} ({least} to {most}, 90 % in {low} to {high}, mean {:.1})", spread.mean())
        };
        vec![
            ("shards", self.shards.to_string()),
            ("samples", format!("{} (JPEG {jpeg}, PNG {png}, WebP {webp})", self.samples)),
            ("captions", self.captions.to_string()),
            ("pictures", format!("{:.1} MB", self.image_bytes as f64 / 1e6)),
            ("width", spread(&self.widths)),
            ("height", spread(&self.heights)),
            ("KB a picture", spread(&self.kilobytes)),
            ("captions a sample", spread(&self.captions_each)),
            ("words a caption", spread(&self.words)),
        ]
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let spread = |spread: &Spread| {
            let [min, p05, median, p95, max] = spread.five();
            serde_json::json!({"min": min, "p05": p05, "median": median, "p95": p95, "max": max, "mean": spread.mean()})
        };
        let [jpeg, png, webp] = self.kinds;
        serde_json::json!({
            "shards": self.shards, "samples": self.samples, "captions": self.captions,
            "image_bytes": self.image_bytes, "kinds": {"jpeg": jpeg, "png": png, "webp": webp},
            "width": spread(&self.widths), "height": spread(&self.heights),
            "kilobytes": spread(&self.kilobytes), "captions_each": spread(&self.captions_each),
            "words": spread(&self.words),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_mean() {
        let mut spread = Spread::default();
        assert_eq!((spread.five(), spread.mean()), ([0; 5], 0.0));
        (1..=100).for_each(|value| spread.add(value));
        assert_eq!((spread.five(), spread.mean()), ([1, 5, 50, 95, 100], 50.5));
    }
}
