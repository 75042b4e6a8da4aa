//! What a disk boots: looks for boot entries on its partitions, and takes the kernel of the one that its boot loader would.

use std::fmt::Write as _;
use std::io;

use super::bls::{self, BlsEntry};
use super::filesystem::{FileError, FileSystem, Unreadable};
use super::grub::{self, BlsChoice, Choice, FilePath, Search};
use super::image::Image;
use super::partitions::{self, Partition, Purpose, Table};
use super::uki::{self, UnifiedKernel};

/// Directories of GRUB's configuration, where `/boot` is a partition and where it is a directory.
const GRUB_DIRECTORIES: [&str; 4] = ["/grub2", "/grub", "/boot/grub2", "/boot/grub"];
/// Bytes of `grub.cfg` that are read.
const MAX_GRUB_CFG: u64 = 1 << 20;
/// Directories of boot entries, likewise.
const ENTRY_DIRECTORIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
/// Partitions that are looked at.
const MAX_VOLUMES: usize = 128;

/// Sizes in bytes that are not to be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) kernel: u64,
    /// Of all initial RAM disks together.
    pub(super) initrd: u64,
}

/// Takes what is found, piece by piece.
pub(super) trait Output {
    fn kernel(&mut self, piece: &[u8]) -> io::Result<()>;
    fn initrd(&mut self, piece: &[u8]) -> io::Result<()>;
}

/// What was found, beside what went to the [`Output`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The entry, and where it is from.
    pub(super) title: String,
    pub(super) cmdline: String,
}

/// Why a disk cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// There is nothing that a boot loader would boot.
    #[error(
        "it has no boot entry that can be read; expected a grub.cfg or entries of the Boot Loader Specification on ext4 or FAT. \
         What is there: {0}. What these cannot be read from boots by --firmware, with the disk's own boot loader"
    )]
    NoEntry(String),
    /// A file that an entry names.
    #[error("entry {entry:?} names {path}: {source}")]
    File {
        entry: String,
        path: String,
        source: FileError,
    },
}

/// A partition, or a whole disk without any, with a file system.
#[derive(Debug)]
struct Volume {
    /// As GRUB names it: `hd0,gpt1`.
    device: String,
    purpose: Purpose,
    filesystem: FileSystem,
}

/// A part of a file, or all of it.
struct Piece {
    volume: usize,
    path: String,
    section: Option<(u64, u64)>,
}

struct Plan {
    title: String,
    kernel: Piece,
    initrd: Vec<Piece>,
    cmdline: String,
}

/// Gives the kernel and the initial RAM disks that `disk` boots to `output`. Its guest sees sectors of `sector` bytes.
pub(super) fn boot(
    disk: &Image,
    sector: u64,
    limits: Limits,
    output: &mut dyn Output,
) -> Result<Found, Refusal> {
    let mut notes = Vec::new();
    let volumes = volumes(disk, sector, &mut notes);
    let plan = plan(&volumes, &mut notes).ok_or_else(|| Refusal::NoEntry(notes.join("; ")))?;
    let copy = |piece: &Piece, limit: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        let filesystem = &volumes[piece.volume].filesystem;
        let copied = match piece.section {
            None => filesystem.copy(&piece.path, limit, sink),
            Some((_, len)) if len > limit => Err(FileError::TooLarge { limit }),
            Some((offset, len)) => uki::copy(filesystem, &piece.path, offset, len, sink),
        };
        copied.map_err(|source| Refusal::File {
            entry: plan.title.clone(),
            path: piece.path.clone(),
            source,
        })
    };
    copy(&plan.kernel, limits.kernel, &mut |piece| {
        output.kernel(piece)
    })?;
    let mut total = 0;
    for piece in &plan.initrd {
        // Each begins on a multiple of four bytes, as the kernel wants it.
        let padding = total % 4;
        if padding > 0 {
            total += 4 - padding;
            let zeros = &[0; 4][padding as usize..];
            output.initrd(zeros).map_err(|error| Refusal::File {
                entry: plan.title.clone(),
                path: piece.path.clone(),
                source: FileError::Sink(error),
            })?;
        }
        let left = limits.initrd.saturating_sub(total);
        total += copy(piece, left, &mut |piece| output.initrd(piece))?;
    }
    Ok(Found {
        title: plan.title,
        cmdline: plan.cmdline,
    })
}

/// The file systems of `disk`, those first on which boot entries are by their table; `notes` tells of the others.
fn volumes(disk: &Image, sector: u64, notes: &mut Vec<String>) -> Vec<Volume> {
    let mut volumes = Vec::new();
    let mut partitions = partitions::read(disk, sector);
    partitions.truncate(MAX_VOLUMES);
    // Without a table, or where what looked like one is the boot sector of a file system.
    let bare = FileSystem::open(disk);
    if partitions.is_empty() || matches!(bare, Ok(FileSystem::Fat(_))) {
        match bare {
            Ok(filesystem) => volumes.push(Volume {
                device: "hd0".to_owned(),
                purpose: Purpose::Root,
                filesystem,
            }),
            Err(error) => notes.push(format!("the disk has no partitions and holds {error}")),
        }
        return volumes;
    }
    for Partition {
        number,
        table,
        purpose,
        image,
    } in partitions
    {
        match FileSystem::open(&image) {
            Ok(filesystem) => volumes.push(Volume {
                device: match table {
                    Table::Gpt => format!("hd0,gpt{number}"),
                    Table::Mbr => format!("hd0,msdos{number}"),
                },
                purpose,
                filesystem,
            }),
            // What holds BIOS boot code, for example, has none.
            Err(Unreadable::Unknown) => {}
            Err(error) => notes.push(format!("partition {number} holds {error}")),
        }
    }
    volumes.sort_by_key(|volume| volume.purpose);
    volumes
}

fn plan(volumes: &[Volume], notes: &mut Vec<String>) -> Option<Plan> {
    for (index, volume) in volumes.iter().enumerate() {
        let before = notes.len();
        for directory in GRUB_DIRECTORIES {
            let path = format!("{directory}/grub.cfg");
            let text = match volume.filesystem.read(&path, MAX_GRUB_CFG) {
                Ok(text) => text,
                Err(FileError::Missing) => continue,
                Err(error) => {
                    notes.push(format!("{path} of ({}): {error}", volume.device));
                    continue;
                }
            };
            let disk = Disk {
                volumes,
                home: index,
            };
            let planned = match grub::choose(&disk, &volume.device, directory, &text) {
                Ok(Choice::Linux(choice)) => Ok(by_grub(&disk, *choice)),
                Ok(Choice::Entries(choice)) => by_blscfg(volumes, index, &choice),
                Err(error) => Err(error.to_string()),
            };
            match planned {
                Ok(plan) => return Some(plan),
                Err(problem) => notes.push(format!("{path} of ({}): {problem}", volume.device)),
            }
        }
        if let Some(plan) = by_specification(volumes, index) {
            return Some(plan);
        }
        if notes.len() == before {
            notes.push(format!("no boot entry on ({})", volume.device));
        }
    }
    None
}

fn by_grub(disk: &Disk<'_>, choice: grub::LinuxChoice) -> Plan {
    let piece = |FilePath { device, path }| Piece {
        volume: disk.volume(&device),
        path,
        section: None,
    };
    let mut title = choice.title;
    let kernel = piece(choice.kernel);
    let _ = write!(title, " ({})", disk.volumes[kernel.volume].device);
    Plan {
        title,
        kernel,
        initrd: choice.initrd.into_iter().map(piece).collect(),
        cmdline: choice.cmdline,
    }
}

fn of_entry(volumes: &[Volume], volume: usize, entry: &BlsEntry, cmdline: String) -> Plan {
    let piece = |path: &String| Piece {
        volume,
        path: format!("/{}", path.trim_start_matches('/')),
        section: None,
    };
    Plan {
        title: format!("{} ({})", entry.name(), volumes[volume].device),
        kernel: piece(&entry.linux),
        initrd: entry.initrd.iter().map(piece).collect(),
        cmdline,
    }
}

/// The entries beside GRUB's configuration on the volume `index`, by GRUB's rules.
fn by_blscfg(volumes: &[Volume], index: usize, choice: &BlsChoice) -> Result<Plan, String> {
    let filesystem = &volumes[index].filesystem;
    let mut entries: Vec<BlsEntry> = ENTRY_DIRECTORIES
        .iter()
        .flat_map(|directory| bls::read(filesystem, directory))
        .filter(|entry| filesystem.has(&entry.linux))
        .collect();
    entries.sort_by(bls::grub_order);
    let entry = bls::pick_for_grub(&entries, &choice.default)
        .ok_or("it asks for boot entries (blscfg), and there is none with a kernel")?;
    let mut entry = entry.clone();
    for path in &mut entry.initrd {
        *path = bls::expand(path, &choice.variables);
    }
    // $tuned_initrd is nothing where there is no such disk.
    entry.initrd.retain(|path| !path.is_empty());
    let cmdline = format!(
        "BOOT_IMAGE={} {}",
        entry.linux,
        entry.cmdline(&choice.variables)
    );
    Ok(of_entry(volumes, index, &entry, cmdline))
}

/// The entries on the volume `index` by systemd-boot's rules. The EFI system partition and that of `/boot` are one to them.
fn by_specification(volumes: &[Volume], index: usize) -> Option<Plan> {
    enum Kind {
        File(BlsEntry),
        Unified(UnifiedKernel),
    }
    let shared = |purpose| matches!(purpose, Purpose::ExtendedBoot | Purpose::EfiSystem);
    let own = volumes[index].purpose;
    let together = volumes
        .iter()
        .enumerate()
        .filter(|(other, volume)| *other == index || (shared(own) && shared(volume.purpose)));
    let mut found = Vec::new();
    let mut pattern = None;
    for (number, volume) in together {
        let filesystem = &volume.filesystem;
        pattern = pattern.or_else(|| bls::default_pattern(filesystem));
        let directories = ENTRY_DIRECTORIES.iter();
        let entries = directories.flat_map(|directory| bls::read(filesystem, directory));
        let entries = entries.filter(|entry| filesystem.has(&entry.linux));
        found.extend(entries.map(|entry| (number, Kind::File(entry))));
        let unified = uki::read(filesystem).into_iter();
        found.extend(unified.map(|unified| (number, Kind::Unified(unified))));
    }
    let entry_of = |kind: &Kind| match kind {
        Kind::File(entry) => entry.clone(),
        Kind::Unified(unified) => unified.entry.clone(),
    };
    found.sort_by(|(_, a), (_, b)| bls::specified_order(&entry_of(a), &entry_of(b)));
    let entries: Vec<BlsEntry> = found.iter().map(|(_, kind)| entry_of(kind)).collect();
    let chosen = bls::pick(&entries, pattern.as_deref())?;
    let chosen = entries
        .iter()
        .position(|entry| std::ptr::eq(entry, chosen))?;
    let (volume, kind) = found.swap_remove(chosen);
    Some(match kind {
        Kind::File(entry) => {
            let cmdline = entry.options.join(" ");
            of_entry(volumes, volume, &entry, cmdline)
        }
        Kind::Unified(UnifiedKernel {
            path,
            entry,
            linux,
            initrd,
        }) => {
            let piece = |section: uki::Section| Piece {
                volume,
                path: path.clone(),
                section: Some((section.offset, section.len)),
            };
            Plan {
                title: format!("{} ({})", entry.name(), volumes[volume].device),
                kernel: piece(linux),
                initrd: initrd.into_iter().map(piece).collect(),
                cmdline: entry.options.join(" "),
            }
        }
    })
}

/// The disk as a script of GRUB's sees it.
struct Disk<'a> {
    volumes: &'a [Volume],
    /// Where the script is: what it says of other devices may be of another machine, and is then taken for this one.
    home: usize,
}

impl Disk<'_> {
    /// `hd0,gpt2`, `hd0,msdos2`, `hd0,2` or, by another driver, `ahci0,gpt2`.
    fn volume(&self, device: &str) -> usize {
        let number = |device: &str| {
            let (_, partition) = device.split_once(',')?;
            let digits = partition.trim_start_matches(|letter: char| letter.is_ascii_alphabetic());
            digits.parse::<u32>().ok()
        };
        let wanted = number(device);
        let mut volumes = self.volumes.iter();
        let found = volumes.position(|volume| {
            volume.device == device || (wanted.is_some() && number(&volume.device) == wanted)
        });
        found.unwrap_or(self.home)
    }
}

impl grub::Devices for Disk<'_> {
    fn read(&self, device: &str, path: &str, limit: u64) -> Option<Vec<u8>> {
        let volume = &self.volumes[self.volume(device)];
        volume.filesystem.read(path, limit).ok()
    }

    fn has(&self, device: &str, path: &str) -> bool {
        self.volumes[self.volume(device)].filesystem.has(path)
    }

    fn find(&self, search: Search<'_>) -> Option<String> {
        let mut volumes = self.volumes.iter();
        let found = volumes.find(|volume| match search {
            Search::Uuid(uuid) => volume.filesystem.uuid().eq_ignore_ascii_case(uuid),
            Search::Label(label) => volume.filesystem.label() == label,
            Search::File(path) => volume.filesystem.has(path),
        });
        found.map(|volume| volume.device.clone())
    }
}

#[cfg(test)]
#[path = "find/tests.rs"]
mod tests;
