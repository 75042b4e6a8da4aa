//! The file of an image, as the crate that knows the format reads and writes it.
//!
//! Its metadata reach the disk in an order in which each state that a crash can leave is sound. At worst, clusters are lost
//! (leaked) then:
//!
//! - A refcount is raised before a table names its cluster, and lowered after no table does any more.
//! - What a new cluster holds is there before a table names it.
//! - A freed cluster is not written again before the table that named it was.
//!
//! Where one kind of write must follow another, everything before it is made durable first. The format's own caches
//! already write in that order, save for tables that are entered into the L1 and the refcount table, whose refcounts are
//! raised here.

#[cfg(test)]
mod record;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::layout::{Kind, Layout, overlap};
use super::pieces;
use crate::virtio::block::disk::{Pieces, is_unsupported};
use crate::virtio::block::file::{PUNCH_HOLE, check_file_limit, fallocate};
use crate::virtio::block::lock::Lock;

/// What is written at once where the host cannot zero a range.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// The file of one layer, shared by the format and the disk.
#[derive(Clone)]
pub(super) struct ImageFile(Arc<Inner>);

struct Inner {
    file: File,
    /// Others are kept off as long as this is there.
    _lock: Option<Lock>,
    blockers: CommonStorageHelper,
    /// None if nothing is written.
    written: Option<Written>,
    #[cfg(test)]
    record: Mutex<Option<super::tests::power::Record>>,
}

/// What is kept of a file that is written.
struct Written {
    layout: RwLock<Layout>,
    order: Mutex<Order>,
    /// Where the file ends.
    end: AtomicU64,
    /// The folder of a file that was just made, which has to be made durable with it.
    folder: Mutex<Option<File>>,
}

/// What was written but is not durable.
#[derive(Debug, Default)]
struct Order {
    /// What new clusters hold.
    data: bool,
    refcounts: bool,
    /// Tables that name clusters.
    tables: bool,
    /// Clusters of tables, whose refcounts are not below 1 whatever the format's cache still has.
    raised: HashSet<u64>,
}

impl fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImageFile").field(&self.0.file).finish()
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {}", self.0.file.as_raw_fd())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageFile {
    /// A file that is only read.
    pub(super) fn read_only(file: File, lock: Option<Lock>) -> Self {
        Self::new(file, lock, None)
    }

    /// A qcow2 image of `len` bytes with its metadata in `layout`, which is written. `folder` is given if the file was just
    /// made in there.
    pub(super) fn writable(
        file: File,
        lock: Option<Lock>,
        layout: Layout,
        len: u64,
        folder: Option<File>,
    ) -> Self {
        let written = Written {
            layout: RwLock::new(layout),
            order: Mutex::default(),
            end: len.into(),
            folder: Mutex::new(folder),
        };
        Self::new(file, lock, Some(written))
    }

    fn new(file: File, lock: Option<Lock>, written: Option<Written>) -> Self {
        Self(Arc::new(Inner {
            file,
            _lock: lock,
            blockers: CommonStorageHelper::default(),
            written,
            #[cfg(test)]
            record: Mutex::default(),
        }))
    }

    /// Fills the first `len` bytes of `pieces` from `offset`, with zeros behind the end of the file; as much as one call of
    /// the host moves.
    pub(super) fn read_pieces(
        &self,
        pieces: Pieces<'_>,
        len: u64,
        offset: u64,
    ) -> io::Result<usize> {
        let count = pieces::read(&self.0.file, pieces, len, offset)?;
        if count > 0 {
            return Ok(count);
        }
        Ok(pieces::fill_zeros(pieces, len))
    }

    /// Writes the first `len` bytes of `pieces` to `offset`, in clusters that the guest's disk has already. Returns how many
    /// bytes one call of the host took.
    pub(super) fn write_in_place(
        &self,
        pieces: Pieces<'_>,
        len: u64,
        offset: u64,
    ) -> io::Result<usize> {
        let written = self.written()?;
        written.check_data(offset, len)?;
        self.grow(written, offset + len)?;
        let count = pieces::write(&self.0.file, pieces, 0, len, offset)?;
        self.record_pieces(pieces, 0, count, offset);
        Ok(count)
    }

    /// Writes all of the first `len` bytes of `pieces` to `offset`, in clusters that were just allocated.
    pub(super) fn write_new(&self, pieces: Pieces<'_>, len: u64, offset: u64) -> io::Result<()> {
        let written = self.written()?;
        let mut order = locked(&written.order);
        written.check_data(offset, len)?;
        self.before(&mut order, Kind::Data)?;
        self.grow(written, offset + len)?;
        order.data = true;
        let mut done = 0;
        while done < len {
            match pieces::write(&self.0.file, pieces, done, len - done, offset + done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.record_pieces(pieces, done, count, offset + done);
                    done += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the host's blocks of `len` bytes at `offset` back, which read as zeros then. They are the guest's alone.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.written()?.check_data(offset, len)?;
        match fallocate(&self.0.file, PUNCH_HOLE, offset, len) {
            // Giving back is all that is missed.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => {
                self.record_zeros(offset, len);
                result
            }
        }
    }

    /// Makes all durable that was written. The format's caches were written out before, and nothing changes the metadata
    /// meanwhile.
    pub(super) fn settle(&self) -> io::Result<()> {
        let written = self.written()?;
        let mut order = locked(&written.order);
        self.sync_all(&mut order)?;
        order.raised.clear();
        let mut folder = locked(&written.folder);
        if let Some(made_in) = folder.as_ref() {
            made_in.sync_all()?;
        }
        *folder = None;
        Ok(())
    }

    fn written(&self) -> io::Result<&Written> {
        self.0
            .written
            .as_ref()
            .ok_or_else(|| io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Makes durable what must be before something of `kind` is written.
    fn before(&self, order: &mut Order, kind: Kind) -> io::Result<()> {
        let first = match kind {
            Kind::Data | Kind::Refblock => order.tables,
            Kind::L2 => order.data || order.refcounts,
            Kind::Header | Kind::L1 | Kind::Reftable => {
                order.data || order.refcounts || order.tables
            }
        };
        if first { self.sync_all(order) } else { Ok(()) }
    }

    fn sync_all(&self, order: &mut Order) -> io::Result<()> {
        self.0.file.sync_data()?;
        self.record_sync();
        order.data = false;
        order.refcounts = false;
        order.tables = false;
        Ok(())
    }

    /// Fails if a write up to `end` makes the file longer than the process may make it.
    fn grow(&self, written: &Written, end: u64) -> io::Result<()> {
        if end > written.end.load(Ordering::Acquire) {
            check_file_limit(end)?;
            written.end.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    fn put(&self, written: &Written, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.grow(written, offset + bytes.len() as u64)?;
        self.0.file.write_all_at(bytes, offset)?;
        self.record(bytes, offset);
        Ok(())
    }

    /// Writes something of the format's own.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = self.written()?;
        let mut order = locked(&written.order);
        let layout = || {
            written
                .layout
                .read()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let kind = layout()
            .kind(offset, bytes.len() as u64)
            .ok_or_else(overlap)?;
        match kind {
            // Also tables that nothing names yet.
            Kind::Data => {
                self.before(&mut order, kind)?;
                order.data = true;
                self.put(written, bytes, offset)
            }
            Kind::L2 => {
                self.before(&mut order, kind)?;
                order.tables = true;
                self.put(written, bytes, offset)
            }
            Kind::Refblock => {
                self.before(&mut order, kind)?;
                order.refcounts = true;
                let block = offset >> layout().cluster_bits << layout().cluster_bits;
                let raised = order.raised.iter().filter_map(|cluster| {
                    let (of, index) = layout().refcount(*cluster, None)?;
                    (of == block).then_some(index)
                });
                let raised: Vec<_> = raised.collect();
                if raised.is_empty() || block != offset {
                    return self.put(written, bytes, offset);
                }
                let mut bytes = bytes.to_vec();
                for index in raised {
                    layout().raise(&mut bytes, index);
                }
                self.put(written, &bytes, offset)
            }
            Kind::L1 | Kind::Reftable => {
                let mut named = Vec::new();
                for (at, entry) in (offset..).step_by(8).zip(bytes.chunks_exact(8)) {
                    let entry = u64::from_be_bytes(entry.try_into().unwrap_or_default());
                    if let Some(cluster) = layout().named(kind, entry) {
                        named.push((layout().entry_index(kind, at), cluster));
                    }
                }
                for (index, cluster) in &named {
                    let block = cluster << layout().cluster_bits;
                    let added = (kind == Kind::Reftable).then_some((*index, block));
                    self.raise(written, &mut order, *cluster, added)?;
                }
                self.before(&mut order, kind)?;
                let mut layout = written
                    .layout
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                for (index, cluster) in named {
                    layout.enter(kind, index, cluster)?;
                }
                drop(layout);
                order.tables = true;
                self.put(written, bytes, offset)
            }
            Kind::Header => {
                let moved = layout().moved(bytes)?;
                let new = layout().new_l1(&moved);
                for cluster in new {
                    self.raise(written, &mut order, cluster, None)?;
                }
                self.before(&mut order, kind)?;
                order.tables = true;
                self.put(written, bytes, offset)?;
                let mut layout = written
                    .layout
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                layout.follow(&self.0.file, bytes, &moved)
            }
        }
    }

    /// Sees to it that the refcount of `cluster` in the file is above 0.
    fn raise(
        &self,
        written: &Written,
        order: &mut Order,
        cluster: u64,
        added: Option<(u64, u64)>,
    ) -> io::Result<()> {
        let layout = written
            .layout
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let (block, index) = layout.refcount(cluster, added).ok_or_else(overlap)?;
        let mut bytes = vec![0; 1 << layout.cluster_bits];
        super::header::read_up_to(&self.0.file, &mut bytes, block)?;
        order.raised.insert(cluster);
        if !layout.raise(&mut bytes, index) {
            return Ok(());
        }
        drop(layout);
        self.before(order, Kind::Refblock)?;
        order.refcounts = true;
        self.put(written, &bytes, block)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let written = self.written()?;
        let mut order = locked(&written.order);
        written.check_data(offset, len)?;
        self.before(&mut order, Kind::Data)?;
        order.data = true;
        let end = written.end.load(Ordering::Acquire);
        let inside = end.clamp(offset, offset + len) - offset;
        if inside > 0 {
            match fallocate(&self.0.file, PUNCH_HOLE, offset, inside) {
                Ok(()) => self.record_zeros(offset, inside),
                Err(error) if is_unsupported(&error) => {
                    let mut done = 0;
                    while done < inside {
                        let part = (inside - done).min(ZEROS.len() as u64);
                        self.put(written, &ZEROS[..part as usize], offset + done)?;
                        done += part;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if offset + len > end {
            check_file_limit(offset + len)?;
            // What is behind the end is as good as zeros; the file must reach up to the clusters that it has. Somebody may
            // have written further meanwhile.
            let last = [0];
            if self.0.file.metadata()?.len() < offset + len {
                self.put(written, &last, offset + len - 1)?;
            }
        }
        Ok(())
    }
}

impl Written {
    /// Fails if something else than data is in the `len` bytes at `offset`: an image may be made so that the guest's
    /// clusters are its own metadata.
    fn check_data(&self, offset: u64, len: u64) -> io::Result<()> {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        match layout.kind(offset, len) {
            Some(Kind::Data) => Ok(()),
            _ => Err(overlap()),
        }
    }
}

#[cfg(not(test))]
impl ImageFile {
    fn record(&self, _bytes: &[u8], _offset: u64) {}
    fn record_zeros(&self, _offset: u64, _len: u64) {}
    fn record_pieces(&self, _pieces: Pieces<'_>, _skip: u64, _count: usize, _offset: u64) {}
    fn record_sync(&self) {}
}

impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        let mut file = &self.0.file;
        // Block devices have no size in their metadata.
        io::Seek::seek(&mut file, io::SeekFrom::End(0))
    }

    #[allow(unsafe_code)]
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut part in bufv.into_inner() {
            let count = super::header::read_up_to(&self.0.file, &mut part, at)?;
            part[count..].fill(0);
            at += part.len() as u64;
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let parts = bufv.into_inner();
        if let [part] = parts.as_slice() {
            return self.write(part, offset);
        }
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.write(&bytes, offset)
    }

    #[allow(unsafe_code)]
    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length)
    }

    #[allow(unsafe_code)]
    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        // Nothing is kept back here.
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match &self.0.written {
            Some(written) => self.sync_all(&mut locked(&written.order)),
            None => Ok(()),
        }
    }

    #[allow(unsafe_code)]
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.blockers
    }
}
