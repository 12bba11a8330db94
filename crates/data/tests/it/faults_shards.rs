//! D1, D2, D3 and D11 of the matrix: what can be wrong with a shard, and what must be counted.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use crate::common::{Shard, global_batches, keys, png, reasons, spec, write};
use data::{DataError, Index, Loader, LoaderSpec, SkipReason, Transform, TransformConfig, write_index_files};

fn open(dir: &std::path::Path) -> Index {
    Index::open(&[dir.display().to_string()]).unwrap()
}

fn counted(pairs: &[(SkipReason, u64)]) -> BTreeMap<SkipReason, u64> {
    pairs.iter().copied().collect()
}

/// Offset of the first byte of the header of member `name`.
fn header_of(bytes: &[u8], name: &str) -> usize {
    (0..bytes.len()).step_by(512).find(|&at| bytes[at..].starts_with(name.as_bytes())).unwrap()
}

/// Eleven shards, ten of them broken in a way of their own, and what is to be counted.
fn broken_shards(dir: &std::path::Path) -> BTreeMap<SkipReason, u64> {
    let three = |prefix: &str| {
        let mut shard = Shard::new();
        shard.samples(prefix, 3);
        shard.bytes()
    };
    write(dir, "00-good.tar", &three("good"));
    write(dir, "01-zero.tar", b"");
    write(dir, "02-garbage.tar", &[0x5a; 5000]);
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&three("gz")).unwrap();
    write(dir, "03-gz.tar", &zipped.finish().unwrap());
    // Cut inside a picture: that sample loses its picture and then has no caption either.
    let cut = three("cut");
    write(dir, "04-cut-member.tar", &cut[..header_of(&cut, "cut0002.png") + 520]);
    // Cut inside a header, after a picture: its caption is gone.
    let cut = three("hdr");
    write(dir, "05-cut-header.tar", &cut[..header_of(&cut, "hdr0002.txt") + 100]);
    // Cut between two samples: nothing but the end is missing.
    let cut = three("bound");
    write(dir, "06-cut-boundary.tar", &cut[..header_of(&cut, "bound0002.png")]);
    let mut checksum = three("sum");
    let at = header_of(&checksum, "sum0002.png") + 150;
    checksum[at] ^= 1;
    write(dir, "07-checksum.tar", &checksum);
    // A size field that leads out of the file.
    let mut shard = Shard::new();
    shard.samples("size", 2);
    let mut bytes = shard.bytes();
    bytes.truncate(bytes.len() - 1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("size0002.png").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 2048]);
    write(dir, "08-size.tar", &bytes);
    // A link, a device, a folder and a sparse file: all but the folder are counted.
    let mut shard = Shard::new();
    for kind in [tar::EntryType::Symlink, tar::EntryType::Char, tar::EntryType::Directory] {
        let mut header = tar::Header::new_gnu();
        header.set_path("odd.png").unwrap();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        shard.raw(&header, b"");
    }
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse.png").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(512);
    let sparse = header.as_gnu_mut().unwrap();
    // 512 bytes at 1 MiB of a file of that and 512 bytes.
    sparse.realsize.copy_from_slice(b"00004001000\0");
    sparse.sparse[0].offset.copy_from_slice(b"00004000000\0");
    sparse.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
    header.set_cksum();
    shard.raw(&header, &[1; 512]);
    shard.samples("links", 2);
    write(dir, "09-links.tar", &shard.bytes());
    write(dir, "10-nothing.tar", &Shard::new().bytes());
    counted(&[
        (SkipReason::ShardNotTar, 3),
        (SkipReason::MemberTruncated, 2),
        (SkipReason::ShardTruncated, 2),
        (SkipReason::CaptionMissing, 1),
        (SkipReason::ShardCorrupt, 1),
        (SkipReason::EntryUnsupported, 3),
    ])
}

#[test]
fn d1_broken_archives_are_counted_exactly_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let expected = broken_shards(dir.path());
    let index = Arc::new(open(dir.path()));
    assert_eq!(reasons(&index), expected);
    assert_eq!(index.len(), 3 + 2 + 2 + 2 + 2 + 2 + 2);
    // Out of index files the same, and at any world size and restart.
    write_index_files(&[dir.path().display().to_string()], true).unwrap();
    let again = open(dir.path());
    assert_eq!((reasons(&again), again.digest()), (expected, index.digest()));
    let spec = LoaderSpec { global_batch: 5, ..spec(index) };
    let one = global_batches(&spec, 1, 0, 6);
    assert_eq!(one, global_batches(&spec, 3, 0, 6));
    assert_eq!(one.0[2..], global_batches(&spec, 2, 10, 4).0);
}

#[test]
fn d9_shards_that_hold_nothing_are_judged_by_their_number_and_named() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..30 {
        let mut shard = Shard::new();
        shard.samples(&format!("{number:02}-"), 100);
        write(dir.path(), &format!("{number:02}.tar"), &shard.bytes());
    }
    write(dir.path(), "30.tar", &[0x5a; 100_000]);
    write(dir.path(), "31.tar", b"");
    // Two problems of 3000 samples; but nobody knows how many samples the two shards had.
    let index = Arc::new(open(dir.path()));
    assert_eq!(index.problems().total(), 2);
    let strict = LoaderSpec { max_skipped_ratio: 0.01, ..spec(Arc::clone(&index)) };
    let error = Loader::start(strict.clone()).unwrap_err();
    assert!(matches!(error, DataError::ShardsLost { lost: 2, shards: 32, .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("30.tar: shard_not_tar; ") && message.contains("31.tar: shard_not_tar"),
        "{message}"
    );
    Loader::start(LoaderSpec { max_skipped_ratio: 0.1, ..strict }).unwrap();
    // One of which a part is left is no lost one, nor is an archive of nothing.
    let mut part = Shard::new();
    part.samples("31-", 2);
    let part = part.bytes();
    write(dir.path(), "30.tar", &Shard::new().bytes());
    write(dir.path(), "31.tar", &part[..part.len() - 1024]);
    let index = open(dir.path());
    assert_eq!(reasons(&index), counted(&[(SkipReason::ShardTruncated, 1)]));
    index.check(0.001).unwrap();
}

#[test]
fn d1_long_names_are_read_and_endless_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}{}", "folder/".repeat(40), "k".repeat(200));
    let huge = "h".repeat(64 << 10);
    let mut gnu = Shard::new();
    gnu.sample(&long).sample(&huge);
    write(dir.path(), "gnu.tar", &gnu.bytes());
    // PAX: the name stands in records of their own.
    let mut pax = tar::Builder::new(Vec::new());
    for (kind, bytes) in [("png", png(1)), ("txt", b"text".to_vec())] {
        let name = format!("pax/{}é.{kind}", "p".repeat(150));
        pax.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        pax.append(&header, &*bytes).unwrap();
    }
    write(dir.path(), "pax.tar", &pax.into_inner().unwrap());
    // A name of a megabyte is no name: what comes before it is kept.
    let mut endless = Shard::new();
    endless.sample("before").member(&format!("{}.png", "e".repeat(1 << 20)), b"x").sample("after");
    write(dir.path(), "zz-endless.tar", &endless.bytes());
    let index = open(dir.path());
    assert_eq!(keys(&index), [&*long, &huge, &format!("pax/{}é", "p".repeat(150)), "before"]);
    assert_eq!(reasons(&index), counted(&[(SkipReason::ShardCorrupt, 1)]));
    assert_eq!(index.read_captions(2).unwrap().captions, ["text"]);
}

/// A member of PAX with `records`, without an end of the archive.
fn pax_member(records: &[(&str, &[u8])], header: &tar::Header, contents: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(contents);
    bytes
}

fn ustar(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_cksum();
    header
}

#[test]
fn d1_a_size_in_pax_records_cannot_smuggle_members() {
    // The header says 0 bytes, the record 1024: whoever believes the header finds a member inside the contents.
    let mut contents = ustar("evil.txt", 0).as_bytes().to_vec();
    contents.resize(1024, 0);
    let size: (&str, &[u8]) = ("size", b"1024");
    for records in [
        vec![size],
        vec![("comment", b"two\nlines".as_slice()), size],
        vec![("comment", b"9 size=0\n".as_slice()), size],
        vec![("path", b"000\n.jpg".as_slice()), size],
        vec![("size", b"7"), size],
    ] {
        let mut bytes = pax_member(&records, &ustar("000.jpg", 0), &contents);
        let mut rest = Shard::new();
        rest.sample("good");
        bytes.extend_from_slice(&rest.bytes());
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "0.tar", &bytes);
        let index = open(dir.path());
        assert_eq!(keys(&index), ["good"], "{records:?}");
        assert_eq!(reasons(&index), counted(&[(SkipReason::CaptionMissing, 1)]), "{records:?}");
    }
}

#[test]
fn d1_sparse_files_of_pax_are_refused_and_records_that_are_none_end_the_shard() {
    let dir = tempfile::tempdir().unwrap();
    let mut good = Shard::new();
    good.sample("good");
    let good = good.bytes();
    let whole = |more: Vec<u8>| [&good[..good.len() - 1024], &more[..], &[0; 1024]].concat();
    let major: (&str, &[u8]) = ("GNU.sparse.major", b"1");
    let sparse = pax_member(&[major, ("GNU.sparse.name", b"a.jpg")], &ustar("sparse/a.jpg", 512), &[0; 512]);
    write(dir.path(), "0.tar", &whole(sparse));
    let mut wrong = pax_member(&[("comment", b"abc")], &ustar("b.jpg", 0), b"");
    wrong[512] = b'9';
    let mut other = Shard::new();
    other.sample("other");
    let other = other.bytes();
    write(dir.path(), "1.tar", &[&other[..other.len() - 1024], &wrong, &[0; 1024]].concat());
    let index = open(dir.path());
    assert_eq!(keys(&index), ["good", "other"]);
    let expected = [(SkipReason::EntryUnsupported, 1), (SkipReason::ShardCorrupt, 1)];
    assert_eq!(reasons(&index), counted(&expected));
}

#[test]
fn d2_names_are_keys_and_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["/abs/x", "..\\x", "<script>alert(1)</script>", "bell\u{7}\u{1b}[31m", "../../x"];
    let mut bytes = Vec::new();
    for name in names {
        for (kind, contents) in [("png", png(1)), ("txt", b"text".to_vec())] {
            let mut header = tar::Header::new_gnu();
            let full = format!("{name}.{kind}");
            header.as_old_mut().name[..full.len()].copy_from_slice(full.as_bytes());
            header.set_size(contents.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&contents);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.resize(bytes.len() + 1024, 0);
    let pattern = write(dir.path(), "0.tar", &bytes);
    let index = Arc::new(Index::open(&[pattern]).unwrap());
    // A base name that starts with a dot is hidden, and no part of a sample.
    assert_eq!(keys(&index), [names[0], names[2], names[3], names[4]]);
    let transform =
        Arc::new(Transform::new(TransformConfig { image_size: 8, ..TransformConfig::default() }).unwrap());
    let spec = LoaderSpec { global_batch: 4, transform: Some(transform), ..spec(Arc::clone(&index)) };
    assert_eq!(Loader::start(spec).unwrap().next_batch().unwrap().len(), 4);
    let files: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["0.tar"]);
    let shown = index.sample_error(2, SkipReason::ImageCorrupt).to_string();
    assert!(shown.contains(r"bell\u{7}\u{1b}[31m") && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn d3_missing_halves_and_duplicates_are_counted_and_the_first_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut shard = Shard::new();
    shard
        .member("a.png", &png(1))
        .member("b.txt", b"no picture")
        .member("c.png", &png(2)) // c and d interleave
        .member("d.png", &png(3))
        .member("c.txt", b"first c")
        .member("d.txt", b"a d")
        .member("c.txt", b"second c")
        .member("c.png", &png(9))
        .member("no_kind", b"ignored")
        .member("d.cls", b"ignored");
    write(dir.path(), "0.tar", &shard.bytes());
    let mut shard = Shard::new();
    shard.member("d.png", &png(4)).member("d.txt", b"another d").sample("e");
    write(dir.path(), "1.tar", &shard.bytes());
    let index = open(dir.path());
    assert_eq!(keys(&index), ["c", "d", "e"]);
    assert_eq!(
        reasons(&index),
        counted(&[
            (SkipReason::CaptionMissing, 1),
            (SkipReason::ImageMissing, 1),
            (SkipReason::DuplicateKey, 2)
        ])
    );
    assert_eq!(index.problems().seen, 6);
    assert_eq!(index.read_captions(0).unwrap().captions, ["first c"]);
    assert_eq!(index.read_image(0).unwrap(), png(2));
    assert_eq!(index.read_captions(1).unwrap().captions, ["a d"]);
    // Members that lie apart and together read as the same bytes.
    let mut buffer = Vec::new();
    for sample in 0..3 {
        let raw = index.read_raw(sample, &mut buffer).unwrap();
        assert_eq!(raw.image, index.read_image(sample).unwrap());
        assert_eq!(
            raw.text.map(<[u8]>::to_vec),
            index.read_captions(sample).ok().map(|text| text.captions[0].clone().into_bytes())
        );
    }
}

#[test]
fn d3_sets_in_folders_of_their_own_may_share_keys() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        let mut shard = Shard::new();
        shard.samples("0000", 3);
        write(dir.path(), "00000.tar", &shard.bytes());
    }
    let sets = [&one, &other].map(|dir| vec![dir.path().display().to_string()]);
    let index = Index::open_sets(&sets, None).unwrap();
    assert_eq!((index.len(), index.problems().total()), (6, 0));
    assert_eq!(index.sets(), [0..1, 1..2]);
    assert_eq!(index.shard_sizes(1), [3]);
}

#[test]
fn d11_what_is_no_shard_is_refused_and_no_secret_is_shown() {
    for (pattern, part) in [
        ("pipe:rm -rf x", "not run"),
        ("file:///etc/passwd", "plain path"),
        ("http://169.254.169.254/latest/0.tar", "link-local"),
        ("http://[fe80::1]/0.tar", "link-local"),
        ("http://[::ffff:169.254.169.254]/0.tar", "link-local"),
        ("https://user:SECRET@host/0.tar?sig=SECRET", "password"),
        ("ftp://host/0.tar?sig=SECRET", "not one of"),
        ("https://host/folder/?sig=SECRET", "cannot be listed"),
        ("https://host/0.tar?sig=SECRET", "cache"),
    ] {
        let error = Index::open(&[pattern.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("SECRET"), "{pattern}: {error}");
    }
}

#[test]
fn a_shard_that_changes_under_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = crate::common::write_shards(dir.path(), 1, 5);
    let index = Arc::new(Index::open(&[pattern]).unwrap());
    crate::common::write_shards(dir.path(), 1, 6);
    let error = Loader::start(spec(index)).unwrap().next_batch().unwrap_err();
    assert!(matches!(error, DataError::ShardChanged { .. }), "{error}");
}

#[test]
fn an_index_file_that_no_longer_fits_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = [crate::common::write_shards(dir.path(), 3, 4)];
    let written = write_index_files(&pattern, false).unwrap();
    assert_eq!((written.made, written.index.len()), (3, 12));
    assert_eq!(write_index_files(&pattern, false).unwrap().made, 0);
    assert_eq!(write_index_files(&pattern, true).unwrap().made, 3);
    // Another shard under the old name.
    let mut shard = Shard::new();
    shard.samples("new", 7);
    write(dir.path(), "00001.tar", &shard.bytes());
    assert_eq!(Index::open(&pattern).unwrap().len(), 15);
    assert_eq!(write_index_files(&pattern, true).unwrap().made, 1);
    // A damaged index file.
    std::fs::write(dir.path().join("00002.tar.index"), "{}").unwrap();
    assert_eq!(Index::open(&pattern).unwrap().len(), 15);
}
