//! Kernel and initramfs, or firmware, from their files to guest memory.

use std::fs::File;
use std::panic;
use std::thread::{self, Scope, ScopedJoinHandle};

use arch::kernel::{InitramfsPlacement, InitramfsRange, LoadedKernel};
use arch::x86_64::boot::{self, BootEntry};
use arch::x86_64::memory_map::memory_map;
use devices::memory::Ram;
use vm_memory::GuestAddress;

use super::BuildError;
use crate::wire::payload::{Image, Opened, Payload};

/// What is in guest memory.
pub(super) struct Loaded {
    kernel: LoadedKernel,
    initramfs: Option<InitramfsRange>,
}

/// A payload that is being read on a thread of its own.
pub(super) struct Loading<'scope>(ScopedJoinHandle<'scope, Result<Loaded, BuildError>>);

impl<'scope> Loading<'scope> {
    /// Starts reading `payload` into `ram`, the memory of a guest with `ram_size` bytes.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        payload: &'scope Payload,
        ram: &'scope Ram,
        ram_size: u64,
    ) -> Result<Self, BuildError> {
        thread::Builder::new()
            .name("load".to_owned())
            .spawn_scoped(scope, move || load(payload, ram, ram_size))
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
        cmdline: &str,
        rsdp: GuestAddress,
    ) -> Result<BootEntry, BuildError> {
        let map = memory_map(ram_size);
        let Self { kernel, initramfs } = self;
        Ok(boot::configure_boot(
            ram, kernel, cmdline, *initramfs, &map, rsdp,
        )?)
    }
}

fn load(payload: &Payload, ram: &Ram, ram_size: u64) -> Result<Loaded, BuildError> {
    let kernel = load_image(&payload.image, ram)?;
    tracing::debug!(image = ?kernel.image, protocol = ?kernel.protocol, entry = kernel.entry.0, "kernel loaded");
    let Some(Opened { file, path }) = &payload.initramfs else {
        return Ok(Loaded {
            kernel,
            initramfs: None,
        });
    };
    let place = InitramfsPlacement::after(&kernel, ram_size);
    let initramfs =
        arch::kernel::load_initramfs(ram, &mut again(file)?, place).map_err(|source| {
            BuildError::Initramfs {
                path: path.clone(),
                source,
            }
        })?;
    Ok(Loaded {
        kernel,
        initramfs: Some(initramfs),
    })
}

fn load_image(image: &Image, ram: &Ram) -> Result<LoadedKernel, BuildError> {
    match image {
        Image::Kernel(Opened { file, path }) => {
            let loaded = arch::kernel::load_kernel(ram, &mut again(file)?);
            loaded.map_err(|source| BuildError::Kernel {
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

fn again(file: &File) -> Result<File, BuildError> {
    file.try_clone()
        .map_err(BuildError::host("another descriptor of the payload"))
}
