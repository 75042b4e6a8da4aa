//! A machine that was booted, in either state, with all that it was built of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::config::VmConfig;
use api::request::{Descriptors, VmState};

use super::debug::Debugger;
use super::{Options, RunError};
use crate::cmd::check::kvm::software_kvm;
use crate::kvm::capabilities::Host;
use crate::vcpu::Failure;
use crate::vm::build;
use crate::vm::machine::Machine;
use crate::vm::notices::Notices;
use crate::vm::{Paused, Running};
use crate::wire::Resources;

/// A guest that triple-faults this often, each time within [`EARLY`] of its start, is not started again.
const MAX_EARLY_FAULTS: u32 = 3;
const EARLY: Duration = Duration::from_secs(10);

/// The least time between two events of a watchdog that does nothing else.
const WATCHDOG_EVENTS: Duration = Duration::from_secs(1);

/// What a machine is built of, over and over.
pub struct Definition {
    /// Checked, with a name for each device.
    pub config: Box<VmConfig>,
    /// What was opened by whoever made the configuration.
    pub descriptors: Descriptors,
}

/// A machine in either state.
pub(super) enum State {
    Running(Running),
    Paused(Paused),
}

/// A machine that was booted.
pub(super) struct Live {
    /// Dropped before the resources that its devices use.
    state: State,
    pub(super) resources: Resources,
    pub(super) definition: Definition,
    entered: Instant,
    early_faults: u32,
    /// The guest has told that it starts its crash kernel.
    crashed: bool,
    /// When the end of the watchdog was told last.
    watchdog_told: Option<Instant>,
}

/// What it takes to build a machine.
pub(super) struct Workshop<'a> {
    pub(super) host: &'a Host,
    pub(super) notices: &'a Arc<Notices>,
    pub(super) options: &'a Options,
    pub(super) debugger: &'a mut Debugger,
}

impl Workshop<'_> {
    /// `held` says what a debugger does to the machine before this one, if there was one.
    fn build(
        &mut self,
        definition: &Definition,
        resources: &Resources,
        then: VmState,
        held: Option<bool>,
    ) -> Result<State, RunError> {
        // What a machine before this one had to tell is of no interest any more.
        self.notices.take();
        let config = &definition.config;
        let mut paused = build::build(
            self.host,
            config,
            resources,
            self.notices,
            self.options.started,
        )?;
        let (boots, held) = (held.is_none(), held == Some(true));
        self.debugger.prepare(paused.machine_mut(), boots, held);
        Ok(match then {
            VmState::Paused => State::Paused(paused),
            _ => State::Running(paused.resume()),
        })
    }

    /// Builds the machine of `definition` from `resources`, and lets it run, unless it is `then` to be paused.
    ///
    /// # Errors
    ///
    /// The definition, with what is wrong.
    pub(super) fn boot(
        &mut self,
        definition: Definition,
        resources: Resources,
        then: VmState,
    ) -> Result<Box<Live>, (Definition, RunError)> {
        self.start(definition, resources, then, None)
    }

    fn start(
        &mut self,
        definition: Definition,
        mut resources: Resources,
        then: VmState,
        held: Option<bool>,
    ) -> Result<Box<Live>, (Definition, RunError)> {
        match self.build(&definition, &resources, then, held) {
            Ok(state) => {
                resources.settle();
                Ok(Box::new(Live {
                    state,
                    resources,
                    definition,
                    entered: Instant::now(),
                    early_faults: 0,
                    crashed: false,
                    watchdog_told: None,
                }))
            }
            Err(error) => Err((definition, error)),
        }
    }

    /// Ends the machine of `live`, and builds another one of the same resources.
    ///
    /// # Errors
    ///
    /// The definition, with what is wrong: the machine is gone.
    pub(super) fn reboot(
        &mut self,
        live: Box<Live>,
        then: VmState,
    ) -> Result<Box<Live>, (Definition, RunError)> {
        let held = live.machine().is_held();
        let Live {
            state,
            resources,
            definition,
            entered: _,
            early_faults,
            crashed: _,
            watchdog_told: _,
        } = *live;
        drop(state);
        let mut live = self.start(definition, resources, then, Some(held))?;
        live.early_faults = early_faults;
        Ok(live)
    }
}

impl Live {
    pub(super) fn vm_state(&self) -> VmState {
        match self.state {
            State::Running(_) if self.machine().is_held() => VmState::BreakPoint,
            State::Running(_) => VmState::Running,
            State::Paused(_) => VmState::Paused,
        }
    }

    /// Pauses the machine, if it runs.
    pub(super) fn pause(self) -> Self {
        let state = match self.state {
            State::Running(machine) => State::Paused(machine.pause()),
            paused @ State::Paused(_) => paused,
        };
        Self { state, ..self }
    }

    /// Lets the machine run on, if it is paused.
    pub(super) fn resume(self) -> Self {
        let state = match self.state {
            State::Paused(machine) => State::Running(machine.resume()),
            running @ State::Running(_) => running,
        };
        Self { state, ..self }
    }

    /// The machine, if it runs.
    pub(super) fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(machine) => Some(machine),
            State::Paused(_) => None,
        }
    }

    /// The parts of the machine, in either state.
    pub(super) fn machine(&self) -> &Machine {
        match &self.state {
            State::Running(running) => running.machine(),
            State::Paused(paused) => paused.machine(),
        }
    }

    /// The parts of the machine, to be changed, and what goes with them.
    pub(super) fn parts(&mut self) -> (&mut Machine, &mut Resources, &mut VmConfig) {
        let machine = match &mut self.state {
            State::Running(running) => running.machine_mut(),
            State::Paused(paused) => paused.machine_mut(),
        };
        (machine, &mut self.resources, &mut self.definition.config)
    }

    /// The guest tells that it starts its crash kernel. Gives whether that is news: a guest can tell it for ever.
    pub(super) fn note_crash(&mut self) -> bool {
        !std::mem::replace(&mut self.crashed, true)
    }

    /// The watchdog came to its end. Gives whether that is to be told: a guest can let it end a thousand times in a second.
    pub(super) fn note_watchdog(&mut self) -> bool {
        let told = self.watchdog_told;
        let news = told.is_none_or(|told| told.elapsed() >= WATCHDOG_EVENTS);
        if news {
            self.watchdog_told = Some(Instant::now());
        }
        news
    }

    /// Ends the machine and closes what it was built of.
    pub(super) fn end(self) -> Definition {
        self.definition
    }

    /// A triple fault resets the machine, as it resets a PC; a guest that does nothing else is given up.
    ///
    /// # Errors
    ///
    /// It shall not be started again.
    pub(super) fn count_fault(
        &mut self,
        failure: Box<Failure>,
        no_reboot: bool,
    ) -> Result<(), RunError> {
        if self.entered.elapsed() < EARLY {
            self.early_faults += 1;
        } else {
            self.early_faults = 0;
        }
        if no_reboot || self.early_faults >= MAX_EARLY_FAULTS {
            return Err(RunError::TripleFault {
                failure,
                software: software_kvm(),
            });
        }
        tracing::warn!(%failure, "the guest crashed the processor: reset");
        Ok(())
    }
}
