//! The end of the watchdog's time.

use api::config::WatchdogAction;

use super::{Control, Outcome, RunError, Slot};

impl Control {
    /// Does what the configuration asks for when the guest did not reload its watchdog in time.
    pub(super) fn watchdog_expired(&mut self) -> Result<(), RunError> {
        let Slot::Live(live) = &mut self.slot else {
            return Ok(());
        };
        let action = live.definition.config.watchdog_action.unwrap_or_default();
        if live.note_watchdog() {
            tracing::warn!(%action, "the guest did not reload its watchdog in time");
            self.events
                .publish("watchdog", "expired", &[("action", action.name())]);
        }
        match action {
            WatchdogAction::Reset => self.guest_reset(),
            WatchdogAction::Poweroff => {
                self.guest_ended(Outcome::PoweredOff);
                Ok(())
            }
            WatchdogAction::Shutdown => self.running().map_or(Ok(()), |running| {
                running
                    .press_power_button()
                    .map_err(RunError::host("press the power button"))
            }),
            WatchdogAction::Pause => {
                if self.running().is_some() {
                    // It runs: there is nothing that could refuse it.
                    let _ = self.pause();
                }
                Ok(())
            }
            WatchdogAction::None => Ok(()),
        }
    }
}
