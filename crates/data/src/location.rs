//! Where a shard lies: a path, or a URL that names one object.
//!
//! What may be named is a closed set. `pipe:` and `file:` are refused, and so are URLs with a user and a password in
//! them (they would end up in logs) and the link-local addresses under which clouds hand out credentials. A URL is
//! shown without its query, because signed URLs carry their signature there.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// A shard's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A file of this machine.
    Local(PathBuf),
    /// An object elsewhere; it is read through a local copy.
    Remote(Url),
}

/// The ways to a remote object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http://` and `https://`
    Http,
    /// `s3://bucket/key`
    #[cfg(feature = "cloud")]
    S3,
    /// `gs://bucket/key`
    #[cfg(feature = "cloud")]
    Gs,
    /// `az://container/key`
    #[cfg(feature = "cloud")]
    Az,
}

/// A checked URL. Its `Display` and `Debug` show no query.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Url {
    full: String,
    scheme: Scheme,
}

impl Url {
    /// The whole URL, for requests and cache keys only: a query may hold a signature.
    pub fn full(&self) -> &str {
        &self.full
    }

    /// How it is reached.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The URL of the file beside this one whose name is longer by `suffix`.
    pub fn beside(&self, suffix: &str) -> Self {
        let path_end = self.full.find(['?', '#']).unwrap_or(self.full.len());
        let (path, query) = self.full.split_at(path_end);
        Self { full: format!("{path}{suffix}{query}"), scheme: self.scheme }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&redacted(&self.full))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Url({self})")
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(formatter),
            Self::Remote(url) => url.fmt(formatter),
        }
    }
}

impl Location {
    /// Reads one name without braces. The error says what is wrong and shows no credentials.
    pub fn parse(name: &str) -> Result<Self, String> {
        if name.starts_with("pipe:") {
            return Err("programs are not run to read data".into());
        }
        let Some((scheme, rest)) = name.split_once("://") else { return Ok(Self::Local(name.into())) };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Scheme::Http,
            #[cfg(feature = "cloud")]
            "s3" => Scheme::S3,
            #[cfg(feature = "cloud")]
            "gs" => Scheme::Gs,
            #[cfg(feature = "cloud")]
            "az" => Scheme::Az,
            #[cfg(not(feature = "cloud"))]
            "s3" | "gs" | "az" => {
                let problem =
                    "this program was built without it; `cargo build --release --bins --features cloud`";
                return Err(problem.into());
            }
            "file" => return Err("write a plain path instead of file://".into()),
            other => return Err(format!("{other:?} is not one of http, https, s3, gs, az")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a user or password in a URL would be logged; leave it out".into());
        }
        if authority.is_empty() || !authority.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the URL names no host".into());
        }
        if path.split(['?', '#']).next().is_none_or(|path| path.is_empty() || path.ends_with('/')) {
            return Err("a remote folder cannot be listed; write a brace pattern or a list file".into());
        }
        if host_address(authority).is_some_and(is_link_local) {
            return Err("link-local addresses are not read: clouds serve credentials there".into());
        }
        Ok(Self::Remote(Url { full: name.to_owned(), scheme }))
    }

    /// The folder or URL prefix that it lies in: keys are unique inside one.
    pub(crate) fn folder(&self) -> String {
        match self {
            Self::Local(path) => path.parent().unwrap_or(path).display().to_string(),
            Self::Remote(url) => {
                let path = url.full.split(['?', '#']).next().unwrap_or_default();
                path.rsplit_once('/').map_or(path, |(folder, _)| folder).to_owned()
            }
        }
    }
}

/// The address that `authority` writes out, if it is no name.
fn host_address(authority: &str) -> Option<IpAddr> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => authority.split(':').next()?,
    };
    host.parse().ok()
}

/// 169.254.0.0/16 and fe80::/10, the first also as an IPv4-mapped address.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => {
            v6.to_ipv4_mapped().is_some_and(|v4| v4.is_link_local()) || v6.segments()[0] & 0xffc0 == 0xfe80
        }
    }
}

/// `name` without what may be a secret: user, password and query of a URL.
pub(crate) fn redacted(name: &str) -> String {
    let Some((scheme, rest)) = name.split_once("://") else { return name.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let Location::Remote(url) = Location::parse("https://host:8/a/0.tar?sig=SECRET").unwrap() else {
            panic!("a URL is remote");
        };
        assert_eq!(url.to_string(), "https://host:8/a/0.tar");
        assert_eq!(url.beside(".index").full(), "https://host:8/a/0.tar.index?sig=SECRET");
        assert_eq!(format!("{url:?}"), "Url(https://host:8/a/0.tar)");
        assert_eq!(redacted("http://me:word@host/a?b"), "http://host/a");
    }

    #[test]
    fn folders_scope_keys() {
        assert_eq!(Location::parse("a/b/0.tar").unwrap().folder(), "a/b");
        assert_eq!(Location::parse("http://h/a/0.tar?x=/").unwrap().folder(), "http://h/a");
    }

    proptest! {
        #[test]
        fn no_secret_survives(user in "[a-z]{1,5}", word in "[A-Z]{6,9}", query in "[A-Z]{6,9}") {
            let shown = redacted(&format!("https://{user}:{word}@host/p?q={query}"));
            prop_assert!(!shown.contains(&word) && !shown.contains(&query));
        }

        #[test]
        fn any_text_is_a_location_or_refused(name in "\\PC{0,40}", url in "(http|s3|file|x)://[@/?#:a.0-9\\[\\]]{0,20}") {
            let _ = Location::parse(&name);
            let _ = Location::parse(&url);
            let _ = redacted(&url);
        }
    }
}
