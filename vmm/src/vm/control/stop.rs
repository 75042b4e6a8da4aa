//! Errors of disks that the machine is paused for.

use super::live::Live;
use super::{Control, Slot};

impl Control {
    /// Pauses the machine for disks that wait for that, and tells why. Whoever resumes it has them try again.
    pub(super) fn stop_for_disks(&mut self) {
        // A machine that was paused meanwhile told why then.
        if self.tell_of_disk_errors() && self.running().is_some() {
            if self.is_held() {
                // For the debugger it stands still already. Its devices do not.
                self.change(Live::pause);
                return;
            }
            // It runs: there is nothing that could refuse it.
            let _ = self.pause();
        }
    }

    /// Tells which disks wait for the machine to be paused, and why. Returns whether there are any.
    pub(super) fn tell_of_disk_errors(&self) -> bool {
        let Slot::Live(live) = &self.slot else {
            return false;
        };
        let causes = live.machine().attached.take_stop_causes();
        for (id, cause) in &causes {
            let error = cause.error.to_string();
            let operation = cause.operation;
            tracing::warn!(
                disk = id,
                operation,
                error,
                "the VM is paused for an error of the host"
            );
            self.events.publish(
                "vm",
                "disk-error",
                &[("id", id), ("operation", operation), ("error", &error)],
            );
        }
        !causes.is_empty()
    }
}
