//! Rate limits of disks and networks.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::ConfigError;
use super::option::{self, OptionString};
use super::section::{Section, check_id};

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

impl Section for RateLimiterConfig {
    const UNSUPPORTED: &'static [&'static str] = &[];

    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl OptionString for RateLimiterConfig {
    const RENAMES: &'static [(&'static str, &'static str)] = &[
        ("bw_size", "bandwidth.size"),
        ("bw_one_time_burst", "bandwidth.one_time_burst"),
        ("bw_refill_time", "bandwidth.refill_time"),
        ("ops_size", "ops.size"),
        ("ops_one_time_burst", "ops.one_time_burst"),
        ("ops_refill_time", "ops.refill_time"),
    ];
}

impl FromStr for RateLimiterConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
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

/// Limits that several disks share. `--rate-limit-group id=NAME,bw_size=N,bw_refill_time=MS,...`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitGroupConfig {
    /// Name of the group, by which disks name it as their `rate_limit_group`.
    #[schema(min_length = 1, max_length = 64, pattern = "^(?!__)[!-~]+$")]
    pub id: String,
    /// The limits. `bw_*` and `ops_*` on the command line.
    pub rate_limiter_config: RateLimiterConfig,
}

impl Section for RateLimitGroupConfig {
    const UNSUPPORTED: &'static [&'static str] = &[];

    fn check(&self) -> Result<(), ConfigError> {
        check_id(Some(&self.id))
    }
}

impl OptionString for RateLimitGroupConfig {
    const RENAMES: &'static [(&'static str, &'static str)] = &RATE_LIMITER_RENAMES;
}

impl FromStr for RateLimitGroupConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        option::parse(text)
    }
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
