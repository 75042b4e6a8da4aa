//! What is left of an image when the power fails: all that was durable, and any part of what was written after that, in any
//! order.

use std::sync::{Arc, Mutex};

use super::*;

/// What happened to the file of an image.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write { offset: u64, bytes: Vec<u8> },
    Sync,
}

pub(crate) type Record = Arc<Mutex<Vec<Event>>>;

const SECTOR: usize = 512;

/// Something that was done to the sectors of the disk: they hold `tag` afterwards.
struct Done {
    /// How much had happened to the file before.
    begun: usize,
    sectors: std::ops::Range<usize>,
    tags: Vec<u64>,
    discard: bool,
}

/// A flush that returned, when so much had happened to the file.
struct Flushed {
    at: usize,
    /// So much had been done to the disk, which holds `tags`.
    done: usize,
    tags: Vec<u64>,
}

struct Trial {
    folder: Folder,
    options: &'static [&'static str],
    sectors: usize,
    /// What is below holds its sector's number and this.
    base: Option<u64>,
}

impl Trial {
    fn backing(&self) -> Option<BackingImage> {
        self.base?;
        Some(BackingImage::raw(file(&self.folder.path("base"), true), None).unwrap())
    }

    fn tags(&self, disk: &Qcow2Disk) -> Vec<u64> {
        let bytes = read(disk, 0, self.sectors * SECTOR);
        let sectors = bytes.chunks_exact(SECTOR);
        sectors
            .map(|sector| {
                let tag = &sector[..8];
                // A sector is written as a whole or not at all.
                assert!(sector.chunks_exact(8).all(|part| part == tag));
                u64::from_le_bytes(tag.try_into().unwrap())
            })
            .collect()
    }

    fn run(&self, steps: usize, rounds: usize, seed: u64) {
        let size = (self.sectors * SECTOR).to_string();
        let path = if let Some(base) = self.base {
            let bytes: Vec<u8> = (0..self.sectors as u64)
                .flat_map(|sector| filled(base + sector))
                .collect();
            std::fs::write(self.folder.path("base"), bytes).unwrap();
            let layer = File::create_new(self.folder.path("disk")).unwrap();
            write_layer(&layer, (self.sectors * SECTOR) as u64, "base", "raw").unwrap();
            self.folder.path("disk")
        } else {
            self.folder.create("disk", self.options, &size)
        };
        let initial = std::fs::read(&path).unwrap();
        let disk = open(&path, false, self.backing()).unwrap();
        let mut tags = self.tags(&disk);
        let record = disk.file.start_recording();
        let happened = || record.lock().unwrap().len();
        let mut numbers = Numbers(seed);
        let mut done: Vec<Done> = Vec::new();
        let mut flushed = vec![Flushed {
            at: 0,
            done: 0,
            tags: tags.clone(),
        }];
        for step in 0..steps {
            let first = numbers.below(self.sectors as u64) as usize;
            let most = (self.sectors - first).min(if step % 16 == 0 { 400 } else { 24 });
            let sectors = first..first + 1 + numbers.below(most as u64) as usize;
            let (offset, len) = ((first * SECTOR) as u64, sectors.len() * SECTOR);
            let begun = happened();
            let mut discard = false;
            match numbers.below(10) {
                0 | 1 => {
                    disk.flush().unwrap();
                    flushed.push(Flushed {
                        at: happened(),
                        done: done.len(),
                        tags: tags.clone(),
                    });
                    continue;
                }
                2 | 3 => {
                    disk.discard(offset, len as u64).unwrap();
                    discard = true;
                    tags = self.tags(&disk);
                }
                4 => {
                    disk.write_zeroes(offset, len as u64, step % 2 == 0)
                        .unwrap();
                    tags[sectors.clone()].fill(0);
                }
                _ => {
                    let tag = 1 + step as u64;
                    write(&disk, offset, &filled(tag).repeat(sectors.len()));
                    tags[sectors.clone()].fill(tag);
                }
            }
            let tags = tags[sectors.clone()].to_vec();
            done.push(Done {
                begun,
                sectors,
                tags,
                discard,
            });
        }
        assert_eq!(self.tags(&disk), tags);
        let events = record.lock().unwrap().clone();
        drop(disk);
        check(&path, true);
        for _ in 0..rounds {
            let cut = numbers.below(events.len() as u64 + 1) as usize;
            std::fs::write(&path, self.cut(&initial, &events[..cut], &mut numbers)).unwrap();
            check(&path, false);
            let flushed = flushed.iter().rfind(|flushed| flushed.at <= cut).unwrap();
            let after: Vec<_> = done[flushed.done..]
                .iter()
                .filter(|done| done.begun < cut)
                .collect();
            self.compare(&path, flushed, &after, cut);
        }
    }

    /// The file after `events`, when the power failed.
    fn cut(&self, initial: &[u8], events: &[Event], numbers: &mut Numbers) -> Vec<u8> {
        let durable = events
            .iter()
            .rposition(|event| matches!(event, Event::Sync))
            .unwrap_or(0);
        let mut bytes = initial.to_vec();
        let mut put = |offset: u64, part: &[u8]| {
            let at = offset as usize;
            if bytes.len() < at + part.len() {
                bytes.resize(at + part.len(), 0);
            }
            bytes[at..at + part.len()].copy_from_slice(part);
        };
        // How much of what was not durable got there.
        let quarters = numbers.below(5);
        for (index, event) in events.iter().enumerate() {
            let Event::Write { offset, bytes } = event else {
                continue;
            };
            if index < durable {
                put(*offset, bytes);
                continue;
            }
            let mut done = 0;
            while done < bytes.len() {
                let at = *offset as usize + done;
                let len = (SECTOR - at % SECTOR).min(bytes.len() - done);
                if numbers.below(4) < quarters {
                    put(at as u64, &bytes[done..done + len]);
                }
                done += len;
            }
        }
        bytes
    }

    /// Compares the disk with what it may hold: what was flushed, or what was written `after` that.
    fn compare(&self, path: &Path, flushed: &Flushed, after: &[&Done], cut: usize) {
        let disk = open(path, false, self.backing()).unwrap();
        let mut found = self.tags(&disk);
        for (sector, tag) in found.iter().enumerate() {
            let allowed = *tag == flushed.tags[sector]
                || after.iter().any(|done| {
                    let inside = done.sectors.contains(&sector);
                    // What is discarded may read as zeros for a while, whatever it reads as in the end.
                    inside
                        && (done.tags[sector - done.sectors.start] == *tag
                            || (done.discard && *tag == 0))
                });
            assert!(
                allowed,
                "sector {sector} holds {tag}, {} was flushed before {cut}",
                flushed.tags[sector]
            );
        }
        // The image goes on.
        write(&disk, 0, &filled(7).repeat(self.sectors / 2));
        found[..self.sectors / 2].fill(7);
        disk.discard((self.sectors / 4 * SECTOR) as u64, 1 << 16)
            .unwrap();
        found = self.tags(&disk);
        disk.flush().unwrap();
        drop(disk);
        check(path, false);
        let disk = open(path, true, self.backing()).unwrap();
        assert_eq!(self.tags(&disk), found);
    }
}

fn filled(tag: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(SECTOR / 8)
}

/// How many times something is broken, unless the environment says so.
pub(super) fn rounds(few: usize) -> usize {
    let given = std::env::var("CRASH_ROUNDS").ok();
    given.map_or(few, |rounds| {
        rounds.parse().expect("CRASH_ROUNDS is a number")
    })
}

#[test]
fn power_failure_costs_nothing_that_was_flushed() {
    let trial = Trial {
        folder: Folder::new(),
        options: &["-o", "cluster_size=4096"],
        sectors: 8192,
        base: None,
    };
    trial.run(300, rounds(10), 11);
}

#[test]
fn power_failure_costs_nothing_where_tables_are_small() {
    // Refcount blocks, L2 tables and refcount tables are made all the time.
    let trial = Trial {
        folder: Folder::new(),
        options: &["-o", "cluster_size=512,refcount_bits=64"],
        sectors: 4096,
        base: None,
    };
    trial.run(250, rounds(10), 12);
}

#[test]
fn power_failure_costs_nothing_of_what_a_layer_copied() {
    let trial = Trial {
        folder: Folder::new(),
        options: &[],
        sectors: 8192,
        base: Some(1 << 32),
    };
    trial.run(300, rounds(10), 13);
}
