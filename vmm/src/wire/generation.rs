//! The generation of a machine, by which its guest knows whether it is still the only one of its kind.

use std::io;

/// Sixteen random bytes. They are drawn with each machine, stay the same when its guest starts anew, and are drawn again
/// when the machine goes on from a saved state: what the guest took for random before is not random any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation([u8; 16]);

impl Generation {
    /// A generation that no other machine has.
    ///
    /// # Errors
    ///
    /// The host has no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // SAFETY: the array is as long as is said.
        #[expect(unsafe_code)]
        let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if len == bytes.len() as libc::ssize_t {
            Ok(Self(bytes))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The bytes in the order in which the guest finds them.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}
