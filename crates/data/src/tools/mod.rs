//! Making shards and looking at them: what is behind `blip2 data make`, `verify`, `stats` and `inspect`.

mod annotations;
mod find;
mod make;
mod page;
pub(crate) mod shard;
mod statistics;
mod survey;

use std::path::PathBuf;

pub use make::{Made, MakeOptions, make};
pub use page::{PAGE_SAMPLES, write_page};
pub use statistics::{Spread, Statistics};
pub use survey::{Duplicates, Survey, survey};

use crate::error::DataError;

/// Errors of the tools. Bad samples are no errors: they are counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// An annotation file cannot be used: mend it.
    #[error("{}: {problem}", path.display())]
    Annotations {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line or record where there is one.
        problem: String,
    },
    /// Nothing was found to make shards of: name another folder.
    #[error("{}: {problem}", path.display())]
    Nothing {
        /// What was looked at.
        path: PathBuf,
        /// What it lacks.
        problem: String,
    },
    /// The folder to make holds shards of that name already: name another, or remove them.
    #[error("{} is there already; remove it, or choose another --out or --name", path.display())]
    Exists {
        /// The first such shard.
        path: PathBuf,
    },
    /// A file or folder cannot be read or written: look at the disk.
    #[error("{} could not be {what}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The shards cannot be read, or a thread panicked.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl ToolError {
    fn reading(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what: "read", source }
    }

    fn writing(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, what: "written", source }
    }
}
