//! What becomes of requests to a disk that fail on the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What becomes of a write, discard or zeroing that fails on the host. As QEMU's `werror`, without its `ignore`: data that
/// were not written are never told to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum WriteErrorPolicy {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The VM is paused, with the event `disk-error`, and the request is tried again when it is resumed.
    Stop,
    /// As `Stop` where the host has no space left, or the quota has none (ENOSPC, EDQUOT); else as `Report`.
    Enospc,
}

/// What becomes of a read that fails on the host. As QEMU's `rerror`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ReadErrorPolicy {
    /// The guest gets an I/O error.
    #[default]
    Report,
    /// The VM is paused, with the event `disk-error`, and the request is tried again when it is resumed.
    Stop,
}

impl WriteErrorPolicy {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ReadErrorPolicy {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
