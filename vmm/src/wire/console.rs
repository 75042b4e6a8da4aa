//! The virtio console and the ports that have names: lines that are opened once, shared by the devices of one machine
//! after the other.

use std::path::Path;

use api::config::{ConsoleConfig, ConsolePortConfig};
use devices::virtio::console::{Console, ConsoleError as DeviceError, NamedPort};

use super::line::{HostLine, Kind, LineError, LineRequest};

/// A console or a port that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its end on the host.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The device.
    #[error("--console-port")]
    Device(#[from] DeviceError),
}

impl ConsoleError {
    /// Whether the configuration is at fault, and not the host or the VMM.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Line(error) => error.is_configuration(),
            Self::Device(DeviceError::PortCount(_) | DeviceError::Name(_)) => true,
            Self::Device(DeviceError::Eventfd(_)) => false,
        }
    }
}

/// The opened host side of the console, and of the ports.
pub struct OpenConsole {
    id: String,
    console: Option<HostLine>,
    ports: Vec<OpenPort>,
}

struct OpenPort {
    name: String,
    line: HostLine,
}

impl OpenConsole {
    /// The name of the device that is the console.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh device that is the console, if there is one.
    ///
    /// # Errors
    ///
    /// The host refused.
    pub fn console(&self) -> Result<Option<Console>, ConsoleError> {
        let Some(line) = &self.console else {
            return Ok(None);
        };
        let device = Console::single(format!("virtio-{}", self.id), line.port())?;
        for input in device.inputs() {
            line.connect(input);
        }
        Ok(Some(device))
    }

    /// A fresh device with the ports that have names, if there are any.
    ///
    /// # Errors
    ///
    /// The host refused.
    pub fn ports(&self) -> Result<Option<Console>, ConsoleError> {
        if self.ports.is_empty() {
            return Ok(None);
        }
        let ports = self.ports.iter().map(|port| NamedPort {
            name: port.name.clone(),
            line: port.line.port(),
        });
        let device = Console::named("virtio-ports", ports.collect())?;
        for (port, input) in self.ports.iter().zip(device.inputs()) {
            port.line.connect(input);
        }
        Ok(Some(device))
    }

    /// The path of the console's pseudo-terminal, and those of the ports', in their order.
    pub fn ptys(&self) -> (Option<&Path>, Vec<Option<&Path>>) {
        let console = self.console.as_ref().and_then(HostLine::pty_path);
        let ports = self.ports.iter().map(|port| port.line.pty_path());
        (console, ports.collect())
    }

    /// All lines.
    pub fn lines(&self) -> impl Iterator<Item = &HostLine> {
        let ports = self.ports.iter().map(|port| &port.line);
        self.console.iter().chain(ports)
    }
}

/// Opens what `config` names.
///
/// # Errors
///
/// [`ConsoleError`] names the option, the path and the reason.
pub fn open(config: &ConsoleConfig) -> Result<OpenConsole, ConsoleError> {
    let id = config.id.as_deref().unwrap_or("console");
    let console = HostLine::open(&LineRequest {
        option: "--console ",
        what: "the console",
        thread: "console",
        kind: Kind::Console,
        mode: config.mode,
        file: config.file.as_deref(),
        socket: config.socket.as_deref(),
    })?;
    let ports = config.ports.iter().flatten().map(open_port);
    Ok(OpenConsole {
        id: id.to_owned(),
        console,
        ports: ports
            .flat_map(Result::transpose)
            .collect::<Result<_, _>>()?,
    })
}

fn open_port(config: &ConsolePortConfig) -> Result<Option<OpenPort>, LineError> {
    let name = &config.name;
    let line = HostLine::open(&LineRequest {
        option: &format!("--console-port name={name},"),
        what: &format!("the port {name}"),
        thread: &format!("port-{name}"),
        kind: Kind::Stream,
        mode: config.mode,
        file: config.file.as_deref(),
        socket: config.socket.as_deref(),
    })?;
    let name = name.clone();
    Ok(line.map(|line| OpenPort { name, line }))
}
