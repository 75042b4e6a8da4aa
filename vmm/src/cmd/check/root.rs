//! The host's file tree, or a made one in tests.

use std::io;
use std::path::{Path, PathBuf};

/// The directory under which /proc, /sys and /dev are.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// The host's own tree.
    pub(super) fn host() -> Self {
        Self(PathBuf::from("/"))
    }

    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where an absolute path is in this tree.
    pub(super) fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    pub(super) fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }

    /// The text of a file without blanks around it; empty when it cannot be read, as no file that is read here is
    /// empty for another reason.
    pub(super) fn read(&self, absolute: impl AsRef<Path>) -> String {
        let text = std::fs::read_to_string(self.path(absolute)).unwrap_or_default();
        text.trim().to_owned()
    }

    /// The number that a file holds.
    pub(super) fn number(&self, absolute: impl AsRef<Path>) -> Option<u64> {
        self.read(absolute).parse().ok()
    }

    /// Whether a file can be opened to be read and written.
    pub(super) fn open(&self, absolute: &str) -> io::Result<std::fs::File> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).open(self.path(absolute))
    }
}
