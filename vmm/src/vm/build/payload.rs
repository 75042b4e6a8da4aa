//! Kernel and initramfs, or firmware, from their files to guest memory.

use std::fs::File;
use std::panic;
use std::thread::{self, Scope, ScopedJoinHandle};

use arch::kernel::{InitramfsError, InitramfsPlacement, InitramfsRange, KernelError, LoadedKernel};
use arch::x86_64::boot::{self, BootEntry};
use arch::x86_64::memory_map::memory_map;
use devices::memory::Ram;
use vm_memory::GuestAddress;

use super::BuildError;
use crate::boot_disk::{Booted, Limits};
use crate::wire::Resources;
use crate::wire::payload::{BootDisk, Image, Opened, PayloadSource};

/// What is in guest memory.
pub(super) struct Loaded {
    kernel: LoadedKernel,
    initramfs: Option<InitramfsRange>,
    cmdline: String,
}

/// A payload that is being read on a thread of its own.
pub(super) struct Loading<'scope>(ScopedJoinHandle<'scope, Result<Loaded, BuildError>>);

impl<'scope> Loading<'scope> {
    /// Starts reading the payload of `resources` into `ram`, the memory of a guest with `ram_size` bytes.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        resources: &'scope Resources,
        ram: &'scope Ram,
        ram_size: u64,
    ) -> Result<Self, BuildError> {
        thread::Builder::new()
            .name("load".to_owned())
            .spawn_scoped(scope, move || load(resources, ram, ram_size))
            .map(Self)
            .map_err(BuildError::host("a thread to read the kernel"))
    }

    /// Waits for the end of it.
    pub(super) fn finish(self) -> Result<Loaded, BuildError> {
        match self.0.join() {
            Ok(loaded) => loaded,
            Err(reason) => panic::resume_unwind(reason),
        }
    }
}

impl Loaded {
    /// Writes what the kernel reads at its entry.
    pub(super) fn boot_data(
        &self,
        ram: &Ram,
        ram_size: u64,
        rsdp: GuestAddress,
    ) -> Result<BootEntry, BuildError> {
        let map = memory_map(ram_size);
        let Self {
            kernel,
            initramfs,
            cmdline,
        } = self;
        Ok(boot::configure_boot(
            ram, kernel, cmdline, *initramfs, &map, rsdp,
        )?)
    }
}

fn load(resources: &Resources, ram: &Ram, ram_size: u64) -> Result<Loaded, BuildError> {
    let payload = &resources.payload;
    match &payload.source {
        PayloadSource::Files { image, initramfs } => {
            let loaded = load_image(ram, image)?;
            let initramfs = initramfs.as_ref().map(|Opened { file, path }| {
                let of_initramfs = |source| BuildError::Initramfs {
                    path: path.clone(),
                    source,
                };
                load_initramfs(ram, again(file)?, &loaded, ram_size).map_err(of_initramfs)
            });
            Ok(Loaded {
                initramfs: initramfs.transpose()?,
                kernel: loaded,
                cmdline: payload.cmdline.clone(),
            })
        }
        PayloadSource::Disk(boot_disk) => {
            load_from_disk(resources, boot_disk, &payload.cmdline, ram, ram_size)
        }
    }
}

fn load_image(ram: &Ram, image: &Image) -> Result<LoadedKernel, BuildError> {
    match image {
        Image::Kernel(Opened { file, path }) => {
            load_kernel(ram, again(file)?).map_err(|source| BuildError::Kernel {
                path: path.clone(),
                source,
            })
        }
        Image::Firmware(Opened { file, path }) => {
            let loaded = arch::kernel::load_firmware(ram, &mut again(file)?);
            loaded.map_err(|source| BuildError::Firmware {
                path: path.clone(),
                source,
            })
        }
    }
}

/// Loads what the guest's own disk boots, with `appended` at the end of its command line.
fn load_from_disk(
    resources: &Resources,
    boot_disk: &BootDisk,
    appended: &str,
    ram: &Ram,
    ram_size: u64,
) -> Result<Loaded, BuildError> {
    let id = boot_disk.id();
    let mut disks = resources.disks.iter();
    let disk = disks
        .find(|disk| disk.id() == id)
        .ok_or_else(|| BuildError::BootDiskGone { id: id.to_owned() })?;
    let Booted {
        title,
        kernel,
        initramfs,
        mut cmdline,
    } = boot_disk
        .read(disk.contents(), Limits::of_guest(ram_size))
        .map_err(|source| BuildError::BootDisk {
            id: id.to_owned(),
            source,
        })?;
    if !appended.is_empty() {
        if !cmdline.is_empty() {
            cmdline.push(' ');
        }
        cmdline.push_str(appended);
    }
    tracing::info!(disk = id, entry = title, cmdline, "booting from the disk");
    let failed = |source| BuildError::BootEntry {
        id: id.to_owned(),
        title: title.clone(),
        source: Box::new(source),
    };
    let kernel = load_kernel(ram, kernel).map_err(|error| failed(error.into()))?;
    let initramfs = initramfs.map(|file| {
        load_initramfs(ram, file, &kernel, ram_size).map_err(|error| failed(error.into()))
    });
    Ok(Loaded {
        initramfs: initramfs.transpose()?,
        kernel,
        cmdline,
    })
}

fn load_kernel(ram: &Ram, mut file: File) -> Result<LoadedKernel, KernelError> {
    let kernel = arch::kernel::load_kernel(ram, &mut file)?;
    tracing::debug!(image = ?kernel.image, protocol = ?kernel.protocol, entry = kernel.entry.0, "kernel loaded");
    Ok(kernel)
}

fn load_initramfs(
    ram: &Ram,
    mut file: File,
    kernel: &LoadedKernel,
    ram_size: u64,
) -> Result<InitramfsRange, InitramfsError> {
    let place = InitramfsPlacement::after(kernel, ram_size);
    arch::kernel::load_initramfs(ram, &mut file, place)
}

fn again(file: &File) -> Result<File, BuildError> {
    file.try_clone()
        .map_err(BuildError::host("another descriptor of the payload"))
}
