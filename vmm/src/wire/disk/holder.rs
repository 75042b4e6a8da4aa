//! Who has locked a file.

use std::fmt;
use std::fs::{self, File};
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// A process that has a lock on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Number of the process.
    pub pid: u32,
    /// Its name, as the kernel shows it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// A process that has a lock on `file`, as far as this one can see. The kernel does not tell whose a lock is that belongs to an
/// open file, but lists locks with each descriptor.
pub(super) fn find(file: &File) -> Option<Holder> {
    let metadata = file.metadata().ok()?;
    let device = metadata.st_dev();
    let inode = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        metadata.st_ino()
    );
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            locks(&process.path(), &inode).then_some((pid, process.path()))
        })
        .map(|(pid, path)| {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            Holder {
                pid,
                name: name.trim().to_owned(),
            }
        })
        .next()
}

/// Whether one of the descriptors of `process` has a lock on `inode`.
fn locks(process: &Path, inode: &str) -> bool {
    let descriptors = fs::read_dir(process.join("fdinfo")).into_iter().flatten();
    descriptors.flatten().any(|descriptor| {
        // It may be closed by now.
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
        locks.any(|lock| lock.split_whitespace().any(|field| field == inode))
    })
}
