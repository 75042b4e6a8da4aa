//! What the guest asks of the machine as a whole.

/// A request of the guest that only the owner of the machine can carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// The guest pulled a reset line: i8042 command 0xfe or the ACPI reset register.
    Reset,
    /// The guest entered ACPI sleep state S5.
    PowerOff,
    /// The guest kernel reported a panic through pvpanic.
    Panicked,
    /// The guest kernel panicked, and boots a crash kernel.
    CrashLoaded,
    /// The guest gave up a PCI function, a vCPU or memory; `take_ejected` of the [`hotplug`](crate::acpi::hotplug)
    /// devices tells what.
    Ejected,
    /// The guest did not reload its watchdog in time.
    WatchdogExpired,
    /// A disk waits for the machine to be stopped, and to go on again, since the host reported an error:
    /// [`take_stop_cause`](crate::virtio::block::BlockWatch::take_stop_cause) tells which.
    DiskStopped,
}

/// Where a device sends a [`PlatformEvent`].
///
/// Called on a vCPU's exit, or on a worker's thread: an implementation neither blocks nor allocates, and takes the same event any number of
/// times, since a guest can write a register in a loop.
pub trait Platform: Send + Sync {
    /// Passes the event on to the owner of the machine.
    fn raise(&self, event: PlatformEvent);
}
