//! Buckets over time.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn bucket(size: u64, one_time_burst: u64, refill_time: Duration) -> Option<TokenBucket> {
    Some(TokenBucket {
        size,
        one_time_burst,
        refill_time,
    })
}

fn ops(size: u64, one_time_burst: u64, now: Instant) -> RateLimiter {
    let limits = RateLimits {
        bandwidth: None,
        ops: bucket(size, one_time_burst, SECOND),
    };
    RateLimiter::new(limits, now)
}

/// How many turns there are at `now`.
fn turns(limiter: &RateLimiter, now: Instant) -> u64 {
    let mut count = 0;
    while limiter.wait(now).is_none() {
        limiter.spend(1, 0, now);
        count += 1;
    }
    count
}

#[test]
fn bucket_is_full_at_first_and_fills_at_an_even_rate() {
    let now = Instant::now();
    let limiter = ops(10, 0, now);
    assert_eq!(turns(&limiter, now), 10);
    assert_eq!(limiter.wait(now), Some(SECOND / 10));
    assert_eq!(turns(&limiter, now + SECOND / 2), 5);
    // No more comes together than the bucket holds.
    assert_eq!(turns(&limiter, now + 100 * SECOND), 10);
}

#[test]
fn burst_is_there_once() {
    let now = Instant::now();
    let limiter = ops(10, 7, now);
    assert_eq!(turns(&limiter, now), 17);
    assert_eq!(turns(&limiter, now + 100 * SECOND), 10);
}

#[test]
fn both_limits_hold() {
    let now = Instant::now();
    let limits = RateLimits {
        bandwidth: bucket(1000, 0, SECOND),
        ops: bucket(10, 0, SECOND),
    };
    let limiter = RateLimiter::new(limits, now);
    limiter.spend(1, 1000, now);
    assert_eq!(limiter.wait(now), Some(SECOND / 1000));
    let later = now + SECOND;
    limiter.spend(10, 1, later);
    assert_eq!(limiter.wait(later), Some(SECOND / 10));
}

#[test]
fn long_operation_is_let_through_and_made_up_for() {
    let now = Instant::now();
    let limits = RateLimits {
        bandwidth: bucket(1000, 0, SECOND),
        ops: None,
    };
    let limiter = RateLimiter::new(limits, now);
    limiter.spend(1, 5000, now);
    assert_eq!(limiter.wait(now), Some(4 * SECOND + SECOND / 1000));
    assert_eq!(limiter.wait(now + 4 * SECOND), Some(SECOND / 1000));
    assert_eq!(limiter.wait(now + 4 * SECOND + SECOND / 1000), None);
}

#[test]
fn bucket_without_size_or_time_limits_nothing() {
    let now = Instant::now();
    for (size, refill) in [(0, SECOND), (1, Duration::ZERO)] {
        let limits = RateLimits {
            bandwidth: bucket(size, 0, refill),
            ops: bucket(size, 0, refill),
        };
        let limiter = RateLimiter::new(limits, now);
        limiter.spend(u64::MAX, u64::MAX, now);
        assert_eq!(limiter.wait(now), None);
    }
}

proptest! {
    #[test]
    fn rate_holds_over_time(
        size in 1_u64..1_000_000,
        refill in 1_u64..10_000_000_000,
        steps in prop::collection::vec((0_u64..2_000_000_000, 1_u64..5_000_000), 1..64),
    ) {
        let start = Instant::now();
        let limits = RateLimits { bandwidth: bucket(size, 0, Duration::from_nanos(refill)), ops: None };
        let limiter = RateLimiter::new(limits, start);
        let (mut now, mut spent) = (start, 0_u128);
        for (pause, bytes) in steps {
            now += Duration::from_nanos(pause);
            if let Some(wait) = limiter.wait(now) {
                // It says when there is a turn, and not before.
                let early = wait.saturating_sub(Duration::from_nanos(1 + refill / size));
                if !early.is_zero() {
                    prop_assert!(limiter.wait(now + early).is_some());
                }
                now += wait;
                prop_assert_eq!(limiter.wait(now), None);
            }
            // What was spent before fits what there was by now.
            let come = (now - start).as_nanos() * u128::from(size) / u128::from(refill);
            prop_assert!(spent < u128::from(size) + come + 1);
            limiter.spend(1, bytes, now);
            spent += u128::from(bytes);
        }
    }

    #[test]
    fn any_numbers_are_taken(size: u64, burst: u64, refill: u64, spend in prop::collection::vec(any::<u64>(), 0..8), pause: u64) {
        let start = Instant::now();
        let limits = RateLimits { bandwidth: bucket(size, burst, Duration::from_millis(refill)), ops: bucket(size, burst, Duration::MAX) };
        let limiter = RateLimiter::new(limits, start);
        for bytes in spend {
            limiter.spend(bytes, bytes, start + Duration::from_nanos(pause));
            limiter.wait(start);
        }
    }
}
