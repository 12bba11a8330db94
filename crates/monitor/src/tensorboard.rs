//! TensorBoard event files: scalars for every number of a record, and the config as text.
//!
//! A file is a row of frames `length u64 | masked crc32c of the length | event | masked crc32c of the event`, little
//! endian, each event a protobuf message (tensorflow's `event.proto`, `summary.proto`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::error::MonitorError;
use crate::record::{RecordKind, StepRecord};

/// The folder's name inside the run directory: `tensorboard --logdir RUN/tensorboard`.
pub const TENSORBOARD_DIR: &str = "tensorboard";

/// What every event file's name begins with, and what TensorBoard looks for.
const FILE_PREFIX: &str = "events.out.tfevents.";

/// An event longer than this is damage: ours are below a kilobyte, and a config is below a megabyte.
const MAX_EVENT_BYTES: u64 = 16 << 20;

/// One message of an event file, as far as this crate writes it.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Unix time in seconds.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// The step on the chart's axis.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// In the first event of a file: `brain.Event:2`.
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    /// In all others: the values.
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
}

/// The values of one event.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// Tagged values.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// A tagged scalar (`simple_value`) or text (`tensor` with the plugin's name in `metadata`).
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// Such as `stage1/loss_itc`.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// A scalar.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
    /// A text.
    #[prost(message, optional, tag = "8")]
    pub tensor: Option<TextTensor>,
    /// Which of TensorBoard's plugins shows the value.
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
}

/// tensorflow's `TensorProto`, reduced to strings.
#[derive(Clone, PartialEq, Message)]
pub struct TextTensor {
    /// `DT_STRING` is 7.
    #[prost(int32, tag = "1")]
    pub dtype: i32,
    /// One dimension of size 1.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
    /// The text, Markdown in UTF-8.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub string_val: Vec<Vec<u8>>,
}

/// tensorflow's `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    /// Sizes.
    #[prost(message, repeated, tag = "2")]
    pub dim: Vec<Dim>,
}

/// One size of a [`Shape`].
#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    /// The size.
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// tensorflow's `SummaryMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The plugin.
    #[prost(message, optional, tag = "1")]
    pub plugin_data: Option<Plugin>,
}

/// The name of a plugin of TensorBoard, such as `text`.
#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    /// The name.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
}

/// An open event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    length: u64,
    path: PathBuf,
    run_began: f64,
}

impl EventWriter {
    /// Starts the one event file of `folder`; event files of earlier sessions in it are removed, because
    /// `metrics.jsonl` holds their numbers and the caller writes those that stay again (so a step that was taken twice
    /// shows once). `run_began` is the Unix time, in seconds, at which `time_seconds` was 0.
    ///
    /// # Errors
    /// [`MonitorError::Write`].
    pub fn create(folder: &Path, run_began: f64) -> Result<Self, MonitorError> {
        fs::create_dir_all(folder).map_err(MonitorError::write(folder))?;
        let (seconds, pid) = (run_began.max(0.0) as u64, std::process::id());
        let path = folder.join(format!("{FILE_PREFIX}{seconds:010}.blip2.{pid}"));
        for stale in event_files(folder)? {
            fs::remove_file(&stale).map_err(MonitorError::write(&stale))?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(MonitorError::write(&path))?;
        let mut writer = Self { file, length: 0, path, run_began };
        let version = Some("brain.Event:2".to_owned());
        writer.write(&Event { wall_time: run_began, file_version: version, ..Event::default() })?;
        Ok(writer)
    }

    /// Writes all numbers of `record`, as one event.
    ///
    /// # Errors
    /// [`MonitorError::Write`].
    pub fn record(&mut self, record: &StepRecord) -> Result<(), MonitorError> {
        let value = scalars(record)
            .into_iter()
            .map(|(tag, number)| Value { tag, simple_value: Some(number as f32), ..Value::default() })
            .collect();
        self.write(&Event {
            wall_time: self.run_began
                + if record.time_seconds.is_finite() { record.time_seconds } else { 0.0 },
            step: i64::try_from(record.step).unwrap_or(i64::MAX),
            file_version: None,
            summary: Some(Summary { value }),
        })
    }

    /// Writes a text (Markdown) under `tag`.
    ///
    /// # Errors
    /// [`MonitorError::Write`].
    pub fn text(&mut self, tag: &str, text: &str) -> Result<(), MonitorError> {
        let value = Value {
            tag: tag.to_owned(),
            simple_value: None,
            tensor: Some(TextTensor {
                dtype: 7,
                shape: Some(Shape { dim: vec![Dim { size: 1 }] }),
                string_val: vec![text.as_bytes().to_vec()],
            }),
            metadata: Some(Metadata { plugin_data: Some(Plugin { plugin_name: "text".to_owned() }) }),
        };
        let summary = Some(Summary { value: vec![value] });
        self.write(&Event { wall_time: self.run_began, step: 0, file_version: None, summary })
    }

    /// One frame, by one call, so that a reader that follows the file meets whole events.
    fn write(&mut self, event: &Event) -> Result<(), MonitorError> {
        let body = event.encode_to_vec();
        let length = (body.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(body.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(&body);
        frame.extend_from_slice(&masked_crc(&body).to_le_bytes());
        if let Err(error) = self.file.write_all(&frame) {
            let _ = self.file.set_len(self.length); // half a frame would hide all that follow
            return Err(MonitorError::write(&self.path)(error));
        }
        self.length += frame.len() as u64;
        Ok(())
    }
}

/// The event files of a folder, sorted by name.
///
/// # Errors
/// [`MonitorError::Read`].
pub fn event_files(folder: &Path) -> Result<Vec<PathBuf>, MonitorError> {
    let entries = fs::read_dir(folder).map_err(MonitorError::read(folder))?;
    let is_ours =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(FILE_PREFIX));
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_ours).collect();
    files.sort();
    Ok(files)
}

/// Reads an event file back, checking every checksum. A frame cut short at the end is left out: a writer may be at it.
///
/// # Errors
/// [`MonitorError::Read`]; [`MonitorError::Damaged`] when a checksum or a message is wrong.
pub fn read_events(path: &Path) -> Result<Vec<Event>, MonitorError> {
    let bytes = fs::read(path).map_err(MonitorError::read(path))?;
    parse_events(&bytes).map_err(|(offset, reason)| MonitorError::Damaged {
        path: path.to_owned(),
        offset,
        reason: reason.to_owned(),
    })
}

/// The events of a whole file in memory; the error is the offset of the frame and what is wrong with it.
fn parse_events(bytes: &[u8]) -> Result<Vec<Event>, (u64, &'static str)> {
    let mut events = Vec::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let offset = (bytes.len() - rest.len()) as u64;
        let Some((length_crc, after)) = after.split_first_chunk::<4>() else { break };
        if masked_crc(length) != u32::from_le_bytes(*length_crc) {
            return Err((offset, "the checksum of the length is wrong"));
        }
        let length = u64::from_le_bytes(*length);
        if length > MAX_EVENT_BYTES {
            return Err((offset, "the event is longer than 16 MiB"));
        }
        let Some((body, after)) = after.split_at_checked(length as usize) else { break };
        let Some((body_crc, after)) = after.split_first_chunk::<4>() else { break };
        if masked_crc(body) != u32::from_le_bytes(*body_crc) {
            return Err((offset, "the checksum of the event is wrong"));
        }
        events.push(Event::decode(body).map_err(|_| (offset, "the event is no protobuf message"))?);
        rest = after;
    }
    Ok(events)
}

/// Tag and value of every number of a record: `stage1/loss_itc`, `stage1/validation/loss_itc`.
fn scalars(record: &StepRecord) -> Vec<(String, f64)> {
    let phase = record.phase.name();
    let named = record.losses.iter().chain(&record.metrics).map(|(name, value)| (name.as_str(), *value));
    if record.kind == RecordKind::Validation {
        return named.map(|(name, value)| (format!("{phase}/validation/{name}"), value)).collect();
    }
    let own = [
        ("pairs_seen", record.pairs_seen as f64),
        ("pairs_per_second", record.pairs_per_second),
        ("step_seconds", record.step_seconds),
        ("data_wait_seconds", record.data_wait_seconds),
        ("comm_seconds", record.comm_seconds),
        ("comm_hidden_seconds", record.comm_hidden_seconds),
        ("bytes_reduced", record.bytes_reduced as f64),
        ("peak_memory_bytes", record.peak_memory_bytes as f64),
    ];
    let learning = [("lr", record.lr), ("grad_norm", record.grad_norm)];
    let learning = learning.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let left_out = record.left_out.iter();
    let left_out = left_out.map(|(reason, count)| (format!("{phase}/left_out/{reason}"), *count as f64));
    let numbers = named.chain(learning).chain(own);
    numbers.map(|(name, value)| (format!("{phase}/{name}"), value)).chain(left_out).collect()
}

/// crc32c, rotated and shifted as the record format wants it, so that a checksum of a checksum is not trivial.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mask_is_that_of_the_format() {
        // crc32c("123456789") = e3069283 (RFC 3720); masked by hand.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_events(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0usize..400, step in 0i64..1_000_000) {
            let folder = tempfile::tempdir().expect("folder");
            let mut writer = EventWriter::create(folder.path(), 1.5).expect("create");
            let event = Event { wall_time: 2.0, step, file_version: Some("x".repeat(20)), summary: None };
            writer.write(&event).expect("write");
            let mut bytes = fs::read(&writer.path).expect("read");
            prop_assert_eq!(parse_events(&bytes).map(|events| events.len()), Ok(2));
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse_events(&bytes).is_err());
        }
    }
}
