//! The compressed ELF image inside a bzImage, as a stream.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};

use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;

use super::ElfError;

/// Largest kernel that is unpacked on the host, whatever its header says.
const UNPACKED_MAX: u64 = 512 << 20;
/// Dictionary memory for xz and lzma; kernels use up to 128 MiB.
const DICTIONARY_MAX_KIB: u32 = 192 << 10;
/// Window for zstd; kernels use 128 MiB.
const WINDOW_MAX: u64 = 128 << 20;
const READ_BUFFER: usize = 256 << 10;

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Uncompressed size of a block in LZ4's legacy frame format; only the last one may be smaller.
const LZ4_BLOCK: usize = 8 << 20;
/// Largest compressed block: LZ4's worst case for a full block.
const LZ4_PACKED_MAX: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

/// How the payload of a bzImage is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// LZ4 in its legacy frame format.
    Lz4,
    /// LZMA in its own ("alone") format.
    Lzma,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// A payload that cannot be unpacked on the host.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The header names no payload (boot protocol before 2.08).
    #[error("its header does not say where the packed kernel is")]
    Missing,
    /// The payload reaches beyond the file.
    #[error("its header puts the packed kernel beyond the end of the file")]
    OutOfFile,
    /// A packing that is not known here.
    #[error("its kernel is packed by a method that is not known (it begins with {0:02x?})")]
    UnknownMethod([u8; 4]),
    /// What comes out is not an ELF image for x86.
    #[error("its packed kernel is not an ELF image for x86")]
    NotElf,
    /// Unpacking failed.
    #[error("its packed kernel cannot be unpacked")]
    Unpack(#[source] io::Error),
    /// The unpacked image cannot be loaded.
    #[error("its ELF image cannot be loaded")]
    Elf(#[source] ElfError),
}

impl Compression {
    /// The method that the first bytes of a payload belong to.
    pub(super) fn detect(start: [u8; 4]) -> Result<Self, PayloadError> {
        Ok(match start {
            [0x7f, b'E', b'L', b'F'] => Self::None,
            [0x1f, 0x8b, ..] => Self::Gzip,
            LZ4_LEGACY_MAGIC => Self::Lz4,
            [0x5d, 0, 0, _] => Self::Lzma,
            [0xfd, b'7', b'z', b'X'] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            _ => return Err(PayloadError::UnknownMethod(start)),
        })
    }
}

/// The unpacked payload. `packed` begins at the payload and ends before the four size bytes that follow it;
/// `unpacked_len` is what those bytes say.
pub(super) fn unpack<'a>(
    compression: Compression,
    packed: Take<&'a mut File>,
    unpacked_len: u32,
) -> io::Result<Take<Box<dyn BufRead + 'a>>> {
    let packed_buffered = |packed| BufReader::with_capacity(READ_BUFFER, packed);
    let stream: Box<dyn BufRead + 'a> = match compression {
        Compression::None => Box::new(packed_buffered(packed)),
        Compression::Gzip => buffered(flate2::bufread::GzDecoder::new(packed_buffered(packed))),
        Compression::Lz4 => Box::new(Lz4Legacy::new(packed)?),
        Compression::Lzma => buffered(LzmaReader::new_mem_limit(
            packed_buffered(packed),
            DICTIONARY_MAX_KIB,
            None,
        )?),
        Compression::Xz => buffered(XzReader::new_mem_limit(
            packed_buffered(packed),
            false,
            DICTIONARY_MAX_KIB,
        )),
        Compression::Zstd => buffered(
            StreamingDecoder::new_with_max_window_size(packed_buffered(packed), WINDOW_MAX)
                .map_err(io::Error::other)?,
        ),
    };
    Ok(stream.take(u64::from(unpacked_len).min(UNPACKED_MAX)))
}

fn buffered<'a>(decoder: impl Read + 'a) -> Box<dyn BufRead + 'a> {
    Box::new(BufReader::with_capacity(READ_BUFFER, decoder))
}

/// Decoder of LZ4's legacy frame format: blocks of 8 MiB, each after its packed size in four bytes.
struct Lz4Legacy<R> {
    input: R,
    packed: Vec<u8>,
    block: Box<[u8]>,
    position: usize,
    filled: usize,
}

impl<R: Read> Lz4Legacy<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if magic != LZ4_LEGACY_MAGIC {
            return Err(invalid("not an LZ4 legacy frame"));
        }
        Ok(Self {
            input,
            packed: Vec::new(),
            block: vec![0; LZ4_BLOCK].into_boxed_slice(),
            position: 0,
            filled: 0,
        })
    }

    /// Unpacks the next block; leaves none at the end.
    fn next_block(&mut self) -> io::Result<()> {
        (self.position, self.filled) = (0, 0);
        let size = loop {
            let mut size = Vec::with_capacity(4);
            self.input.by_ref().take(4).read_to_end(&mut size)?;
            if size.is_empty() {
                return Ok(());
            }
            let size = size
                .first_chunk()
                .copied()
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            // Frames may follow one another.
            if size != LZ4_LEGACY_MAGIC {
                break size;
            }
        };
        let size = u32::from_le_bytes(size) as usize;
        if size == 0 || size > LZ4_PACKED_MAX {
            return Err(invalid("an LZ4 block has a senseless size"));
        }
        self.packed.clear();
        self.input
            .by_ref()
            .take(size as u64)
            .read_to_end(&mut self.packed)?;
        if self.packed.len() != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
            .map_err(io::Error::other)?;
        Ok(())
    }
}

impl<R: Read> BufRead for Lz4Legacy<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position >= self.filled {
            self.next_block()?;
        }
        Ok(&self.block[self.position..self.filled])
    }

    fn consume(&mut self, n: usize) {
        self.position = (self.position + n).min(self.filled);
    }
}

impl<R: Read> Read for Lz4Legacy<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
