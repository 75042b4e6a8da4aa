//! Saved state of a transport core.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::{Life, QueueRegisters, Ring, Status, TransportCore};
use crate::state::{Section, StateError};

/// What a driver set up, how far its queues are, and the device's own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    pub(in crate::virtio::transport) status: u8,
    isr: u8,
    generation: u32,
    pub(in crate::virtio::transport) driver_features: u64,
    running: bool,
    pub(in crate::virtio::transport) queues: Vec<QueueState>,
    device: Section,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::virtio::transport) struct QueueState {
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    pub(in crate::virtio::transport) used: u64,
    next_available: u16,
    next_used: u16,
}

impl TransportCore {
    /// The state as of now.
    ///
    /// # Panics
    ///
    /// The device runs: its queues are not here then.
    pub fn save(&self) -> CoreState {
        let Self {
            device,
            memory: _,
            signals,
            interrupt: _,
            notifiers: _,
            driver_features,
            queues,
            life,
        } = self;
        let paused = match life {
            Life::Idle => None,
            Life::Paused(active) => Some(active),
            Life::Running => panic!("{} is saved while it runs", device.name()),
        };
        let (status, isr, generation) = signals.save();
        CoreState {
            status,
            isr,
            generation,
            driver_features: *driver_features,
            running: paused.is_some(),
            queues: (0_u16..)
                .zip(queues)
                .map(|(index, registers)| {
                    let active = paused
                        .and_then(|active| active.iter().find(|active| active.index == index));
                    QueueState {
                        size: registers.size(),
                        enabled: registers.enabled(),
                        descriptors: registers.address(Ring::Descriptors),
                        available: registers.address(Ring::Available),
                        used: registers.address(Ring::Used),
                        next_available: active.map_or(0, |active| active.queue.next_avail()),
                        next_used: active.map_or(0, |active| active.queue.next_used()),
                    }
                })
                .collect(),
            device: device.save(),
        }
    }

    /// Puts `state` into a core that has not run; [`TransportCore::resume`] goes on from it.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the field, by `kind` of the face; nothing changed then.
    pub fn restore(&mut self, kind: &'static str, state: &CoreState) -> Result<(), StateError> {
        let CoreState {
            status,
            isr,
            generation,
            driver_features,
            running,
            queues,
            device,
        } = state;
        let field = |field, value: String, expected: String| StateError::Field {
            kind,
            field,
            value,
            expected,
        };
        let Some(status) = Status::from_bits(*status) else {
            return Err(field(
                "status",
                format!("{status:#x}"),
                "known status bits".to_owned(),
            ));
        };
        let unknown = driver_features & !self.device.features();
        if unknown != 0 && status.contains(Status::FEATURES_OK) {
            return Err(field(
                "driver_features",
                format!("{driver_features:#x}"),
                format!("features among {:#x}", self.device.features()),
            ));
        }
        if queues.len() != self.queues.len() {
            let expected = format!("{} queues", self.queues.len());
            return Err(field(
                "queues",
                format!("{} queues", queues.len()),
                expected,
            ));
        }
        if *running && !status.contains(Status::DRIVER_OK | Status::FEATURES_OK) {
            return Err(field(
                "running",
                "true".to_owned(),
                "false before DRIVER_OK".to_owned(),
            ));
        }

        let before = (self.driver_features, self.queues.clone());
        self.driver_features = *driver_features;
        for (registers, saved) in self.queues.iter_mut().zip(queues) {
            saved.apply(registers);
        }
        let result = self.restore_queues(*running, queues).map_err(|reason| {
            field(
                "queues",
                reason,
                "queues in the memory of the machine".to_owned(),
            )
        });
        let result = result.and_then(|life| self.device.restore(device).map(|()| life));
        match result {
            Ok(life) => {
                self.life = life;
                self.signals.restore(status, *isr, *generation);
                Ok(())
            }
            Err(error) => {
                (self.driver_features, self.queues) = before;
                Err(error)
            }
        }
    }

    fn restore_queues(&self, running: bool, saved: &[QueueState]) -> Result<Life, String> {
        if !running {
            return Ok(Life::Idle);
        }
        let mut active = self
            .build_queues()
            .map_err(|(index, fault)| format!("queue {index}: {fault}"))?;
        for active in &mut active {
            let saved = &saved[usize::from(active.index)];
            active.queue.set_next_avail(saved.next_available);
            active.queue.set_next_used(saved.next_used);
        }
        Ok(Life::Paused(active))
    }
}

impl QueueState {
    fn apply(&self, registers: &mut QueueRegisters) {
        let Self {
            size,
            enabled,
            descriptors,
            available,
            used,
            next_available: _,
            next_used: _,
        } = *self;
        registers.reset();
        registers.set_size(size);
        registers.set_address(Ring::Descriptors, descriptors);
        registers.set_address(Ring::Available, available);
        registers.set_address(Ring::Used, used);
        if enabled {
            registers.enable();
        }
    }
}
