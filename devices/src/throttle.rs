//! A bound on the log lines that a guest can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// Lets so many events per minute through, and counts the others.
///
/// ```
/// use devices::throttle::Throttle;
///
/// static MALFORMED: Throttle = Throttle::per_minute(10);
///
/// if let Some(suppressed) = MALFORMED.allow() {
///     tracing::warn!(suppressed, "malformed request");
/// }
/// ```
#[derive(Debug)]
pub struct Throttle {
    limit: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    /// Lets `limit` events through in each minute.
    pub const fn per_minute(limit: u32) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                since: None,
                passed: 0,
                suppressed: 0,
            }),
        }
    }

    /// Tells whether this event may be logged: the number of events held back since the last one that was, or none.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= MINUTE)
        {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed == self.limit {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_limit_are_held_back_and_counted() {
        let throttle = Throttle::per_minute(2);
        let start = Instant::now();
        let seen: Vec<_> = (0..5).map(|_| throttle.allow_at(start)).collect();
        assert_eq!(seen, [Some(0), Some(0), None, None, None]);
        assert_eq!(throttle.allow_at(start + MINUTE), Some(3));
        assert_eq!(throttle.allow_at(start + MINUTE), Some(0));
        assert_eq!(throttle.allow_at(start + MINUTE), None);
    }
}
