//! The file that a core goes to.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CoredumpError;

/// Guest memory is for nobody but the owner.
const MODE: u32 = 0o600;

/// A file that was made for a core. It is removed again unless it is kept.
pub(in crate::vm) struct CoreFile {
    pub(super) file: File,
    path: PathBuf,
    kept: bool,
}

impl CoreFile {
    /// Makes the file that `url` names: `file://` and an absolute path, taken as it stands.
    ///
    /// # Errors
    ///
    /// [`CoredumpError`]; whatever is at the path stays as it is.
    pub(in crate::vm) fn create(url: &str) -> Result<Self, CoredumpError> {
        let path = url.strip_prefix("file://").map(Path::new);
        let Some(path) = path.filter(|path| path.is_absolute()) else {
            return Err(CoredumpError::Url {
                url: url.to_owned(),
            });
        };
        // A link at the end of the path is not followed either: it is there.
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|source| CoredumpError::Create {
                url: url.to_owned(),
                source,
            })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kept: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the file is on stable storage, by its name.
    pub(super) fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Who may add to a folder need not be allowed to read it.
        if let Some(folder) = self.path.parent()
            && let Ok(folder) = File::open(folder)
        {
            folder.sync_all()?;
        }
        self.kept = true;
        Ok(())
    }

    /// Whether the path still names this file.
    fn is_in_place(&self) -> io::Result<bool> {
        let (this, there) = (self.file.metadata()?, fs::symlink_metadata(&self.path)?);
        Ok((this.dev(), this.ino()) == (there.dev(), there.ino()))
    }
}

impl Drop for CoreFile {
    fn drop(&mut self) {
        if !self.kept
            && self.is_in_place().unwrap_or(false)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an incomplete core");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn url(path: &Path) -> String {
        format!("file://{}", path.display())
    }

    fn refusal(url: &str) -> String {
        let error = CoreFile::create(url).err().expect("it is refused");
        assert!(error.is_request(), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("destination_url "), "{message}");
        assert!(message.contains(&format!("{url:?}")), "{message}");
        message
    }

    #[test]
    fn url_of_another_kind_is_refused() {
        for url in [
            "",
            "/core",
            "core",
            "file:/core",
            "file://core",
            "file://localhost/core",
            "FILE:///core",
            "http://host/core",
        ] {
            let message = refusal(url);
            assert!(
                message.contains("file:// and an absolute path"),
                "{message}"
            );
        }
    }

    #[test]
    fn path_where_no_file_can_be_made_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "mine").unwrap();
        let link = folder.path().join("link");
        symlink(folder.path().join("nowhere"), &link).unwrap();
        for path in [
            file.as_path(),
            &file.join("below"),
            &link,
            folder.path(),
            &folder.path().join("missing/core"),
            &folder.path().join("n".repeat(256)),
            &folder.path().join("a\0b"),
        ] {
            refusal(&url(path));
        }
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert!(!folder.path().join("nowhere").exists());
    }

    #[test]
    fn file_is_for_its_owner_and_is_removed_unless_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let core = CoreFile::create(&url(&path)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(core);
        assert!(!path.exists());
        let mut core = CoreFile::create(&url(&path)).unwrap();
        core.file.write_all(b"core").unwrap();
        core.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"core");
    }

    #[test]
    fn file_that_took_the_place_of_an_incomplete_core_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let core = CoreFile::create(&url(&path)).unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "other").unwrap();
        fs::rename(&other, &path).unwrap();
        drop(core);
        assert_eq!(fs::read(&path).unwrap(), b"other");
    }
}
