//! Cores of the machine.

use api::request::{Answer, ApiError, CoredumpConfig, Reply, VmState};

use super::Control;
use super::live::Live;
use super::serve::BOOTED;
use crate::vm::coredump::{self, CoreFile, CoredumpError};

const VERB: &str = "vm.coredump";

impl Control {
    /// Writes a core of the machine, which stands still meanwhile.
    pub(super) fn coredump(&mut self, config: &CoredumpConfig) -> Answer {
        let CoredumpConfig { destination_url } = config;
        let live = self.live(VERB, BOOTED)?;
        let running = live.vm_state() == VmState::Running;
        // Its devices run, for all that its vCPUs do not.
        let held = live.vm_state() == VmState::BreakPoint;
        let file = CoreFile::create(destination_url).map_err(answer)?;
        self.events.publish("vm", "coredumping", &[]);
        if running {
            self.pause()?;
        }
        if held {
            self.change(Live::pause);
        }
        let written = match self.live(VERB, BOOTED) {
            Ok(live) => coredump::write(live.machine(), file).map_err(answer),
            Err(error) => Err(error),
        };
        if running {
            self.resume()?;
        }
        if held {
            self.change(Live::resume);
        }
        written?;
        self.events.publish("vm", "coredumped", &[]);
        Ok(Reply::Done)
    }
}

fn answer(error: CoredumpError) -> ApiError {
    ApiError::of(VERB, error.is_request(), &error)
}
