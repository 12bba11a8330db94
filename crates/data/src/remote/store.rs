//! What a remote store can be asked, and what it can answer.

use std::fmt::Debug;
use std::io::Read;
use std::time::Duration;

use crate::location::Url;

/// Which version of an object is wanted. A version is an ETag, or what stands in for one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition<'a> {
    /// Any.
    Any,
    /// Only one that is not this.
    Unlike(&'a str),
    /// Only this.
    Like(&'a str),
}

/// An answer that is no failure.
pub(crate) enum Reply {
    /// The object is the one that was not wanted again.
    Unchanged,
    /// The object ends before the bytes that were asked for.
    Ended {
        /// Its length.
        total: u64,
    },
    /// The bytes from `offset` on.
    Body {
        /// They may end early; that is for the caller to see.
        body: Box<dyn Read + Send>,
        /// Where they start: where it was asked, or 0 when the store cannot do that.
        offset: u64,
        /// Length of the whole object, if the store says so.
        total: Option<u64>,
        /// Version of the object, if the store has such a thing.
        version: Option<String>,
    },
}

/// Why there is no answer. No message holds a URL.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Trying again may help.
    Retry {
        /// What happened.
        problem: String,
        /// How long the store asks to be left alone.
        after: Option<Duration>,
    },
    /// There is no such object.
    Missing,
    /// The object is another one by now.
    Changed,
    /// The store will say no again.
    Refused {
        /// What it said.
        problem: String,
    },
}

impl Failure {
    /// A failure that trying again may cure.
    pub(crate) fn retry(problem: impl ToString) -> Self {
        Self::Retry { problem: problem.to_string(), after: None }
    }
}

/// One way to objects.
pub(crate) trait Store: Debug + Send + Sync {
    /// The bytes of the object at `url` from `from` on.
    fn get(&self, url: &Url, from: u64, condition: Condition<'_>) -> Result<Reply, Failure>;
}
