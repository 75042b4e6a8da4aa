//! The bytes of a disk or of a part of it, and how many of them may be looked at.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

/// Bytes that are asked for at a time: file systems look at many small pieces that lie together.
const BLOCK: u64 = 128 << 10;
/// Blocks that are kept.
const BLOCKS: usize = 32;
/// Bytes that may be looked at for one boot. A sound disk needs those of its kernel and initial RAM disk, and some for what
/// leads to them; a crafted one can lead in circles.
const MAX_BYTES: u64 = 4 << 30;
/// Pieces that may be looked at, for the same reason.
const MAX_PIECES: u64 = 16 << 20;

/// Where the bytes of a disk come from.
pub(super) trait Source {
    /// Fills `buffer` from byte `offset` on, all of which is on the disk.
    fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A disk or a part of it. Copies share what is known of the disk.
#[derive(Clone)]
pub(super) struct Image {
    disk: Rc<RefCell<Disk>>,
    start: u64,
    len: u64,
}

struct Disk {
    source: Box<dyn Source>,
    /// The latest used last.
    blocks: Vec<(u64, Vec<u8>)>,
    len: u64,
    bytes: u64,
    pieces: u64,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({}+{})", self.start, self.len)
    }
}

impl Image {
    /// The whole disk behind `source`, which has `len` bytes.
    pub(super) fn new(source: Box<dyn Source>, len: u64) -> Self {
        let disk = Disk {
            source,
            blocks: Vec::new(),
            len,
            bytes: 0,
            pieces: 0,
        };
        Self {
            disk: Rc::new(RefCell::new(disk)),
            start: 0,
            len,
        }
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The part of `len` bytes from `start` on; None if that is not all in here.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            disk: Rc::clone(&self.disk),
            start: self.start + start,
            len,
        })
    }

    /// Fills `buffer` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// It reaches beyond the end, the disk cannot be read, or too much of it was looked at already.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a structure on the disk leads beyond its end",
            ));
        }
        self.disk.borrow_mut().read_at(self.start + offset, buffer)
    }

    /// The `N` bytes from `offset` on; None if they are not there.
    pub(super) fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read_at(offset, &mut bytes).ok().map(|()| bytes)
    }
}

impl Disk {
    fn read_at(&mut self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        self.pieces += 1;
        self.bytes += buffer.len() as u64;
        if self.bytes > MAX_BYTES || self.pieces > MAX_PIECES {
            return Err(io::Error::other(
                "too much of the disk was looked at: its structures lead in circles",
            ));
        }
        let mut offset = offset;
        while !buffer.is_empty() {
            let within = (offset % BLOCK) as usize;
            let block = self.block(offset / BLOCK)?;
            let block = block.get(within..).unwrap_or_default();
            let len = block.len().min(buffer.len());
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, later) = buffer.split_at_mut(len);
            now.copy_from_slice(&block[..len]);
            buffer = later;
            offset += len as u64;
        }
        Ok(())
    }

    fn block(&mut self, index: u64) -> io::Result<&[u8]> {
        if let Some(at) = self.blocks.iter().position(|(known, _)| *known == index) {
            let block = self.blocks.remove(at);
            self.blocks.push(block);
        } else {
            let start = index * BLOCK;
            let len = self.len.saturating_sub(start).min(BLOCK);
            let mut bytes = if self.blocks.len() < BLOCKS {
                Vec::new()
            } else {
                self.blocks.remove(0).1
            };
            bytes.resize(len as usize, 0);
            self.source.fill(start, &mut bytes)?;
            self.blocks.push((index, bytes));
        }
        let last = self.blocks.last();
        Ok(last.map_or(&[], |(_, bytes)| bytes.as_slice()))
    }
}

/// The same bytes, as a stream that cannot be written to.
pub(super) struct Stream {
    image: Image,
    position: u64,
}

impl Stream {
    pub(super) fn new(image: Image) -> Self {
        Self { image, position: 0 }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.image.len().saturating_sub(self.position);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.image.read_at(self.position, &mut buffer[..len])?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.image.len().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Write for Stream {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
impl Source for Vec<u8> {
    fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(len: usize) -> Image {
        let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
        Image::new(Box::new(bytes), len as u64)
    }

    #[test]
    fn reads_cross_blocks_and_end_with_the_disk() {
        let len = 3 * BLOCK as usize + 100;
        let image = counted(len);
        let mut buffer = vec![0; 2 * BLOCK as usize];
        image.read_at(BLOCK + 50, &mut buffer).unwrap();
        let expected: Vec<u8> = (0..buffer.len())
            .map(|at| ((at + BLOCK as usize + 50) / 7) as u8)
            .collect();
        assert!(buffer == expected);
        assert!(image.read_at(len as u64 - 1, &mut [0; 2]).is_err());
        assert!(image.read_at(u64::MAX, &mut [0; 2]).is_err());
    }

    #[test]
    fn part_ends_before_the_disk_does() {
        let image = counted(1000);
        let part = image.part(70, 14).unwrap();
        assert_eq!(part.bytes::<14>(0).unwrap()[7], 11);
        assert!(part.bytes::<2>(13).is_none());
        assert!(part.part(10, 5).is_none());
        assert!(image.part(u64::MAX, 2).is_none());
    }

    #[test]
    fn reads_without_end_are_ended() {
        let image = counted(1000);
        let mut reads = 0_u64;
        let error = loop {
            match image.read_at(0, &mut [0; 8]) {
                Ok(()) => reads += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(reads, MAX_PIECES);
        assert!(error.to_string().contains("in circles"), "{error}");
    }

    #[test]
    fn stream_cannot_be_written() {
        let mut stream = Stream::new(counted(10));
        assert!(stream.write(b"x").is_err());
        assert_eq!(stream.seek(SeekFrom::End(-3)).unwrap(), 7);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [1, 1, 1]);
    }
}
