//! Disks for tests.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use super::super::{BlockSizes, Disk, FileDisk, Pieces, ResizeError, Unmapping};
use super::{TIMEOUT, pattern};

const SIZES: BlockSizes = BlockSizes {
    logical: 512,
    physical: 4096,
};

const DISCARD: Unmapping = Unmapping {
    discard: true,
    fallocate: false,
};

/// What is where a [`ScriptDisk`] was discarded.
pub(crate) const DISCARDED: u8 = 0xdd;

/// What a call to a [`ScriptDisk`] does instead of all that was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Fails with an errno.
    Fail(i32),
    /// Moves at most so many bytes.
    Short(usize),
}

#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) data: Vec<u8>,
    /// The data as of the last flush.
    pub(crate) durable: Vec<u8>,
    pub(crate) flushes: u32,
    pub(crate) steps: VecDeque<Step>,
    /// What every call after `steps` does.
    pub(crate) always: Option<Step>,
}

impl Script {
    fn limit(&mut self) -> io::Result<usize> {
        match self.steps.pop_front().or(self.always) {
            Some(Step::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Step::Short(len)) => Ok(len),
            None => Ok(usize::MAX),
        }
    }
}

/// A disk in memory that follows a script, through threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScriptDisk(pub(crate) Arc<Mutex<Script>>);

impl ScriptDisk {
    pub(crate) fn new(len: usize) -> Self {
        let data = pattern(len);
        Self(Arc::new(Mutex::new(Script {
            durable: data.clone(),
            data,
            ..Script::default()
        })))
    }
}

impl Disk for ScriptDisk {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().data.len() as u64
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        let mut script = self.0.lock().unwrap();
        script.limit().map_err(|source| ResizeError::Host {
            desired_size,
            source,
        })?;
        script.data.resize(desired_size as usize, 0);
        Ok(())
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        SIZES
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        let limit = script.limit()?;
        let mut done = 0;
        for slice in pieces.slices() {
            let from = &script.data[offset as usize + done..];
            let len = slice.len().min(limit - done).min(from.len());
            slice.subslice(0, len).unwrap().copy_from(&from[..len]);
            done += len;
        }
        Ok(done)
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        let limit = script.limit()?;
        let mut done = 0;
        for slice in pieces.slices() {
            let len = slice.len().min(limit - done);
            let to = &mut script.data[offset as usize + done..][..len];
            slice.subslice(0, len).unwrap().copy_to(to);
            done += len;
        }
        Ok(done)
    }

    fn flush(&self) -> io::Result<()> {
        let mut script = self.0.lock().unwrap();
        script.limit()?;
        script.flushes += 1;
        script.durable = script.data.clone();
        Ok(())
    }

    fn unmapping(&self) -> Unmapping {
        DISCARD
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut script = self.0.lock().unwrap();
        script.limit()?;
        script.data[offset as usize..][..len as usize].fill(DISCARDED);
        Ok(())
    }
}

/// A file disk that io_uring does not get, or gets a descriptor for that it refuses.
#[derive(Debug)]
pub(crate) struct WithoutUring {
    pub(crate) disk: FileDisk,
    pub(crate) refused: Option<File>,
}

impl Disk for WithoutUring {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        self.disk.resize(desired_size)
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.disk.block_sizes()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.refused.as_ref().map(File::as_fd)
    }

    fn unmapping(&self) -> Unmapping {
        self.disk.unmapping()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.disk.read_at(pieces, offset)
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.disk.write_at(pieces, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}

/// Any descriptor as a disk, through io_uring only.
#[derive(Debug)]
pub(crate) struct UringDisk {
    pub(crate) file: File,
    pub(crate) size: Arc<AtomicU64>,
}

impl UringDisk {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            size: Arc::new((1 << 20).into()),
        }
    }

    pub(crate) fn open(path: &str) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self::new(file)
    }
}

impl Disk for UringDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        self.size.store(desired_size, Ordering::Relaxed);
        Ok(())
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        SIZES
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_at(&self, _pieces: Pieces<'_>, _offset: u64) -> io::Result<usize> {
        panic!("io_uring is forbidden here; `sysctl kernel.io_uring_disabled=0` allows it")
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.read_at(pieces, offset)
    }

    fn flush(&self) -> io::Result<()> {
        panic!("io_uring is forbidden here; `sysctl kernel.io_uring_disabled=0` allows it")
    }
}

/// A disk in memory, each transfer and flush of which waits until it is let go, through threads.
#[derive(Debug)]
pub(crate) struct HeldDisk {
    disk: ScriptDisk,
    gate: Mutex<Receiver<()>>,
}

impl HeldDisk {
    /// The disk, what is on it, and what lets one operation go.
    pub(crate) fn new(len: usize) -> (Self, ScriptDisk, Sender<()>) {
        let disk = ScriptDisk::new(len);
        let (sender, receiver) = channel();
        let held = Self {
            disk: disk.clone(),
            gate: Mutex::new(receiver),
        };
        (held, disk, sender)
    }

    fn wait(&self) {
        let gate = self.gate.lock().unwrap();
        gate.recv_timeout(TIMEOUT).expect("the operation is let go");
    }
}

impl Disk for HeldDisk {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        self.disk.resize(desired_size)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        SIZES
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.wait();
        self.disk.read_at(pieces, offset)
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.wait();
        self.disk.write_at(pieces, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.wait();
        self.disk.flush()
    }

    fn unmapping(&self) -> Unmapping {
        DISCARD
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.wait();
        self.disk.discard(offset, len)
    }
}

/// A block device of the host, which was made 2 MiB large there.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) disk: ScriptDisk,
}

impl Disk for Elsewhere {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn resize(&self, desired_size: u64) -> Result<(), ResizeError> {
        let found = 2 << 20;
        if desired_size != found {
            return Err(ResizeError::BlockDevice {
                desired_size,
                found,
            });
        }
        self.disk.resize(found)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        self.disk.block_sizes()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.disk.read_at(pieces, offset)
    }

    fn write_at(&self, pieces: Pieces<'_>, offset: u64) -> io::Result<usize> {
        self.disk.write_at(pieces, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}
