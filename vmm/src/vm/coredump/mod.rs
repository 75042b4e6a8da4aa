//! A core of a machine: an ELF64 file of its memory and of its vCPUs' registers, for debuggers.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`elf`] | the frame of the file |
//! | [`notes`] | registers as notes |
//! | [`touched`] | which memory is worth a look |
//! | [`writer`] | memory on its way to the file |
//! | [`file`] | the file, which goes again when it is not finished |

mod elf;
mod file;
mod notes;
mod touched;
mod writer;

use std::io;
use std::path::PathBuf;

use vm_memory::GuestAddressSpace;

pub(in crate::vm) use self::file::CoreFile;
pub(in crate::vm) use self::writer::Piece;
use super::machine::Machine;
use crate::kvm::vcpu::VcpuError;

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
pub(super) enum CoredumpError {
    /// The URL is of another kind.
    #[error("destination_url {url:?}: expected file:// and an absolute path")]
    Url {
        /// As given.
        url: String,
    },
    /// There can be no new file.
    #[error("destination_url {url:?}: cannot create a new file there")]
    Create {
        /// As given.
        url: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A vCPU does not tell its registers.
    #[error("cannot read the registers")]
    Registers(#[from] VcpuError),
    /// The file cannot be finished.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Where it was.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl CoredumpError {
    /// Whether another URL would do. Otherwise the host is at fault.
    pub(super) fn is_request(&self) -> bool {
        match self {
            Self::Url { .. } => true,
            // Without a number, it was the standard library that did not take the path.
            Self::Create { source, .. } => source.raw_os_error().is_none_or(|number| {
                matches!(
                    number,
                    libc::EACCES
                        | libc::EEXIST
                        | libc::EINVAL
                        | libc::EISDIR
                        | libc::ELOOP
                        | libc::ENAMETOOLONG
                        | libc::ENOENT
                        | libc::ENOTDIR
                        | libc::EPERM
                        | libc::EROFS
                )
            }),
            Self::Registers(_) | Self::Write { .. } => false,
        }
    }
}

/// Writes a core of `machine`, which is paused, to `file`, and returns when it is on stable storage.
///
/// # Errors
///
/// [`CoredumpError`]; the file is gone.
pub(super) fn write(machine: &Machine, mut file: CoreFile) -> Result<(), CoredumpError> {
    let notes = notes::notes(&machine.vcpus.registers()?);
    let ram = machine.memory.map.memory();
    let pieces = machine.memory.pieces();
    let path = file.path().to_owned();
    writer::write(&mut file.file, &ram, &pieces, &notes)
        .and_then(|()| file.keep())
        .map_err(|source| CoredumpError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_that_has_no_room_for_a_file_is_not_the_requests_fault() {
        for (number, request) in [
            (libc::EEXIST, true),
            (libc::ENOSPC, false),
            (libc::EMFILE, false),
            (libc::EIO, false),
        ] {
            let error = CoredumpError::Create {
                url: "file:///core".to_owned(),
                source: io::Error::from_raw_os_error(number),
            };
            assert_eq!(error.is_request(), request, "{number}");
        }
    }
}
