//! Annotation files, as the captioning sets come: which picture, which captions.
//!
//! | set | file |
//! |---|---|
//! | COCO (LAVIS, Karpathy), VG, CC3M, CC12M, SBU | a list of `{"image": …, "caption": … or […]}`, or such an object a line |
//! | COCO (original) | `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}` |
//! | CC3M, LAION, img2dataset's lists | `.csv` or `.tsv` with a heading |
//!
//! Records of one picture become one sample with several captions, in the order of the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ToolError;

/// What may name the picture, the best first.
const IMAGE_KEYS: [&str; 7] = ["image", "file_name", "filename", "image_path", "filepath", "path", "file"];
/// What may hold the caption.
const CAPTION_KEYS: [&str; 6] = ["caption", "captions", "text", "title", "TEXT", "sentence"];

/// One picture and what is said about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// The picture, as the file names it: a path relative to the folder of pictures, or absolute.
    pub image: String,
    /// Its captions; may be empty.
    pub captions: Vec<String>,
    /// What else the first record of the picture holds; goes into the sample's `.json`.
    pub rest: Map<String, Value>,
}

/// The pictures of `path`, each once, in order of appearance.
pub fn read(path: &Path) -> Result<Vec<Record>, ToolError> {
    let wrong = |problem: String| ToolError::Annotations { path: path.to_owned(), problem };
    let file = BufReader::new(File::open(path).map_err(ToolError::reading(path))?);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let records = match extension.to_ascii_lowercase().as_str() {
        "csv" => table(file, b','),
        "tsv" => table(file, b'\t'),
        "jsonl" | "ndjson" => lines(file),
        "json" => json(file),
        other => Err(format!("{other:?} is none of .json, .jsonl, .csv, .tsv")),
    };
    let records = records.map_err(wrong)?;
    match records.is_empty() {
        true => Err(wrong("it holds no record".to_owned())),
        false => Ok(grouped(records)),
    }
}

/// Records of one picture become one, in the order of their first.
fn grouped(records: Vec<Record>) -> Vec<Record> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut grouped: Vec<Record> = Vec::new();
    for record in records {
        match places.get(&record.image) {
            Some(&place) => grouped[place].captions.extend(record.captions),
            None => {
                places.insert(record.image.clone(), grouped.len());
                grouped.push(record);
            }
        }
    }
    grouped
}

fn json(reader: impl Read) -> Result<Vec<Record>, String> {
    let value: Value = serde_json::from_reader(reader).map_err(|error| error.to_string())?;
    match value {
        Value::Array(records) => list(records),
        Value::Object(object) if object.contains_key("annotations") => coco(Value::Object(object)),
        _ => Err("it is neither a list of records nor COCO's {\"images\": …, \"annotations\": …}".to_owned()),
    }
}

fn lines(reader: impl BufRead) -> Result<Vec<Record>, String> {
    let lines =
        reader.lines().enumerate().filter(|(_, line)| !matches!(line, Ok(line) if line.trim().is_empty()));
    let parsed = lines.map(|(number, line)| {
        let value = line.map_err(|error| error.to_string());
        let value = value.and_then(|line| serde_json::from_str(&line).map_err(|error| error.to_string()));
        value.and_then(record).map_err(|problem| format!("line {}: {problem}", number + 1))
    });
    parsed.collect()
}

fn list(values: Vec<Value>) -> Result<Vec<Record>, String> {
    let numbered = values.into_iter().enumerate();
    let parsed = numbered
        .map(|(number, value)| record(value).map_err(|problem| format!("record {}: {problem}", number + 1)));
    parsed.collect()
}

fn record(value: Value) -> Result<Record, String> {
    let Value::Object(mut fields) = value else { return Err("it is no object".to_owned()) };
    let image = IMAGE_KEYS.iter().find_map(|&key| fields.remove(key));
    let caption = CAPTION_KEYS.iter().find_map(|&key| fields.remove(key));
    let Some(Value::String(image)) = image else {
        return Err(match fields.contains_key("url") {
            true => "it names a url and no file; download the pictures first (img2dataset)".to_owned(),
            false => format!("it has none of {}", IMAGE_KEYS.join(", ")),
        });
    };
    let captions = match caption {
        Some(Value::String(caption)) => vec![caption],
        Some(Value::Array(captions)) => captions
            .into_iter()
            .map(|caption| match caption {
                Value::String(caption) => Ok(caption),
                _ => Err("a caption is no text".to_owned()),
            })
            .collect::<Result<_, _>>()?,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err("the caption is neither a text nor a list of texts".to_owned()),
    };
    Ok(Record { image, captions, rest: fields })
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoCaption>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoCaption {
    image_id: u64,
    caption: String,
}

/// Pictures without a caption are kept, and counted where captions are missed.
fn coco(value: Value) -> Result<Vec<Record>, String> {
    let Coco { images, annotations } = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let places: HashMap<u64, usize> =
        images.iter().enumerate().map(|(place, image)| (image.id, place)).collect();
    let mut records: Vec<Record> = images
        .into_iter()
        .map(|image| Record {
            image: image.file_name,
            captions: Vec::new(),
            rest: Map::from_iter([("image_id".to_owned(), image.id.into())]),
        })
        .collect();
    for (number, annotation) in annotations.into_iter().enumerate() {
        let place = places
            .get(&annotation.image_id)
            .ok_or_else(|| format!("annotation {}: there is no image {}", number + 1, annotation.image_id))?;
        records[*place].captions.push(annotation.caption);
    }
    Ok(records)
}

/// A table with a heading; every row is one picture and one caption.
fn table(reader: impl Read, delimiter: u8) -> Result<Vec<Record>, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let heading = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |keys: &[&str]| {
        let place = |key: &&str| heading.iter().position(|name| name.trim_start_matches('\u{feff}') == *key);
        let missing = || {
            format!(
                "its heading has none of {}; it has {:?}",
                keys.join(", "),
                heading.iter().collect::<Vec<_>>()
            )
        };
        keys.iter().find_map(place).ok_or_else(missing)
    };
    let (image, caption) = (column(&IMAGE_KEYS)?, column(&CAPTION_KEYS)?);
    let rows = reader.records().map(|row| {
        let row = row.map_err(|error| error.to_string())?;
        let rest = heading.iter().zip(&row).enumerate();
        let rest = rest.filter(|(place, _)| *place != image && *place != caption);
        Ok(Record {
            image: row.get(image).unwrap_or_default().to_owned(),
            captions: vec![row.get(caption).unwrap_or_default().to_owned()],
            rest: rest.map(|(_, (name, value))| (name.to_owned(), value.into())).collect(),
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_as(name: &str, text: &str) -> Result<Vec<Record>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string().replace(&format!("{}", dir.path().display()), ""))
    }

    fn pairs(records: &[Record]) -> Vec<(&str, Vec<&str>)> {
        records
            .iter()
            .map(|record| (record.image.as_str(), record.captions.iter().map(String::as_str).collect()))
            .collect()
    }

    #[test]
    fn every_shape_gives_the_same_records() {
        let wanted = vec![("val/a.jpg", vec!["a cat", "a pet"]), ("b.jpg", vec!["a dog, brown"])];
        let shapes = [
            (
                "coco_karpathy.json",
                r#"[{"image": "val/a.jpg", "caption": "a cat", "image_id": "coco_1"},
                {"image": "b.jpg", "caption": "a dog, brown"}, {"image": "val/a.jpg", "caption": "a pet"}]"#,
            ),
            (
                "captions_train2014.json",
                r#"{"info": {}, "images": [{"id": 7, "file_name": "val/a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
                "annotations": [{"id": 1, "image_id": 7, "caption": "a cat"}, {"id": 3, "image_id": 9, "caption": "a dog, brown"}, {"id": 2, "image_id": 7, "caption": "a pet"}]}"#,
            ),
            (
                "vg.jsonl",
                "{\"image\": \"val/a.jpg\", \"caption\": [\"a cat\", \"a pet\"]}\n\n{\"image\": \"b.jpg\", \"caption\": \"a dog, brown\"}\n",
            ),
            (
                "cc3m.csv",
                "\u{feff}filepath,title\nval/a.jpg,a cat\nb.jpg,\"a dog, brown\"\nval/a.jpg,a pet\n",
            ),
            (
                "laion.tsv",
                "url\tTEXT\tpath\nhttp://x\ta cat\tval/a.jpg\nhttp://y\ta dog, brown\tb.jpg\nhttp://x\ta pet\tval/a.jpg\n",
            ),
        ];
        for (name, text) in shapes {
            let records = read_as(name, text).unwrap();
            assert_eq!(pairs(&records), wanted, "{name}");
        }
        let karpathy = read_as(shapes[0].0, shapes[0].1).unwrap();
        assert_eq!(karpathy[0].rest["image_id"], "coco_1");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            (
                "a.json",
                r#"[{"image": "a.jpg", "caption": "x"}, {"caption": "y"}]"#,
                "record 2: it has none of image",
            ),
            ("a.json", r#"[{"url": "http://x", "caption": "y"}]"#, "record 1: it names a url and no file"),
            ("a.json", r#"[{"image": "a.jpg", "caption": 3}]"#, "neither a text nor a list"),
            ("a.json", "[]", "holds no record"),
            ("a.json", "{}", "neither a list"),
            ("a.jsonl", "{\"image\": \"a.jpg\"}\n{\"image\": ", "line 2"),
            ("a.csv", "x,caption\n1,2\n", "heading has none of image"),
            (
                "a.json",
                r#"{"images": [], "annotations": [{"image_id": 4, "caption": "x"}]}"#,
                "annotation 1: there is no image 4",
            ),
            ("a.parquet", "", "none of .json"),
        ];
        for (name, text, word) in cases {
            let problem = read_as(name, text).unwrap_err();
            assert!(problem.starts_with(&format!("/{name}")) && problem.contains(word), "{problem}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}\":,a-z0-9\\n\\t ]{0,200}", kind in 0usize..4) {
            let _ = read_as(["a.json", "a.jsonl", "a.csv", "a.tsv"][kind], &text);
        }
    }
}
