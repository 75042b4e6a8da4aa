//! The escape key of the raw terminal.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h shows.
pub const HELP: &str = "\r\n\
    Ctrl-A x       end the virtual machine now\r\n\
    Ctrl-A p       press its power button\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest (also Ctrl-A a)\r\n\
    Ctrl-A h       show this\r\n";

/// What the user asks for by the escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapeAction {
    /// End the virtual machine now (Ctrl-A x).
    Quit,
    /// Press the power button (Ctrl-A p).
    PowerButton,
    /// Show [`HELP`] (Ctrl-A h or Ctrl-A ?).
    Help,
}

/// Finds the escape key in what the user types: Ctrl-A, then a key that says what to do. Ctrl-A twice, or Ctrl-A a,
/// sends one Ctrl-A to the guest. Before any other key, Ctrl-A is sent along with it, so that a program in the guest
/// that has the same escape key keeps its other commands.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Passes `typed` on to `guest`, and what it asks of the VMM to `act`.
    pub fn feed(
        &mut self,
        typed: &[u8],
        mut guest: impl FnMut(u8),
        mut act: impl FnMut(EscapeAction),
    ) {
        for &key in typed {
            if !std::mem::take(&mut self.escaped) {
                if key == ESCAPE {
                    self.escaped = true;
                } else {
                    guest(key);
                }
                continue;
            }
            match key {
                b'x' | b'X' => act(EscapeAction::Quit),
                b'p' | b'P' => act(EscapeAction::PowerButton),
                b'h' | b'H' | b'?' => act(EscapeAction::Help),
                ESCAPE | b'a' => guest(ESCAPE),
                other => {
                    guest(ESCAPE);
                    guest(other);
                }
            }
        }
    }
}
