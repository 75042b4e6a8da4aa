//! From configuration to opened resources: one file per device kind.
//!
//! Everything that the configuration names is opened once, before the machine is built, and stays open for its life: a
//! reboot of the guest builds the next machine of the same resources, whatever has become of the paths.

pub mod disk;
pub mod net;
pub mod payload;
pub mod rng;
pub mod serial;

use std::sync::Arc;

use api::config::{ConfigError, VmConfig};

use self::disk::{DiskError, OpenDisk};
use self::net::{NetError, OpenNet};
use self::payload::{Payload, PayloadError};
use self::rng::{OpenRng, RngError};
use self::serial::{SerialError, SerialHost};
use crate::terminal::EscapeAction;

/// Everything that a machine is made of beside KVM and memory.
pub struct Resources {
    /// What the guest boots.
    pub payload: Payload,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<OpenDisk>,
    /// Networks, in the order of their PCI slots.
    pub nets: Vec<OpenNet>,
    /// The source of entropy.
    pub rng: OpenRng,
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

    /// A way to write out the guest's last words from a panic hook.
    pub fn flush_on_panic(&self) -> Option<impl Fn() + Send + Sync + 'static> {
        self.serial.as_ref().map(|serial| serial.flush_on_panic())
    }
}

/// Something that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Something that cannot be built yet.
    #[error(transparent)]
    Unsupported(ConfigError),
    /// The kernel or the initramfs.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The source of entropy.
    #[error(transparent)]
    Rng(#[from] RngError),
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialError),
}

impl WireError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Unsupported(_) | Self::Payload(_) | Self::Disk(_) | Self::Rng(_) => true,
            Self::Net(error) => error.is_configuration(),
            Self::Serial(error) => error.is_bad_configuration(),
        }
    }
}

/// Opens everything that `config` names.
///
/// # Errors
///
/// [`WireError`] for the first thing that cannot be opened; what was opened before is closed.
pub fn open(config: &VmConfig) -> Result<Resources, WireError> {
    refuse_memory_hotplug(config)?;
    Ok(Resources {
        payload: payload::open(&config.payload)?,
        disks: config
            .disks
            .iter()
            .map(disk::open)
            .collect::<Result<_, _>>()?,
        nets: config.net.iter().map(net::open).collect::<Result<_, _>>()?,
        rng: rng::open(&config.rng)?,
        serial: SerialHost::open(&config.serial)?.map(Arc::new),
    })
}

/// No machine has a device that adds memory.
fn refuse_memory_hotplug(config: &VmConfig) -> Result<(), WireError> {
    match config.memory.hotplug_size {
        None => Ok(()),
        Some(size) => Err(WireError::Unsupported(ConfigError::Unsupported {
            field: "memory.hotplug_size".to_owned(),
            value: size.to_string(),
            default: "none".to_owned(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_hotplug_is_refused_by_name() {
        let config = VmConfig {
            memory: "size=1G,hotplug_size=2G".parse().unwrap(),
            ..VmConfig::default()
        };
        let error = open(&config).err().unwrap();
        assert!(error.is_configuration());
        let message = error.to_string();
        assert!(message.starts_with("memory.hotplug_size"), "{message}");
        assert!(message.contains("2G was given"), "{message}");
    }
}
