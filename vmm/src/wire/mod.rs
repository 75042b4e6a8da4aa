//! From configuration to opened resources: one file per device kind.
//!
//! Everything that the configuration names is opened once, before the machine is built, and stays open for its life: a
//! reboot of the guest builds the next machine of the same resources, whatever has become of the paths.

pub mod balloon;
mod descriptor;
pub mod disk;
pub mod fs;
pub mod net;
pub mod payload;
pub mod rng;
pub mod serial;
pub mod vsock;
pub mod watchdog;

use std::sync::Arc;

use api::config::VmConfig;
use api::event::Events;
use api::request::Descriptors;

use self::disk::{DiskError, Groups, OpenDisk};
use self::fs::{FsError, OpenFs};
use self::net::{NetError, OpenNet};
use self::payload::{Payload, PayloadError};
use self::rng::{OpenRng, RngError};
use self::serial::{SerialError, SerialHost};
use self::vsock::{OpenVsock, VsockError};
use self::watchdog::OpenWatchdog;
use crate::terminal::EscapeAction;

/// Everything that a machine is made of beside KVM and memory.
pub struct Resources {
    /// What the guest boots.
    pub payload: Payload,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<OpenDisk>,
    /// Limits that disks share.
    pub groups: Groups,
    /// Networks, in the order of their PCI slots.
    pub nets: Vec<OpenNet>,
    /// Directories that other processes serve, in the order of their PCI slots.
    pub fs: Vec<OpenFs>,
    /// The source of entropy.
    pub rng: OpenRng,
    /// Sockets between host and guest, if there are any.
    pub vsock: Option<OpenVsock>,
    /// What stays of the watchdog over resets, if there is one.
    pub watchdog: Option<OpenWatchdog>,
    /// The host's side of the serial port, if there is one. The machine that is built has a part in it.
    pub serial: Option<Arc<SerialHost>>,
}

impl Resources {
    /// Starts what moves bytes from and to the host, before the first machine is built. `escape` is called when the
    /// user types an escape key.
    ///
    /// # Errors
    ///
    /// The serial port's place on the host refused.
    pub fn start(&self, escape: Box<dyn Fn(EscapeAction) + Send>) -> Result<(), WireError> {
        if let Some(serial) = &self.serial {
            serial.start(escape)?;
        }
        Ok(())
    }

    /// A machine uses them: what was changed on the host for it stays.
    pub fn settle(&mut self) {
        for net in &mut self.nets {
            net.settle();
        }
    }

    /// Closes what belongs to the device `id`.
    pub fn remove(&mut self, id: &str) {
        self.disks.retain(|disk| disk.id() != id);
        self.nets.retain(|net| net.id() != id);
        self.fs.retain(|fs| fs.id() != id);
        self.vsock.take_if(|vsock| vsock.id() == id);
    }

    /// A way to write out the guest's last words from a panic hook.
    pub fn flush_on_panic(&self) -> Option<impl Fn() + Send + Sync + 'static> {
        self.serial.as_ref().map(|serial| serial.flush_on_panic())
    }
}

/// Something that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel or the initramfs.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A directory that another process serves.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The source of entropy.
    #[error(transparent)]
    Rng(#[from] RngError),
    /// Sockets between host and guest.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialError),
}

impl WireError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Payload(_) | Self::Disk(_) | Self::Rng(_) => true,
            Self::Net(error) => error.is_configuration(),
            Self::Fs(error) => error.is_configuration(),
            Self::Vsock(error) => error.is_configuration(),
            Self::Serial(error) => error.is_bad_configuration(),
        }
    }
}

/// Opens everything that `config` names. What a client has opened already is in `descriptors`, by the names of the
/// devices; copies of those are used, so that the machine can be opened again. What becomes of it is published in `events`.
///
/// # Errors
///
/// [`WireError`] for the first thing that cannot be opened; what was opened before is closed.
pub fn open(
    config: &VmConfig,
    descriptors: &Descriptors,
    events: &Events,
) -> Result<Resources, WireError> {
    let of = |id: &Option<String>| descriptors.get(id.as_deref().unwrap_or_default());
    let disks = config.disks.iter();
    let nets = config.net.iter();
    let groups = disk::groups(config.rate_limit_groups.as_deref().unwrap_or_default());
    Ok(Resources {
        payload: payload::open(&config.payload, descriptors)?,
        disks: disks
            .map(|disk| disk::open(disk, of(&disk.id), &groups))
            .collect::<Result<_, _>>()?,
        groups,
        nets: nets
            .map(|net| net::open(net, of(&net.id)))
            .collect::<Result<_, _>>()?,
        fs: config
            .fs
            .iter()
            .map(|config| fs::open(config, events))
            .collect::<Result<_, _>>()?,
        rng: rng::open(&config.rng)?,
        vsock: config.vsock.as_ref().map(vsock::open).transpose()?,
        watchdog: config.watchdog.then(OpenWatchdog::default),
        serial: SerialHost::open(&config.serial)?.map(Arc::new),
    })
}
