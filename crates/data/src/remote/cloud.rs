//! `s3://`, `gs://` and `az://`, by `object_store`. Credentials come from where the clouds' own tools look for them:
//! the environment, or the machine's identity.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::DataError;
use crate::location::{Scheme, Url};

use super::RemoteOptions;
use super::store::{Condition, Failure, Reply, Store};

/// Threads that move bytes; the callers wait.
const THREADS: usize = 2;

type Buckets = HashMap<String, Arc<dyn ObjectStore>>;

/// One client for each bucket.
#[derive(Debug)]
pub(super) struct Cloud {
    runtime: Runtime,
    connect_timeout: Duration,
    shard_deadline: Duration,
    stall_timeout: Duration,
    buckets: Mutex<Buckets>,
}

impl Cloud {
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, DataError> {
        // Whoever comes first decides for the whole process, and any choice will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
        let failed =
            |error: io::Error| DataError::Worker { worker: "cloud".into(), message: error.to_string() };
        Ok(Self {
            runtime: runtime.map_err(failed)?,
            connect_timeout: options.connect_timeout,
            shard_deadline: options.shard_deadline,
            stall_timeout: options.stall_timeout,
            buckets: Mutex::default(),
        })
    }

    /// The client of the URL's bucket, and the object's name in it.
    fn bucket(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), Failure> {
        let refused = |error: &dyn ToString| Failure::Refused { problem: error.to_string() };
        let (base, name) = split(url.full()).ok_or_else(|| refused(&"the URL names no object"))?;
        let path = Path::parse(name).map_err(|error| refused(&error))?;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get(base) {
            return Ok((Arc::clone(bucket), path));
        }
        let bucket = self.connect(url.scheme(), base).map_err(|error| refused(&error))?;
        buckets.insert(base.to_owned(), Arc::clone(&bucket));
        Ok((bucket, path))
    }

    fn connect(&self, scheme: Scheme, base: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Trying again is our own business: it knows how far a download got.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        // Set key by key, so that the rest (proxies, plain http) stays as the environment says.
        let (connect, timeout) = (ClientConfigKey::ConnectTimeout, ClientConfigKey::Timeout);
        let [connect_time, time] =
            [self.connect_timeout, self.shard_deadline].map(|time| format!("{time:?}"));
        Ok(match scheme {
            Scheme::Gs => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_url(base)
                    .with_retry(retry)
                    .with_config(GoogleConfigKey::Client(connect), connect_time)
                    .with_config(GoogleConfigKey::Client(timeout), time)
                    .build()?,
            ),
            Scheme::Az => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_url(base)
                    .with_retry(retry)
                    .with_config(AzureConfigKey::Client(connect), connect_time)
                    .with_config(AzureConfigKey::Client(timeout), time)
                    .build()?,
            ),
            Scheme::S3 | Scheme::Http => Arc::new(
                AmazonS3Builder::from_env()
                    .with_url(base)
                    .with_retry(retry)
                    .with_config(AmazonS3ConfigKey::Client(connect), connect_time)
                    .with_config(AmazonS3ConfigKey::Client(timeout), time)
                    .build()?,
            ),
        })
    }
}

impl Store for Cloud {
    fn get(&self, url: &Url, from: u64, condition: Condition<'_>) -> Result<Reply, Failure> {
        let (bucket, path) = self.bucket(url)?;
        let mut options = GetOptions::default();
        options.range = (from > 0).then_some(GetRange::Offset(from));
        match condition {
            Condition::Any => {}
            Condition::Like(version) => options.if_match = Some(version.to_owned()),
            Condition::Unlike(version) => options.if_none_match = Some(version.to_owned()),
        }
        let answer =
            async { tokio::time::timeout(self.stall_timeout, bucket.get_opts(&path, options)).await };
        let answer = match self.runtime.block_on(answer) {
            Err(_) => return Err(Failure::retry("no answer in time")),
            Ok(Err(Error::NotModified { .. })) => return Ok(Reply::Unchanged),
            Ok(Err(error)) if from > 0 => return self.past_the_end(&*bucket, &path, from, error),
            Ok(Err(error)) => return Err(failure(error)),
            Ok(Ok(answer)) => answer,
        };
        let (total, version, offset) = (answer.meta.size, answer.meta.e_tag.clone(), answer.range.start);
        let body = Body {
            runtime: self.runtime.handle().clone(),
            stream: answer.into_stream(),
            stall_timeout: self.stall_timeout,
            chunk: None,
            taken: 0,
        };
        Ok(Reply::Body { body: Box::new(body), offset, total: Some(total), version })
    }
}

impl Cloud {
    /// A range behind the end is an error of its own in each cloud, so the length is asked for.
    fn past_the_end(
        &self,
        bucket: &dyn ObjectStore,
        path: &Path,
        from: u64,
        error: Error,
    ) -> Result<Reply, Failure> {
        if matches!(error, Error::Precondition { .. } | Error::NotFound { .. }) {
            return Err(failure(error));
        }
        match self.runtime.block_on(bucket.head(path)) {
            Ok(meta) if meta.size <= from => Ok(Reply::Ended { total: meta.size }),
            _ => Err(failure(error)),
        }
    }
}

/// `scheme://bucket` and the object's name.
fn split(url: &str) -> Option<(&str, &str)> {
    let host = url.find("://")? + 3;
    let slash = host + url[host..].find('/')?;
    Some((&url[..slash], &url[slash + 1..]))
}

fn failure(error: Error) -> Failure {
    match error {
        Error::NotFound { .. } => Failure::Missing,
        Error::Precondition { .. } => Failure::Changed,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::InvalidPath { .. } => {
            Failure::Refused { problem: error.to_string() }
        }
        error => Failure::retry(error),
    }
}

/// A stream of chunks as something to read.
struct Body<S, C> {
    runtime: Handle,
    stream: S,
    stall_timeout: Duration,
    chunk: Option<C>,
    taken: usize,
}

impl<S, C> Read for Body<S, C>
where
    S: Stream<Item = object_store::Result<C>> + Unpin,
    C: AsRef<[u8]>,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk.as_ref()[self.taken..]);
            if !rest.is_empty() {
                let count = into.len().min(rest.len());
                into[..count].copy_from_slice(&rest[..count]);
                self.taken += count;
                return Ok(count);
            }
            let next = async { tokio::time::timeout(self.stall_timeout, self.stream.next()).await };
            match self.runtime.block_on(next).map_err(|_| io::ErrorKind::TimedOut)? {
                None => return Ok(0),
                Some(chunk) => (self.chunk, self.taken) = (Some(chunk.map_err(io::Error::other)?), 0),
            }
        }
    }
}
