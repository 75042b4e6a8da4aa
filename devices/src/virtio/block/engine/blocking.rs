//! Transfers by system calls that block.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Completion, Operation};
use crate::virtio::block::disk::Disk;

/// Carries every operation out while it is submitted.
#[derive(Debug)]
pub(crate) struct Blocking {
    disk: Arc<dyn Disk>,
    ended: VecDeque<Completion>,
}

impl Blocking {
    pub(super) fn new(disk: Arc<dyn Disk>, depth: u16) -> Self {
        Self {
            disk,
            ended: VecDeque::with_capacity(usize::from(depth)),
        }
    }

    pub(super) fn submit(&mut self, token: u16, operation: Operation<'_>) {
        self.ended.push_back(Completion {
            token,
            result: operation.carry_out(&*self.disk),
            // It is taken only after others were carried out.
            ended: Some(Instant::now()),
        });
    }

    pub(super) fn next(&mut self) -> Option<Completion> {
        self.ended.pop_front()
    }
}
