//! `--watchdog`: what happens when the guest does not reload its watchdog in time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ConfigError;

/// What the end of the watchdog's time does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum WatchdogAction {
    /// The machine starts anew, as by a reset of the guest's own.
    #[default]
    Reset,
    /// The machine ends, as if the guest had turned itself off.
    Poweroff,
    /// The power button is pressed.
    Shutdown,
    /// The machine is paused.
    Pause,
    /// Nothing but the event that tells of it.
    None,
}

/// The actions, as the command line and events spell them.
const NAMES: [(&str, WatchdogAction); 5] = [
    ("reset", WatchdogAction::Reset),
    ("poweroff", WatchdogAction::Poweroff),
    ("shutdown", WatchdogAction::Shutdown),
    ("pause", WatchdogAction::Pause),
    ("none", WatchdogAction::None),
];

impl WatchdogAction {
    /// The name on the command line and in events, as in `reset`.
    pub fn name(self) -> &'static str {
        let mut names = NAMES.iter();
        let found = names.find(|(_, action)| *action == self);
        found.map_or("", |(name, _)| name)
    }
}

impl fmt::Display for WatchdogAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WatchdogAction {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut names = NAMES.iter();
        let found = names.find(|(name, _)| *name == text);
        found.map(|(_, action)| *action).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            ConfigError::invalid(
                "watchdog",
                format!("{text:?}"),
                format!("expected one of {names}"),
            )
        })
    }
}
