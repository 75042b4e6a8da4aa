//! Verbs that change how much of something there is, or how much gets done.

use api::config::{ByteSize, RateLimiterConfig};
use api::request::{ResizeConfig, ResizeDiskConfig, SetRateLimiterConfig};
use clap::{Args, Subcommand};
use serde_json::json;

use super::call::Call;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Change the number of vCPUs, the memory or the balloon
    #[command(
        override_usage = "podvisor ctl --api-socket <PATH> resize <--cpus|--memory|--balloon>..."
    )]
    Resize(Sizes),
    /// Change the size of a disk
    #[command(
        override_usage = "podvisor ctl --api-socket <PATH> resize-disk --disk <ID> --size <SIZE>"
    )]
    ResizeDisk {
        /// Its id, as info tells it
        #[arg(long = "disk", value_name = "ID")]
        id: String,
        /// Its new size: bytes, or with K, M, G or T
        #[arg(long, value_name = "SIZE")]
        size: ByteSize,
    },
    /// Change the limits of a disk, a network or a group of disks; without LIMITS there are none any more
    #[command(
        override_usage = "podvisor ctl --api-socket <PATH> set-rate-limiter <--id|--group> [LIMITS]"
    )]
    SetRateLimiter {
        #[command(flatten)]
        of: Limited,
        /// bw_size=BYTES,bw_refill_time=MS,ops_size=N,ops_refill_time=MS,...: as for --disk
        limits: Option<RateLimiterConfig>,
    },
    /// Change the size of a memory zone
    #[command(
        override_usage = "podvisor ctl --api-socket <PATH> resize-zone --id <ID> --size <SIZE>"
    )]
    ResizeZone {
        /// Its id
        #[arg(long, value_name = "ID")]
        id: String,
        /// Its new size: bytes, or with K, M, G or T
        #[arg(long, value_name = "SIZE")]
        size: ByteSize,
    },
}

/// Whose limits they are.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Limited {
    /// Id of a disk that is in no group
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Name of one of the VM's groups
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

/// What is not given stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Sizes {
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Size of memory: bytes, or with K, M, G or T
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Size of the balloon: bytes, or with K, M, G or T
    #[arg(long, value_name = "SIZE")]
    balloon: Option<ByteSize>,
}

impl Verb {
    pub(super) fn into_call(self) -> Call {
        match self {
            Self::Resize(Sizes {
                cpus,
                memory,
                balloon,
            }) => {
                let body = ResizeConfig {
                    desired_vcpus: cpus,
                    desired_ram: memory.map(ByteSize::bytes),
                    desired_balloon: balloon.map(ByteSize::bytes),
                };
                Call::put_with("vm.resize", json!(body))
            }
            Self::ResizeDisk { id, size } => {
                let body = ResizeDiskConfig {
                    id,
                    desired_size: size.bytes(),
                };
                Call::put_with("vm.resize-disk", json!(body))
            }
            Self::SetRateLimiter { of, limits } => {
                let body = SetRateLimiterConfig {
                    id: of.id,
                    rate_limit_group: of.group,
                    rate_limiter_config: limits,
                };
                Call::put_with("vm.set-rate-limiter", json!(body))
            }
            Self::ResizeZone { id, size } => {
                let body = json!({"id": id, "desired_ram": size.bytes()});
                Call::put_with("vm.resize-zone", body)
            }
        }
    }
}
