//! A shard server on the loopback address that fails as it is told.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status and nothing else.
    Status(u16),
    /// 503 with `Retry-After: 1`.
    Busy,
    /// Half of the body, then the connection is reset.
    Reset,
    /// Half of the body, then the connection is closed.
    Short,
    /// Half of the body, then silence.
    Stall,
    /// Content-Length is half of what it should be.
    LengthTooSmall,
    /// Content-Length is twice what it should be.
    LengthTooLarge,
    /// A kilobyte a second.
    Slow,
    /// Sends the client to the same place.
    RedirectLoop,
    /// Sends the client to the metadata service of a cloud.
    RedirectToLinkLocal,
}

type Objects = HashMap<String, (Vec<u8>, u64)>;
/// Path and number of the request; numbers count from 0 over all paths.
type Plan = dyn Fn(&str, u64) -> Option<Fault> + Send + Sync;

/// Serves until the test ends.
pub struct Server {
    pub url: String,
    objects: Arc<Mutex<Objects>>,
    requests: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    versionless: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request after `delay`.
    pub fn start(delay: Duration, plan: impl Fn(&str, u64) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let plan: Arc<Plan> = Arc::new(plan);
        let (objects, requests, faults) =
            (Arc::<Mutex<Objects>>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let shared = (Arc::clone(&objects), Arc::clone(&requests), Arc::clone(&faults));
        let versionless = Arc::<AtomicBool>::default();
        let hides = Arc::clone(&versionless);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (plan, shared, hides) = (Arc::clone(&plan), shared.clone(), Arc::clone(&hides));
                std::thread::spawn(move || {
                    let (objects, requests, faults) = shared;
                    let mut stream = stream.unwrap();
                    stream.set_nodelay(true).unwrap();
                    while let Some(head) = peek_head(&mut stream) {
                        let number = requests.fetch_add(1, Ordering::SeqCst);
                        // Google's client escapes full stops.
                        let path = head.split(' ').nth(1).unwrap().replace("%2E", ".");
                        let fault = plan(&path, number);
                        faults.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
                        std::thread::sleep(delay);
                        let object = objects.lock().unwrap().get(path.split('?').next().unwrap()).cloned();
                        let versions = !hides.load(Ordering::SeqCst);
                        if answer(&mut stream, &head, object, fault, versions).is_none() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, objects, requests, faults, versionless }
    }

    /// Puts an object, or another one in its place; each has an ETag of its own.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut objects = self.objects.lock().unwrap();
        let version = objects.get(path).map_or(0, |(_, version)| version + 1);
        objects.insert(path.to_owned(), (bytes, version));
    }

    /// From now on no answer says which version of an object it is of.
    pub fn hide_versions(&self) {
        self.versionless.store(true, Ordering::SeqCst);
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::SeqCst)
    }
}

/// The request's head, still unread, so that closing the connection resets it.
fn peek_head(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = [0; 8192];
    loop {
        let count = stream.peek(&mut buffer).ok().filter(|count| *count > 0)?;
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            return Some(text[..end + 4].to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value)
}

/// `None` when the connection is over.
fn answer(
    stream: &mut TcpStream,
    head: &str,
    object: Option<(Vec<u8>, u64)>,
    fault: Option<Fault>,
    versions: bool,
) -> Option<()> {
    if fault != Some(Fault::Reset) {
        stream.read_exact(&mut vec![0; head.len()]).ok()?;
    }
    let simple = |stream: &mut TcpStream, status: &str, more: &str| {
        stream.write_all(format!("HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\n\r\n").as_bytes()).ok()
    };
    match fault {
        Some(Fault::Status(status)) => return simple(stream, &format!("{status} Fault"), ""),
        Some(Fault::Busy) => return simple(stream, "503 Busy", "Retry-After: 1\r\n"),
        Some(Fault::RedirectLoop) => return simple(stream, "302 Found", "Location: /loop\r\n"),
        Some(Fault::RedirectToLinkLocal) => {
            return simple(stream, "302 Found", "Location: http://169.254.169.254/latest/meta-data\r\n");
        }
        _ => {}
    }
    let Some((bytes, version)) = object else { return simple(stream, "404 Not Found", "") };
    let tag = format!("\"{}-{version}\"", bytes.len());
    if header(head, "if-none-match") == Some(&tag) {
        return simple(stream, "304 Not Modified", "");
    }
    if header(head, "if-match").is_some_and(|wanted| wanted != tag) {
        return simple(stream, "412 Precondition Failed", "");
    }
    let from =
        header(head, "range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let total = bytes.len();
    if from.is_some_and(|from: usize| from >= total) {
        return simple(stream, "416 Range Not Satisfiable", &format!("Content-Range: bytes */{total}\r\n"));
    }
    let body = &bytes[from.unwrap_or(0)..];
    let stated = match fault {
        Some(Fault::LengthTooSmall) => body.len() / 2,
        Some(Fault::LengthTooLarge) => body.len() * 2,
        _ => body.len(),
    };
    let status = match from {
        Some(from) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1),
        None => "200 OK".to_owned(),
    };
    let version = match versions {
        true => format!("ETag: {tag}\r\nLast-Modified: Tue, 01 Sep 2026 10:00:00 GMT\r\n"),
        false => String::new(),
    };
    let head = format!("HTTP/1.1 {status}\r\n{version}Content-Length: {stated}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    send(stream, body, stated, fault)
}

fn send(stream: &mut TcpStream, body: &[u8], stated: usize, fault: Option<Fault>) -> Option<()> {
    let half = body.len() / 2;
    match fault {
        Some(Fault::Short | Fault::Reset) => {
            stream.write_all(&body[..half]).ok()?;
            None
        }
        Some(Fault::Stall) => {
            stream.write_all(&body[..half]).ok()?;
            std::thread::sleep(Duration::from_secs(30));
            None
        }
        Some(Fault::Slow) => {
            for byte in body.chunks(100) {
                stream.write_all(byte).ok()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Some(())
        }
        Some(Fault::LengthTooLarge) => {
            stream.write_all(body).ok()?;
            stream.shutdown(Shutdown::Write).ok()?;
            None
        }
        _ => stream.write_all(&body[..stated.min(body.len())]).ok(),
    }
}
