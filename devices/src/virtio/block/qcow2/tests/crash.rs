//! A process that is killed while it writes: what it was told to be flushed is there afterwards.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};

use super::power::rounds;
use super::*;
use crate::virtio::block::FileDisk;
use crate::virtio::block::spec::{FEATURE_DISCARD, FEATURE_FLUSH};
use crate::virtio::block::tests::{DATA, Rig, TIMEOUT};
use crate::virtio::driver::readable;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;

/// Says in the environment of the process that is killed what it writes to.
const IMAGE: &str = "PODVISOR_TEST_CRASH_IMAGE";
const KIND: &str = "PODVISOR_TEST_CRASH_KIND";
const FIRST: &str = "PODVISOR_TEST_CRASH_FIRST";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Image {
    Raw,
    Qcow2,
    Overlay,
}

impl Image {
    const ALL: [Self; 3] = [Self::Raw, Self::Qcow2, Self::Overlay];

    fn raw(path: &Path, read_only: bool) -> FileDisk {
        FileDisk::new(file(path, read_only), read_only).unwrap()
    }

    fn qcow2(self, path: &Path, read_only: bool) -> Qcow2Disk {
        let base = || BackingImage::raw(file(&path.with_file_name("base"), true), None).unwrap();
        open(path, read_only, (self == Self::Overlay).then(base)).unwrap()
    }

    fn disk(self, path: &Path) -> Box<dyn Disk> {
        match self {
            Self::Raw => Box::new(Self::raw(path, true)),
            Self::Qcow2 | Self::Overlay => Box::new(self.qcow2(path, true)),
        }
    }

    fn rig(self, path: &Path) -> Rig {
        let features = FEATURE_FLUSH | FEATURE_DISCARD;
        match self {
            Self::Raw => Rig::with_features(Self::raw(path, false), features),
            Self::Qcow2 | Self::Overlay => Rig::with_features(self.qcow2(path, false), features),
        }
    }
}

/// What the process notes, in the order in which it does it: before a write or discard, and after a flush.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Note {
    Write,
    Discard,
    Flushed,
}

/// A note in 32 bytes: what, its number, the first block, and how many there are.
fn noted(bytes: &[u8]) -> (Note, u64, std::ops::Range<u64>) {
    let field = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
    let note = match field(0) {
        0 => Note::Write,
        1 => Note::Discard,
        _ => Note::Flushed,
    };
    (note, field(1), field(2)..field(2) + field(3))
}

/// What a block holds that was written by the write of a number.
fn block(number: u64, at: u64) -> Vec<u8> {
    [number.to_le_bytes(), at.to_le_bytes()]
        .concat()
        .repeat(BLOCK / 16)
}

/// Not a test by itself: it writes until it is killed.
#[test]
#[ignore = "killed_process_leaves_all_that_was_flushed starts it"]
fn process_that_writes() {
    let path =
        PathBuf::from(std::env::var(IMAGE).expect("the test that starts this names an image"));
    let kind = std::env::var(KIND).unwrap();
    let kind = Image::ALL
        .into_iter()
        .find(|image| format!("{image:?}") == kind)
        .unwrap();
    let mut number: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let mut log = File::options()
        .append(true)
        .open(path.with_file_name("log"))
        .unwrap();
    let mut note = |note: Note, number: u64, first: u64, count: u64| {
        let fields = [note as u64, number, first, count].map(u64::to_le_bytes);
        log.write_all(&fields.concat()).unwrap();
    };
    let mut rig = kind.rig(&path);
    let mut numbers = Numbers(number + 1);
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let mut pending = 0;
        for slot in 0..1 + numbers.below(8) {
            number += 1;
            let address = DATA + slot * (8 * BLOCK as u64);
            let count = 1 + numbers.below(8);
            let first = numbers.below(BLOCKS - count);
            if numbers.below(8) == 0 {
                note(Note::Discard, number, first, count);
                let mut segment = (first * 8).to_le_bytes().to_vec();
                segment.extend((count as u32 * 8).to_le_bytes());
                segment.extend([0; 4]);
                rig.write(address, &segment);
                rig.push(VIRTIO_BLK_T_DISCARD, 0, &[readable(address, 16)]);
            } else {
                note(Note::Write, number, first, count);
                for at in 0..count {
                    rig.write(address + at * BLOCK as u64, &block(number, first + at));
                }
                let data = readable(address, count as u32 * BLOCK as u32);
                rig.push(VIRTIO_BLK_T_OUT, first * 8, &[data]);
            }
            pending += 1;
        }
        rig.ring.kick();
        for _ in 0..pending {
            rig.ring.wait_used(TIMEOUT).expect("the device answers");
        }
        if numbers.below(4) == 0 {
            assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0);
            note(Note::Flushed, number, 0, 0);
        }
    }
}

/// What the disk may hold, by blocks: the numbers of the writes that may be the last.
struct Model(Vec<Vec<u64>>);

/// The number of what a block holds that nobody wrote.
const UNWRITTEN: u64 = 0;

impl Model {
    /// Takes over the notes of a process.
    fn follow(&mut self, log: &[u8], before: &[u64]) {
        // One flush that returned makes all that was done before it the past.
        let mut since: Vec<Vec<u64>> = vec![Vec::new(); BLOCKS as usize];
        for note in log.chunks_exact(32) {
            let (note, number, blocks) = noted(note);
            for at in blocks {
                match note {
                    Note::Write => since[at as usize].push(number),
                    // Whatever was there, or nothing.
                    Note::Discard => since[at as usize].extend([UNWRITTEN, before[at as usize]]),
                    Note::Flushed => {}
                }
                if note == Note::Discard {
                    let earlier = self.0[at as usize].clone();
                    since[at as usize].extend(earlier);
                }
            }
            if note == Note::Flushed {
                for (allowed, since) in self.0.iter_mut().zip(&mut since) {
                    if let Some(last) = since.last().copied() {
                        // Of several writes in one batch any may be the last.
                        *allowed = std::mem::take(since);
                        allowed.push(last);
                    }
                }
            }
        }
        for (allowed, since) in self.0.iter_mut().zip(since) {
            allowed.extend(since);
        }
    }
}

/// Checks the image against the model, and returns what each block holds.
fn verify(image: Image, path: &Path, model: &Model) -> Vec<u64> {
    if image != Image::Raw {
        check(path, false);
    }
    let disk = image.disk(path);
    (0..BLOCKS)
        .map(|at| {
            let mut bytes = vec![0; BLOCK];
            let list = [libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: BLOCK,
            }];
            // SAFETY: the list is of a buffer that nothing else uses.
            #[expect(unsafe_code)]
            let pieces = unsafe { Pieces::new(&list) };
            assert_eq!(disk.read_at(pieces, at * BLOCK as u64).unwrap(), BLOCK);
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let allowed = &model.0[at as usize];
            assert!(
                allowed.contains(&number),
                "{image:?}: block {at} holds {number}, expected one of {allowed:?}"
            );
            let whole = match (number, image) {
                (UNWRITTEN, Image::Overlay) => {
                    bytes[8..].iter().all(|byte| *byte == 0 || *byte == 0xba)
                }
                (UNWRITTEN, _) => bytes.iter().all(|byte| *byte == 0),
                _ => bytes == block(number, at),
            };
            assert!(whole, "{image:?}: block {at} holds parts of {number}");
            number
        })
        .collect()
}

fn kill_again_and_again(image: Image) {
    let folder = Folder::new();
    let path = folder.path("disk");
    match image {
        Image::Raw => File::create_new(&path)
            .unwrap()
            .set_len(BLOCKS * BLOCK as u64)
            .unwrap(),
        Image::Qcow2 => {
            folder.create("disk", &[], "16M");
        }
        Image::Overlay => {
            // What nobody wrote is told from zeros.
            let block = [vec![0; 8], vec![0xba; BLOCK - 8]].concat();
            std::fs::write(folder.path("base"), block.repeat(BLOCKS as usize)).unwrap();
            let layer = File::create_new(&path).unwrap();
            write_layer(&layer, BLOCKS * BLOCK as u64, "base", "raw").unwrap();
        }
    }
    let mut model = Model(vec![vec![UNWRITTEN]; BLOCKS as usize]);
    let mut before = vec![UNWRITTEN; BLOCKS as usize];
    let mut first = 0;
    let mut numbers = Numbers(42);
    let mut flushes = 0;
    for _ in 0..rounds(6) {
        let log = folder.path("log");
        File::create(&log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "virtio::block::qcow2::tests::crash::process_that_writes",
            ])
            .env(IMAGE, &path)
            .env(KIND, format!("{image:?}"))
            .env(FIRST, first.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // Long enough to have flushed something; from then on, any moment will do.
        let notes = 60 + numbers.below(400);
        let end = Instant::now() + 6 * TIMEOUT;
        while std::fs::metadata(&log).unwrap().len() < notes * 32 {
            assert!(
                Instant::now() < end && child.try_wait().unwrap().is_none(),
                "it does not write"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(numbers.below(3000)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let notes = std::fs::read(&log).unwrap();
        let notes = &notes[..notes.len() / 32 * 32];
        for note in notes.chunks_exact(32) {
            let (note, number, _) = noted(note);
            first = number;
            flushes += u32::from(note == Note::Flushed);
        }
        model.follow(notes, &before);
        before = verify(image, &path, &model);
        // What was seen stays: the page cache outlives a process.
        for (allowed, seen) in model.0.iter_mut().zip(&before) {
            *allowed = vec![*seen];
        }
    }
    assert!(flushes > 0);
}

#[test]
fn killed_process_leaves_all_that_was_flushed() {
    for image in Image::ALL {
        kill_again_and_again(image);
    }
}
