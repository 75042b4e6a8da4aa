//! From configuration to opened resources: one file per device kind.
//!
//! Everything that the configuration names is opened once, before the machine is built, and stays open for its life: a
//! reboot of the guest builds the next machine of the same resources, whatever has become of the paths.

pub mod balloon;
pub mod console;
mod descriptor;
pub mod disk;
pub mod fs;
pub mod generation;
pub mod line;
pub mod net;
pub mod payload;
pub mod rng;
pub mod serial;
pub mod vsock;
pub mod watchdog;

use std::io;
use std::sync::Arc;

use api::config::VmConfig;
use api::event::Events;
use api::request::Descriptors;

use self::console::{ConsoleError, OpenConsole};
use self::disk::{DiskError, Groups, OpenDisk};
use self::fs::{FsError, OpenFs};
use self::generation::Generation;
use self::line::{HostLine, LineError, OnEscape};
use self::net::{NetError, OpenNet};
use self::payload::{Payload, PayloadError};
use self::rng::{OpenRng, RngError};
use self::vsock::{OpenVsock, VsockError};
use self::watchdog::OpenWatchdog;

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
    pub serial: Option<Arc<HostLine>>,
    /// What tells the guest whether it was copied.
    pub generation: Generation,
    /// The host's side of the console and of its ports.
    pub console: OpenConsole,
}

impl Resources {
    /// Starts what moves bytes from and to the host, before the first machine is built. What `escape` makes is called when
    /// the user types an escape key.
    ///
    /// # Errors
    ///
    /// A line's place on the host refused.
    pub fn start(&self, escape: impl Fn() -> OnEscape) -> Result<(), WireError> {
        self.lines().try_for_each(|line| line.start(escape()))?;
        Ok(())
    }

    /// All lines between the guest and the host.
    fn lines(&self) -> impl Iterator<Item = &HostLine> {
        self.serial
            .as_deref()
            .into_iter()
            .chain(self.console.lines())
    }

    /// The user's terminal may have another size.
    pub fn look_at_size(&self) {
        self.lines().for_each(HostLine::look_at_size);
    }

    /// Adds to `config`, of which the resources were opened, the paths of pseudo-terminals.
    pub fn tell_ptys(&self, config: &mut VmConfig) {
        let pty = self.serial.as_ref().and_then(|serial| serial.pty_path());
        if let Some(path) = pty {
            config.serial.file = Some(path.to_owned());
        }
        let (console, ports) = self.console.ptys();
        if let Some(path) = console {
            config.console.file = Some(path.to_owned());
        }
        let configs = config.console.ports.iter_mut().flatten();
        for (port, path) in configs.zip(ports) {
            if let Some(path) = path {
                port.file = Some(path.to_owned());
            }
        }
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
    pub fn flush_on_panic(&self) -> impl Fn() + Send + Sync + 'static {
        let flushes: Vec<_> = self.lines().map(HostLine::flush_on_panic).collect();
        move || flushes.iter().for_each(|flush| flush())
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
    Line(#[from] LineError),
    /// The host has no random bytes for the generation.
    #[error("cannot draw the generation of the machine")]
    Generation(#[source] io::Error),
    /// The console or one of its ports.
    #[error(transparent)]
    Console(#[from] ConsoleError),
}

impl WireError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Payload(error) => error.is_configuration(),
            Self::Disk(_) | Self::Rng(_) => true,
            Self::Generation(_) => false,
            Self::Net(error) => error.is_configuration(),
            Self::Fs(error) => error.is_configuration(),
            Self::Vsock(error) => error.is_configuration(),
            Self::Line(error) => error.is_configuration(),
            Self::Console(error) => error.is_configuration(),
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
        serial: serial::open(&config.serial)?.map(Arc::new),
        generation: Generation::random().map_err(WireError::Generation)?,
        console: console::open(&config.console)?,
    })
}
