//! `http://` and `https://`.

use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::config::Config;
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

use crate::location::{Url, is_link_local};

use super::RemoteOptions;
use super::http_date;
use super::store::{Condition, Failure, Reply, Store};

/// Marks a version that is a `Last-Modified` date, because the server sends no ETag.
const DATE: &str = "date:";

/// A client that keeps its connections.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
}

impl Http {
    pub(super) fn new(options: &RemoteOptions) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(5)
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .timeout_per_write(Some(options.stall_timeout))
            .max_idle_connections_per_host(16)
            .build();
        Self { agent: Agent::with_parts(config, DefaultConnector::default(), NoLinkLocal::default()) }
    }
}

impl Store for Http {
    fn get(&self, url: &Url, from: u64, condition: Condition<'_>) -> Result<Reply, Failure> {
        let mut request = self.agent.get(url.full());
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request = match condition {
            Condition::Any => request,
            Condition::Unlike(version) => match version.strip_prefix(DATE) {
                Some(date) => request.header("If-Modified-Since", date),
                None => request.header("If-None-Match", version),
            },
            Condition::Like(version) => match version.strip_prefix(DATE) {
                Some(date) => request.header("If-Unmodified-Since", date),
                // A weak tag matches nothing here; what comes back is compared by the caller.
                None if version.starts_with("W/") => request,
                None => request.header("If-Match", version),
            },
        };
        let response = request.call().map_err(failure)?;
        let (parts, body) = response.into_parts();
        reply(parts.status, &parts.headers, from, || Box::new(body.into_reader()))
    }
}

fn reply(
    status: StatusCode,
    headers: &HeaderMap,
    from: u64,
    body: impl FnOnce() -> Box<dyn io::Read + Send>,
) -> Result<Reply, Failure> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let version = header("etag")
        .map(str::to_owned)
        .or_else(|| header("last-modified").map(|date| format!("{DATE}{date}")));
    match status.as_u16() {
        200 => {
            let total = header("content-length").and_then(number);
            Ok(Reply::Body { body: body(), offset: 0, total, version })
        }
        206 => {
            let (offset, total) = header("content-range")
                .and_then(content_range)
                .ok_or_else(|| Failure::retry("206 without a usable Content-Range"))?;
            Ok(Reply::Body { body: body(), offset, total, version })
        }
        304 => Ok(Reply::Unchanged),
        412 => Err(Failure::Changed),
        416 => {
            let total = header("content-range").and_then(|range| number(range.strip_prefix("bytes */")?));
            Ok(Reply::Ended { total: total.unwrap_or(from) })
        }
        404 | 410 => Err(Failure::Missing),
        408 | 425 | 429 | 500..=599 => {
            let after = header("retry-after").and_then(|value| retry_after(value, header("date")));
            Err(Failure::Retry { problem: format!("the server answered {status}"), after })
        }
        _ => Err(Failure::Refused { problem: format!("the server answered {status}") }),
    }
}

/// How long `Retry-After` asks to wait: seconds, or a date, by the server's own clock where it tells the time.
fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let own = || SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let now = date.and_then(http_date::seconds).or_else(own)?;
    Some(Duration::from_secs(http_date::seconds(value)?.saturating_sub(now)))
}

/// First byte and whole length of `bytes 5-9/10`; the length may be `*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((first, None)),
        digits => Some((first, Some(digits.parse().ok()?))),
    }
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Other(_)
        | Error::BadUri(_)
        | Error::Http(_)
        | Error::TooManyRedirects
        | Error::RedirectFailed
        | Error::Tls(_)
        | Error::Rustls(_)
        | Error::RequireHttpsOnly(_)
        | Error::InvalidProxyUrl
        | Error::TlsRequired => Failure::Refused { problem: error.to_string() },
        Error::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
            Failure::Refused { problem: error.to_string() }
        }
        error => Failure::retry(error),
    }
}

/// Resolves names, also those of redirects, to anything but link-local addresses.
#[derive(Debug, Default)]
struct NoLinkLocal(DefaultResolver);

impl Resolver for NoLinkLocal {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        if found.iter().any(|address| is_link_local(address.ip())) {
            let message = "it leads to a link-local address, where clouds serve credentials";
            return Err(Error::Other(message.into()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("lines 5-9/10"), None);
    }

    #[test]
    fn a_server_may_ask_for_seconds_or_name_a_time() {
        let (date, later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:51:37 GMT");
        assert_eq!(retry_after("120", None), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(later, Some(date)), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(date, Some(later)), Some(Duration::ZERO));
        assert_eq!(retry_after(later, None), Some(Duration::ZERO), "long ago by our clock");
        assert_eq!(retry_after("soon", Some(date)), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(text in "(bytes )?[0-9*/ -]{0,12}") {
            let _ = content_range(&text);
        }
    }
}
