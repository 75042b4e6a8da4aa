//! Limits of how much a guest gets done in a time: token buckets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One limit: a bucket of tokens that are used up and come back at an even rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// What the bucket holds, and has at first.
    pub size: u64,
    /// What can be used once besides that, before it.
    pub one_time_burst: u64,
    /// Time in which an empty bucket is full again.
    pub refill_time: Duration,
}

/// The limits of a device, or of several together. What is not limited is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// In bytes.
    pub bandwidth: Option<TokenBucket>,
    /// In operations.
    pub ops: Option<TokenBucket>,
}

/// Keeps count of what was done, for all queues that share it.
///
/// Who asks for a turn gets one while there is a token left of each kind. What is done in a turn is told afterwards, when its
/// length is known, and can be more than there is: the next turn comes once that was made up for. So any one operation
/// is let through, however long it is, and the rate holds over time.
///
/// ```
/// use std::time::{Duration, Instant};
/// use devices::rate_limit::{RateLimiter, RateLimits, TokenBucket};
///
/// let second = Duration::from_secs(1);
/// let bandwidth = TokenBucket { size: 1000, one_time_burst: 0, refill_time: second };
/// let now = Instant::now();
/// let limiter = RateLimiter::new(RateLimits { bandwidth: Some(bandwidth), ops: None }, now);
/// assert_eq!(limiter.wait(now), None);
/// limiter.spend(1, 1999, now);
/// assert_eq!(limiter.wait(now), Some(second));
/// assert_eq!(limiter.wait(now + second), None);
/// ```
#[derive(Debug)]
pub struct RateLimiter {
    /// Something is limited: for those who only look.
    limits: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bandwidth: Option<Level>,
    ops: Option<Level>,
}

impl RateLimiter {
    /// Full buckets as of `now`. One without a size or a refill time limits nothing.
    pub fn new(limits: RateLimits, now: Instant) -> Self {
        let state = State::new(limits, now);
        Self {
            limits: state.limits().into(),
            state: Mutex::new(state),
        }
    }

    /// Puts other limits in place of those that there are, with full buckets as of `now`. Who waits for a turn is not told.
    pub fn set(&self, limits: RateLimits, now: Instant) {
        let mut state = self.state();
        *state = State::new(limits, now);
        self.limits.store(state.limits(), Ordering::Release);
    }

    /// Whether anything is limited. If not, there is always a turn, and nothing to count.
    pub fn is_limited(&self) -> bool {
        self.limits.load(Ordering::Acquire)
    }

    /// How long there is no turn; none if there is one at `now`.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        let State { bandwidth, ops } = &mut *state;
        let levels = [bandwidth, ops].into_iter().flatten();
        levels.filter_map(|level| level.wait(now)).max()
    }

    /// Tells what was done in a turn at `now`.
    pub fn spend(&self, ops: u64, bytes: u64, now: Instant) {
        let mut state = self.state();
        if let Some(level) = &mut state.bandwidth {
            level.spend(bytes, now);
        }
        if let Some(level) = &mut state.ops {
            level.spend(ops, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(limits: RateLimits, now: Instant) -> Self {
        let RateLimits { bandwidth, ops } = limits;
        Self {
            bandwidth: bandwidth.and_then(|bucket| Level::new(bucket, now)),
            ops: ops.and_then(|bucket| Level::new(bucket, now)),
        }
    }

    fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }
}

/// What is in a bucket.
#[derive(Debug)]
struct Level {
    size: u64,
    refill_nanoseconds: u64,
    burst: u64,
    /// Below 0 if more was used than there was.
    tokens: i128,
    /// Up to when tokens have come back.
    since: Instant,
}

impl Level {
    fn new(bucket: TokenBucket, now: Instant) -> Option<Self> {
        let TokenBucket {
            size,
            one_time_burst,
            refill_time,
        } = bucket;
        // This many nanoseconds are 584 years.
        let refill_nanoseconds = u64::try_from(refill_time.as_nanos()).unwrap_or(u64::MAX);
        (size > 0 && refill_nanoseconds > 0).then_some(Self {
            size,
            refill_nanoseconds,
            burst: one_time_burst,
            tokens: i128::from(size),
            since: now,
        })
    }

    fn refill(&mut self, now: Instant) {
        let (size, refill) = (u128::from(self.size), u128::from(self.refill_nanoseconds));
        let elapsed = now.saturating_duration_since(self.since).as_nanos();
        // Each factor fits 64 bits.
        let back = elapsed.min(u128::from(u64::MAX)) * size / refill;
        let full = i128::from(self.size);
        let tokens = self.tokens.saturating_add_unsigned(back);
        if tokens >= full {
            self.tokens = full;
            self.since = self.since.max(now);
        } else {
            self.tokens = tokens;
            // Parts of a token stay in the time that has not been counted.
            let counted = back * refill / size;
            self.since += Duration::from_nanos(counted as u64);
        }
    }

    fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        if self.burst > 0 || self.tokens > 0 {
            return None;
        }
        let missing = 1 + self.tokens.unsigned_abs();
        let time = missing
            .saturating_mul(u128::from(self.refill_nanoseconds))
            .div_ceil(u128::from(self.size));
        let time = Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX));
        let gone = now.saturating_duration_since(self.since);
        Some(time.saturating_sub(gone).max(Duration::from_nanos(1)))
    }

    fn spend(&mut self, count: u64, now: Instant) {
        self.refill(now);
        let of_burst = count.min(self.burst);
        self.burst -= of_burst;
        self.tokens = self.tokens.saturating_sub(i128::from(count - of_burst));
    }
}

#[cfg(test)]
mod tests;
