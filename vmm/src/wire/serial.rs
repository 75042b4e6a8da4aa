//! The serial port: a line whose guest's end is a 16550.

use api::config::SerialConfig;

use super::line::{HostLine, Kind, LineError, LineRequest};

/// Opens the host side of the serial port. None in mode `off`: the machine then has no serial port.
///
/// # Errors
///
/// [`LineError`] names the option, the path and the reason.
pub fn open(config: &SerialConfig) -> Result<Option<HostLine>, LineError> {
    HostLine::open(&LineRequest {
        option: "--serial ",
        what: "the serial port",
        thread: "serial",
        kind: Kind::Console,
        mode: config.mode,
        file: config.file.as_deref(),
        socket: config.socket.as_deref(),
    })
}
