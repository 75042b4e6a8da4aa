//! The console device (virtio 1.2, section 5.3): the guest's console, or byte streams that the guest finds by their names.
//!
//! | made by | features | ports |
//! | --- | --- | --- |
//! | [`Console::single`] | VIRTIO_CONSOLE_F_SIZE on a terminal | port 0, which is the guest's console |
//! | [`Console::named`] | VIRTIO_CONSOLE_F_MULTIPORT | ports 1 and up, each with a name; there is no port 0 |
//!
//! They are two devices because the guest is told the size of a terminal in two ways: in configuration space, or, once
//! ports have been negotiated, in a message whose fields Linux up to 6.14 takes in the wrong order. A console alone is
//! told in the first way, on which all agree.
//!
//! A port's other end is a [`PortLine`]. What it does not take stays in the ring, which slows the guest down; what comes
//! from it waits in a small buffer until the guest offers room, and for as long as the guest has not opened the port
//! nothing is taken. One thread works on all queues and waits for none of them.

mod control;
mod device;
mod handler;
mod metrics;
mod port;
mod ports;
mod spec;
#[cfg(test)]
mod tests;

pub use device::{Console, ConsoleError, NamedPort};
pub use metrics::ConsoleMetrics;
pub use port::{Client, INPUT_CAPACITY, PortInput, PortLine, WindowSize};
pub use spec::{MAX_NAME_LEN, MAX_NAMED_PORTS};
