//! What happens when a thread panics.

use std::panic;

/// Lets a panic in any thread be told on stderr, below what other hooks did before (the terminal is then as it was).
/// The release profile aborts afterwards, so that nothing hangs waiting for the thread that is gone.
pub(super) fn install_hook() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        default(info);
        super::tell("internal error, the VM is ended; guest data flushed before is on the disks");
    }));
}
