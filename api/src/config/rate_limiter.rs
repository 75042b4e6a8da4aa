//! Rate limits of disks and networks.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Command-line keys of the two buckets, for disks and networks alike.
pub(crate) const RATE_LIMITER_RENAMES: [(&str, &str); 6] = [
    ("bw_size", "rate_limiter_config.bandwidth.size"),
    (
        "bw_one_time_burst",
        "rate_limiter_config.bandwidth.one_time_burst",
    ),
    (
        "bw_refill_time",
        "rate_limiter_config.bandwidth.refill_time",
    ),
    ("ops_size", "rate_limiter_config.ops.size"),
    (
        "ops_one_time_burst",
        "rate_limiter_config.ops.one_time_burst",
    ),
    ("ops_refill_time", "rate_limiter_config.ops.refill_time"),
];

/// Independent limits of bytes and of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket that starts with a burst and is refilled at an even rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenBucket {
    /// What the bucket holds, in bytes or operations. Zero: no limit.
    pub size: u64,
    /// What can be used once before the limit holds, in bytes or operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Time in which an empty bucket is full again, in milliseconds. Zero: no limit.
    pub refill_time: u64,
}

/// Reads limits; a bucket without a size or a refill time limits nothing, and is the same as no bucket.
pub(crate) fn unlimited_as_none<'de, D>(
    deserializer: D,
) -> Result<Option<RateLimiterConfig>, D::Error>
where
    D: Deserializer<'de>,
{
    let limits = |bucket: &TokenBucket| bucket.size != 0 && bucket.refill_time != 0;
    let config = Option::<RateLimiterConfig>::deserialize(deserializer)?.unwrap_or_default();
    let config = RateLimiterConfig {
        bandwidth: config.bandwidth.filter(limits),
        ops: config.ops.filter(limits),
    };
    Ok((config != RateLimiterConfig::default()).then_some(config))
}
