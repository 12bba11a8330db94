//! The one place that reads the process environment.

use std::path::PathBuf;

/// Where downloads are kept between runs and between clones: `$XDG_CACHE_HOME/blip2`, else `~/.cache/blip2`.
/// `None` where neither variable is set.
#[must_use]
pub fn cache_dir() -> Option<PathBuf> {
    cache_below(read_filled("XDG_CACHE_HOME"), read_filled("HOME"))
}

fn cache_below(cache_home: Option<String>, home: Option<String>) -> Option<PathBuf> {
    let cache_home = cache_home.map(PathBuf::from).filter(|path| path.is_absolute());
    Some(cache_home.or_else(|| home.map(|home| PathBuf::from(home).join(".cache")))?.join("blip2"))
}

/// A variable of this process; `None` when it is unset or not UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
pub(crate) fn read(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A variable of this process, for [`crate::detect`].
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    read(name)
}

/// As [`read`], where empty means unset: compose files and job templates hand on variables they have no value for.
pub(crate) fn read_filled(name: &str) -> Option<String> {
    read(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_xdg_specification_puts_it() {
        let dir = |cache: &str, home: &str| {
            let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            cache_below(filled(cache), filled(home))
        };
        assert_eq!(dir("/c", "/root"), Some("/c/blip2".into()));
        assert_eq!(dir("", "/root"), Some("/root/.cache/blip2".into()));
        assert_eq!(
            dir("relative", "/root"),
            Some("/root/.cache/blip2".into()),
            "relative paths are to be ignored"
        );
        assert_eq!(dir("", ""), None);
    }
}
