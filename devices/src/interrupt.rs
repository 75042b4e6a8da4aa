//! Interrupt lines of devices that are not on PCI.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line: an eventfd that the interrupt controller listens to.
#[derive(Debug)]
pub struct InterruptLine(EventFd);

impl InterruptLine {
    /// Takes the eventfd that the interrupt controller was given for this line.
    pub fn new(eventfd: EventFd) -> Self {
        Self(eventfd)
    }

    /// Raises the line once.
    ///
    /// # Errors
    ///
    /// The write to the eventfd fails. A full counter is no error: the interrupt is pending already.
    pub fn raise(&self) -> io::Result<()> {
        match self.0.write(1) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

impl vm_superio::Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.raise()
    }
}
