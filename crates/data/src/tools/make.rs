//! Pictures and annotations become shards.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::annotations::Record;
use super::shard::ShardWriter;
use super::{ToolError, annotations, find};
use crate::decode::{DecodeOptions, Decoded, decode};
use crate::error::SkipReason;
use crate::ordered::Ordered;
use crate::resize::{Crop, bicubic};
use crate::sample::MAX_IMAGE_BYTES;

/// Finished samples that each thread may hold.
const SAMPLES_AHEAD: usize = 16;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Pictures that are named when they are left out; all are counted.
const NAMED: u64 = 5;

/// What to make of what.
#[derive(Debug, Clone)]
pub struct MakeOptions {
    /// The pictures: what annotations name lies in here; without annotations, everything in here is taken.
    pub images: PathBuf,
    /// Annotation files; their records follow one another.
    pub annotations: Vec<PathBuf>,
    /// Gets the shards; made if it is not there.
    pub out: PathBuf,
    /// Shards are `NAME-000000.tar` and so on.
    pub name: String,
    /// Samples of one shard, at least 1.
    pub samples_per_shard: usize,
    /// Pictures whose shorter side is longer than this are scaled down to it and stored as JPEG; `None` keeps every
    /// file byte for byte.
    pub shorter_side: Option<usize>,
    /// JPEG quality of scaled pictures, 1 to 100.
    pub quality: u8,
    /// Threads.
    pub workers: usize,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made {
    /// The shards, in order.
    pub shards: Vec<PathBuf>,
    /// Samples in them.
    pub samples: u64,
    /// Captions in them.
    pub captions: u64,
    /// Pictures that were scaled down.
    pub resized: u64,
    /// Pictures that were left out, by reason.
    pub skipped: BTreeMap<SkipReason, u64>,
}

/// Makes the shards; `say` gets lines of progress and the first pictures that are left out.
///
/// A picture that cannot be decoded, or has no caption, is left out and counted. Errors: annotations that do not
/// parse, nothing usable, shards that are there already, the disk.
pub fn make(options: &MakeOptions, say: &dyn Fn(&str)) -> Result<Made, ToolError> {
    let records = Arc::new(records(options)?);
    std::fs::create_dir_all(&options.out).map_err(ToolError::writing(&options.out))?;
    if let Some(path) = shard_there(options).map_err(ToolError::reading(&options.out))? {
        return Err(ToolError::Exists { path });
    }
    say(&format!("{} pictures", records.len()));
    let workers = options.workers.min(records.len());
    let samples = {
        let (records, options) = (Arc::clone(&records), options.clone());
        let make = move |number: u64| Some(prepare(records.get(usize::try_from(number).ok()?)?, &options));
        Ordered::start("make", workers, SAMPLES_AHEAD, make)?
    };
    let mut writer = Writer { options, say, made: Made::default(), open: None, in_shard: 0 };
    let start = Instant::now();
    let mut said = start;
    for (number, sample) in samples.enumerate() {
        writer.add(&records[number], sample?)?;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let rate = (number + 1) as f64 / start.elapsed().as_secs_f64();
            say(&format!("{} of {} pictures, {rate:.0} a second", number + 1, records.len()));
        }
    }
    let made = writer.finish()?;
    if made.samples == 0 {
        let problem = format!("none of its pictures can be used: {}", reasons(&made.skipped));
        return Err(ToolError::Nothing { path: options.images.clone(), problem });
    }
    Ok(made)
}

/// `reason n, reason n`.
fn reasons(skipped: &BTreeMap<SkipReason, u64>) -> String {
    skipped.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

fn records(options: &MakeOptions) -> Result<Vec<Record>, ToolError> {
    if options.annotations.is_empty() {
        return find::pictures(&options.images);
    }
    let mut records = Vec::new();
    for path in &options.annotations {
        records.extend(annotations::read(path)?);
    }
    Ok(records)
}

fn shard_path(options: &MakeOptions, number: usize) -> PathBuf {
    options.out.join(format!("{}-{number:06}.tar", options.name))
}

/// The first shard of the name that is there, whatever its number: of fewer shards than there were, the old rest would
/// be read with the new ones.
fn shard_there(options: &MakeOptions) -> io::Result<Option<PathBuf>> {
    let of_name = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        let number = name.strip_prefix(&options.name)?.strip_prefix('-')?.strip_suffix(".tar")?;
        Some(number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let paths = std::fs::read_dir(&options.out)?.map(|entry| entry.map(|entry| entry.path()));
    let paths: Vec<PathBuf> = paths.collect::<io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| of_name(path) == Some(true)).min())
}

/// The members of one sample, without their key.
struct Prepared {
    extension: &'static str,
    image: Vec<u8>,
    json: Vec<u8>,
    captions: u64,
    resized: bool,
}

/// Reads, checks and, where asked for, scales one picture.
fn prepare(record: &Record, options: &MakeOptions) -> Result<Prepared, SkipReason> {
    let captions: Vec<&str> =
        record.captions.iter().map(|caption| caption.trim()).filter(|caption| !caption.is_empty()).collect();
    match (captions.is_empty(), record.captions.is_empty()) {
        (true, true) => return Err(SkipReason::CaptionMissing),
        (true, false) => return Err(SkipReason::CaptionEmpty),
        (false, _) => {}
    }
    let image = read_picture(&options.images.join(&record.image))?;
    let decoded = decode(&image, &DecodeOptions::default())?;
    let (extension, image, resized) = match scaled(&decoded, options) {
        Some(jpeg) => ("jpg", jpeg?, true),
        None => (extension(&image), image, false),
    };
    let mut fields = record.rest.clone();
    fields.insert(
        "caption".to_owned(),
        match captions.as_slice() {
            [one] => Value::from(*one),
            several => several.iter().map(|&caption| Value::from(caption)).collect(),
        },
    );
    fields.insert("image".to_owned(), record.image.as_str().into());
    let json = serde_json::to_vec(&fields).map_err(|_| SkipReason::CaptionJsonInvalid)?;
    Ok(Prepared { extension, image, json, captions: captions.len() as u64, resized })
}

fn read_picture(path: &Path) -> Result<Vec<u8>, SkipReason> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_IMAGE_BYTES => Err(SkipReason::ImageTooLarge),
        Ok(_) => std::fs::read(path).map_err(|_| SkipReason::Unreadable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(SkipReason::ImageMissing),
        Err(_) => Err(SkipReason::Unreadable),
    }
}

/// The file's extension by its bytes, which decoded.
fn extension(bytes: &[u8]) -> &'static str {
    match bytes.first() {
        Some(0xff) => "jpg",
        Some(0x89) => "png",
        _ => "webp",
    }
}

/// The picture as a smaller JPEG, if it is larger than asked for.
fn scaled(decoded: &Decoded, options: &MakeOptions) -> Option<Result<Vec<u8>, SkipReason>> {
    let short = decoded.width.min(decoded.height);
    let wanted = options.shorter_side.filter(|&wanted| wanted < short)?;
    let side = |length: usize| (length * wanted).div_ceil(short).max(1);
    let (width, height) = (side(decoded.width), side(decoded.height));
    let whole = Crop { top: 0, left: 0, height: decoded.height, width: decoded.width };
    let pixels = bicubic(&decoded.rgb, decoded.width, whole, width, height);
    Some(jpeg(&pixels, width, height, options.quality).ok_or(SkipReason::ImageCorrupt))
}

/// RGB as a JPEG; `None` for sizes that a JPEG cannot have.
pub(super) fn jpeg(pixels: &[u8], width: usize, height: usize, quality: u8) -> Option<Vec<u8>> {
    let format = turbojpeg::PixelFormat::RGB;
    let image = turbojpeg::Image { pixels, width, pitch: width * 3, height, format };
    turbojpeg::compress(image, quality.into(), turbojpeg::Subsamp::Sub2x2).ok().map(|bytes| bytes.to_vec())
}

/// Puts samples into shards.
struct Writer<'a> {
    options: &'a MakeOptions,
    say: &'a dyn Fn(&str),
    made: Made,
    open: Option<ShardWriter>,
    in_shard: usize,
}

impl Writer<'_> {
    fn add(&mut self, record: &Record, sample: Result<Prepared, SkipReason>) -> Result<(), ToolError> {
        let sample = match sample {
            Ok(sample) => sample,
            Err(reason) => {
                if self.made.skipped.values().sum::<u64>() < NAMED {
                    (self.say)(&format!("left out {}: {reason}", record.image.escape_debug()));
                }
                *self.made.skipped.entry(reason).or_default() += 1;
                return Ok(());
            }
        };
        let path = shard_path(self.options, self.made.shards.len());
        let failed = |source| ToolError::Io { path: path.clone(), what: "written", source };
        let shard = match &mut self.open {
            Some(shard) => shard,
            none => none.insert(ShardWriter::create(&path).map_err(failed)?),
        };
        // As img2dataset numbers them: the number of the shard, then that of the sample in it.
        let key = format!("{:06}{:06}", self.made.shards.len(), self.in_shard);
        shard.add(&format!("{key}.{}", sample.extension), &sample.image).map_err(failed)?;
        shard.add(&format!("{key}.json"), &sample.json).map_err(failed)?;
        self.in_shard += 1;
        self.made.samples += 1;
        self.made.captions += sample.captions;
        self.made.resized += u64::from(sample.resized);
        if self.in_shard >= self.options.samples_per_shard {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ToolError> {
        if let Some(shard) = self.open.take() {
            let path = shard_path(self.options, self.made.shards.len());
            self.made.shards.push(shard.finish().map_err(ToolError::writing(path))?);
            self.in_shard = 0;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Made, ToolError> {
        self.close()?;
        Ok(self.made)
    }
}

impl Made {
    /// `reason n, reason n` of what was left out; `None` if nothing was.
    pub fn left_out(&self) -> Option<String> {
        (!self.skipped.is_empty()).then(|| reasons(&self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_shard_of_the_name_is_in_the_way_and_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let options = MakeOptions {
            images: dir.path().join("none"),
            annotations: vec![],
            out: dir.path().into(),
            name: "train".into(),
            samples_per_shard: 10,
            shorter_side: None,
            quality: 90,
            workers: 1,
        };
        for name in
            ["train-000001.tar.index", "train-1.tar", "train-00000x.tar", "val-000000.tar", "train.tar"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(shard_there(&options).unwrap(), None);
        // What an earlier, longer set left.
        for name in ["train-000007.tar", "train-000003.tar"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(shard_there(&options).unwrap(), Some(dir.path().join("train-000003.tar")));
    }
}
