//! D10 of the matrix: a shard server that fails in each way, and the whole stream through it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::server::{Fault, Server};
use common::{Shard, spec};
use data::{DataError, Index, Loader, LoaderSpec, Order, RemoteOptions, Rng, Stream, write_index_files};

fn shard(prefix: &str, samples: usize) -> Vec<u8> {
    let mut shard = Shard::new();
    shard.samples(prefix, samples);
    shard.bytes()
}

/// Impatient, so that tests are short.
fn options(dir: &Path) -> RemoteOptions {
    RemoteOptions {
        cache_bytes: 1 << 30,
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(300),
        shard_deadline: Duration::from_secs(20),
        attempts: 4,
        backoff: Duration::from_millis(10),
        ..RemoteOptions::new(dir)
    }
}

fn open(server: &Server, path: &str, options: RemoteOptions) -> Result<Index, DataError> {
    Index::open_sets(&[vec![format!("{}{path}", server.url)]], Some(options))
}

/// Reads everything once; gives the number of samples.
fn read_all(index: &Index) -> usize {
    (0..index.len()).filter(|&sample| index.read(sample).is_ok()).count()
}

fn is_index(path: &str) -> bool {
    path.split('?').next().unwrap().ends_with(".index")
}

#[test]
fn d10_each_fault_costs_time_and_no_sample() {
    for fault in [
        Fault::Status(500),
        Fault::Status(429),
        Fault::Busy,
        Fault::Reset,
        Fault::Short,
        Fault::Stall,
        Fault::LengthTooSmall,
        Fault::LengthTooLarge,
    ] {
        // The first two answers for the shard itself fail; the server holds no index file.
        let failed = std::sync::atomic::AtomicU64::new(0);
        let server = Server::start(Duration::ZERO, move |path, _| {
            let first = !is_index(path) && failed.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2;
            first.then_some(fault)
        });
        server.put("/a.tar", shard("a", 50));
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let index = open(&server, "/a.tar", options(dir.path())).unwrap();
        assert_eq!((index.len(), read_all(&index), index.problems().total()), (50, 50, 0), "{fault:?}");
        println!("{fault:?} twice: {:.2?}, {} requests", started.elapsed(), server.requests());
        assert!(server.faults() == 2, "{fault:?}");
    }
}

#[test]
fn d10_the_rest_is_asked_for_and_not_the_whole() {
    let sent = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let server = Server::start(Duration::ZERO, move |path, number| {
        seen.lock().unwrap().push(path.to_owned());
        (!is_index(path) && number < 3).then_some(Fault::Short)
    });
    server.put("/a.tar", shard("a", 400));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_all(&open(&server, "/a.tar", options(dir.path())).unwrap()), 400);
    // One for the index file, two cut to half of what was left, one for the rest.
    assert_eq!(sent.lock().unwrap().len(), 4);
}

#[test]
fn d10_what_does_not_get_better_ends_the_run_in_time() {
    let cases: [(Fault, &str); 5] = [
        (Fault::Status(500), "gave up after 4 failure(s)"),
        (Fault::Status(403), "403"),
        (Fault::RedirectLoop, "redirect"),
        (Fault::RedirectToLinkLocal, "link-local"),
        (Fault::Slow, "too slow"),
    ];
    for (fault, part) in cases {
        let server = Server::start(Duration::ZERO, move |path, _| (!is_index(path)).then_some(fault));
        server.put("/a.tar", shard("a", 50));
        let dir = tempfile::tempdir().unwrap();
        let options = RemoteOptions { shard_deadline: Duration::from_secs(2), ..options(dir.path()) };
        let started = Instant::now();
        let error = open(&server, "/a.tar?sig=SECRET", options).unwrap_err();
        let message = format!(
            "{error}: {}",
            std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
        );
        assert!(message.contains(part) && !message.contains("SECRET"), "{fault:?}: {message}");
        assert!(started.elapsed() < Duration::from_secs(4), "{fault:?}: {:?}", started.elapsed());
    }
    let server = Server::start(Duration::ZERO, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let error = open(&server, "/none.tar", options(dir.path())).unwrap_err();
    assert!(matches!(error, DataError::ShardMissing { .. }), "{error}");
}

#[test]
fn d10_a_changed_object_is_refused() {
    let server = Server::start(Duration::ZERO, |_, _| None);
    server.put("/a.tar", shard("a", 50));
    server.put("/b.tar", shard("b", 50));
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A cache of one shard: reading the other drops the first.
    let size = shard("a", 50).len() as u64;
    let tight = RemoteOptions { cache_bytes: size + size / 2, ..options(dir.path()) };
    let index = Arc::new(open(&server, "/{a,b}.tar", tight).unwrap());
    server.put("/a.tar", shard("c", 50));
    server.put("/b.tar", shard("d", 50));
    let mut loader = Loader::start(spec(Arc::clone(&index))).unwrap();
    let error = (0..200).find_map(|_| loader.next_batch().err()).unwrap();
    assert!(matches!(error, DataError::ShardChanged { .. }), "{error}");
    // A new run may see the new object, also beside a copy of the old one and what is left of a download of it.
    assert_eq!(open(&server, "/a.tar", options(dir.path())).unwrap().entry(0).key, "c0000");
    // An index file that names another shard than the server holds.
    let folder = tempfile::tempdir().unwrap();
    let pattern = common::write(folder.path(), "a.tar", &shard("a", 50));
    write_index_files(&[pattern], true).unwrap();
    server.put("/a.tar.index", std::fs::read(folder.path().join("a.tar.index")).unwrap());
    let index = open(&server, "/a.tar", options(other.path())).unwrap();
    assert_eq!(index.entry(0).key, "a0000");
    let error = Loader::start(spec(Arc::new(index))).unwrap().next_batch().unwrap_err();
    assert!(error.to_string().contains("SHA-256"), "{error}");
}

/// Keys of a shard that is fetched from a server that names no versions, and whose object changes before request `number`.
fn fetched_across_a_change(
    number: u64,
    faults: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static,
) -> Vec<String> {
    let slot = Arc::new(std::sync::OnceLock::<Arc<Server>>::new());
    let own = Arc::clone(&slot);
    let server = Server::start(Duration::ZERO, move |path, at| {
        if at == number {
            own.get().unwrap().put("/a.tar", shard("c", 50));
        }
        if is_index(path) { None } else { faults(at) }
    });
    server.hide_versions();
    server.put("/a.tar", shard("a", 50));
    let server = Arc::new(server);
    slot.set(Arc::clone(&server)).ok();
    let dir = tempfile::tempdir().unwrap();
    let index = match open(&server, "/a.tar", RemoteOptions { attempts: 2, ..options(dir.path()) }) {
        Err(DataError::Unreadable { .. }) => open(&server, "/a.tar", options(dir.path())).unwrap(),
        index => index.unwrap(),
    };
    assert_eq!((index.len(), index.problems().total()), (50, 0));
    (0..50).map(|sample| index.entry(sample).key.to_owned()).collect()
}

#[test]
fn d10_without_versions_two_objects_are_never_put_together() {
    let new: Vec<String> = (0..50).map(|number| format!("c{number:04}")).collect();
    // Request 0 is for the index file. Within one download, and by a second start behind the failed first.
    assert_eq!(fetched_across_a_change(2, |at| (at == 1).then_some(Fault::Short)), new);
    assert_eq!(fetched_across_a_change(3, |at| (at < 3).then_some(Fault::Short)), new);
    // A wrong length looks like a whole answer, and the rest would be the new object's.
    assert_eq!(fetched_across_a_change(2, |at| (at == 1).then_some(Fault::LengthTooSmall)), new);
}

#[test]
fn the_cache_is_keyed_by_the_whole_url_and_bounded() {
    let server = Server::start(Duration::ZERO, |_, _| None);
    let dir = tempfile::tempdir().unwrap();
    let size = shard("s00", 30).len() as u64;
    for number in 0..8 {
        // img2dataset's naming: the same file name in every folder.
        server.put(&format!("/set{number}/00000.tar"), shard(&format!("s{number:02}"), 30));
    }
    let bounded = RemoteOptions { cache_bytes: 3 * size, ..options(dir.path()) };
    let index = open(&server, "/set{0..7}/00000.tar", bounded).unwrap();
    assert_eq!(read_all(&index), 240);
    let held = || -> u64 {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        files
            .filter(|file| file.path().extension().is_some_and(|end| end == "tar"))
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    assert!(held() <= 3 * size, "{}", held());
    // What is held and unchanged is not fetched again: one question for the index file, one for the version.
    let before = server.requests();
    let plenty = tempfile::tempdir().unwrap();
    open(&server, "/set1/00000.tar", options(plenty.path())).unwrap();
    open(&server, "/set1/00000.tar", options(plenty.path())).unwrap();
    assert_eq!(server.requests() - before, 4);
    let small = RemoteOptions { cache_bytes: size / 2, ..options(plenty.path()) };
    let error = open(&server, "/set0/00000.tar", small).unwrap_err();
    assert!(error.to_string().contains("give it more"), "{error}");
}

#[test]
fn with_index_files_a_start_fetches_no_shard() {
    let folder = tempfile::tempdir().unwrap();
    let pattern = [common::write_shards(folder.path(), 5, 20)];
    write_index_files(&pattern, true).unwrap();
    let server = Server::start(Duration::ZERO, |_, _| None);
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        server.put(&format!("/{}", path.file_name().unwrap().display()), std::fs::read(&path).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let index = open(&server, "/{00000..00004}.tar", options(dir.path())).unwrap();
    assert_eq!((server.requests(), index.len()), (5, 100));
    assert_eq!(index.digest(), Index::open(&pattern).unwrap().digest());
    assert_eq!(read_all(&index), 100);
    assert_eq!(server.requests(), 10);
}

#[test]
fn a_loader_says_that_it_waits_only_while_a_shard_keeps_its_thread_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pattern = [common::write_shards(folder.path(), 1, 20)];
    write_index_files(&pattern, true).unwrap();
    let server = Server::start(Duration::ZERO, |path, _| {
        // Without this the first batch would be there before a second has passed.
        let slow = !is_index(path);
        std::thread::sleep(Duration::from_millis(if slow { 2500 } else { 0 }));
        None
    });
    for name in ["00000.tar", "00000.tar.index"] {
        server.put(&format!("/{name}"), std::fs::read(folder.path().join(name)).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let patient = RemoteOptions { stall_timeout: Duration::from_secs(10), ..options(dir.path()) };
    let index = Arc::new(open(&server, "/00000.tar", patient).unwrap());
    let mut loader = Loader::start(LoaderSpec { global_batch: 20, ..spec(index) }).unwrap();
    let signs = std::cell::Cell::new(0);
    let alive = || signs.set(signs.get() + 1);
    assert_eq!(loader.next_batch_while(&alive).unwrap().samples.len(), 20);
    assert_eq!(signs.get(), 2, "two whole seconds of waiting");
    loader.next_batch_while(&alive).unwrap();
    assert_eq!(signs.get(), 2, "the shard is here");
}

/// Time of one epoch through a server, and how many samples came.
fn epoch(server: &Server, shards: usize, samples: usize) -> (Duration, usize) {
    let dir = tempfile::tempdir().unwrap();
    let index =
        Arc::new(open(server, &format!("/{{0000..{:04}}}.tar", shards - 1), options(dir.path())).unwrap());
    let order = Arc::new(Order::in_blocks(3, &index.shard_sizes(0), 8));
    let global_batch = samples;
    let spec = LoaderSpec { order, global_batch, shards_ahead: 64, ..spec(Arc::clone(&index)) };
    let started = Instant::now();
    let mut loader = Loader::start(spec).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..index.len() / global_batch {
        let batch = loader.next_batch().unwrap();
        assert_eq!(batch.drawn, batch.samples);
        seen.extend(batch.samples);
    }
    assert_eq!(loader.counters().total(), 0);
    (started.elapsed(), seen.len())
}

#[test]
fn long_d10_five_percent_of_faults_cost_at_most_half_of_the_clean_time() {
    let (shards, samples) = (240, 100);
    let folder = tempfile::tempdir().unwrap();
    for number in 0..shards {
        common::write(folder.path(), &format!("{number:04}.tar"), &shard(&format!("{number:04}-"), samples));
    }
    write_index_files(&[folder.path().display().to_string()], false).unwrap();
    let serve = |share: f64| {
        let server = Server::start(Duration::from_millis(60), move |path, number| {
            let mut rng = Rng::new(2, Stream::Subset, &[number]);
            let kinds = [
                Fault::Status(500),
                Fault::Busy,
                Fault::Reset,
                Fault::Short,
                Fault::Stall,
                Fault::LengthTooSmall,
                Fault::LengthTooLarge,
            ];
            (rng.chance(share) && !is_index(path)).then(|| kinds[rng.below(kinds.len() as u64) as usize])
        });
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            server.put(&format!("/{}", path.file_name().unwrap().display()), std::fs::read(&path).unwrap());
        }
        server
    };
    let clean = epoch(&serve(0.0), shards, samples);
    let server = serve(0.05);
    let faulty = epoch(&server, shards, samples);
    let ratio = faulty.0.as_secs_f64() / clean.0.as_secs_f64();
    println!(
        "clean {:.2?}, with {} faults in {} requests {:.2?}: {ratio:.2} x",
        clean.0,
        server.faults(),
        server.requests(),
        faulty.0
    );
    assert_eq!((clean.1, faulty.1), (shards * samples, shards * samples));
    assert!(server.faults() >= 8, "{}", server.faults());
    assert!(ratio <= 1.5, "{ratio}");
}
