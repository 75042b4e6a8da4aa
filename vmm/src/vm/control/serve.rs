//! What each request does to the machine. The states and their verbs are drawn in the README of crate `api`.

use api::config::VmConfig;
use api::request::{Answer, ApiError, Descriptors, PingInfo, Reply, Request, VmInfo, VmState};

use super::live::{Definition, Live};
use super::{Control, Outcome, RunError, Slot};

pub(super) const BOOTED: &str = "a booted VM";

impl Control {
    /// Carries out `request`.
    pub(super) fn serve(&mut self, request: Request) -> Answer {
        let verb = request.verb();
        // What the guest gave up until now is gone for whoever asks.
        self.take_ejected();
        match request {
            Request::Ping => Ok(Reply::Ping(ping())),
            Request::ShutdownVmm => {
                self.end_machine();
                self.outcome = Some(Outcome::Stopped);
                Ok(Reply::Done)
            }
            Request::Create {
                config,
                descriptors,
            } => self.create(config, descriptors),
            Request::Delete => {
                self.end_machine();
                if !matches!(self.slot.take(), Slot::Empty) {
                    self.events.publish("vm", "deleted", &[]);
                }
                Ok(Reply::Done)
            }
            Request::Boot => self.serve_boot(),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Shutdown => {
                self.live(verb, BOOTED)?;
                self.end_machine();
                Ok(Reply::Done)
            }
            Request::Reboot => {
                self.live(verb, BOOTED)?;
                self.reboot(VmState::Running)
                    .map_err(|error| error.answer(verb))?;
                Ok(Reply::Done)
            }
            Request::PowerButton => self.press_power_button(),
            Request::Nmi => {
                self.live(verb, BOOTED)?.machine().vcpus.inject_nmi();
                Ok(Reply::Done)
            }
            Request::Info => self.info(),
            Request::Counters => {
                let live = self.live(verb, BOOTED)?;
                Ok(Reply::Counters(live.machine().counters()))
            }
            Request::Metrics => Ok(Reply::Metrics(Box::new(self.metrics()))),
            Request::Coredump(config) => self.coredump(&config),
            Request::Resize(config) => self.resize(config),
            Request::ResizeDisk(config) => self.resize_disk(&config),
            Request::SetLink(config) => self.set_link(&config),
            Request::SetRateLimiter(config) => self.set_rate_limiter(config),
            Request::AddDisk {
                config,
                descriptors,
            } => self.add_disk(*config, descriptors),
            Request::AddNet {
                config,
                descriptors,
            } => self.add_net(*config, descriptors),
            Request::AddFs(config) => self.add_fs(*config),
            Request::AddVsock(config) => self.add_vsock(*config),
            Request::RemoveDevice(config) => self.remove_device(&config),
            _ => Err(ApiError::NotSupported {
                verb,
                reason: "this VMM does not know it".to_owned(),
            }),
        }
    }

    fn create(&mut self, mut config: Box<VmConfig>, descriptors: Descriptors) -> Answer {
        match self.slot {
            Slot::Empty => {
                config.assign_ids();
                self.slot = Slot::Defined {
                    definition: Definition {
                        config,
                        descriptors,
                    },
                    ended: false,
                };
                self.events.publish("vm", "created", &[]);
                Ok(Reply::Done)
            }
            _ => Err(ApiError::AlreadyCreated { verb: "vm.create" }),
        }
    }

    fn serve_boot(&mut self) -> Answer {
        let verb = Request::Boot.verb();
        match self.slot.take() {
            Slot::Empty => Err(ApiError::NotCreated { verb }),
            Slot::Defined { definition, ended } => match self.boot(definition) {
                Ok(()) => Ok(Reply::Done),
                Err((definition, error)) => {
                    self.slot = Slot::Defined { definition, ended };
                    Err(error.answer(verb))
                }
            },
            Slot::Live(live) => {
                let state = live.vm_state();
                self.slot = Slot::Live(live);
                Err(ApiError::WrongState {
                    verb,
                    state,
                    expected: "a VM that is created or shut down",
                })
            }
        }
    }

    pub(super) fn pause(&mut self) -> Answer {
        self.live_in(Request::Pause.verb(), VmState::Running, "a running VM")?;
        self.events.publish("vm", "pausing", &[]);
        self.change(Live::pause);
        // Of what ended while devices came to rest.
        self.tell_of_disk_errors();
        self.events.publish("vm", "paused", &[]);
        Ok(Reply::Done)
    }

    pub(super) fn resume(&mut self) -> Answer {
        self.live_in(Request::Resume.verb(), VmState::Paused, "a paused VM")?;
        self.events.publish("vm", "resuming", &[]);
        self.change(Live::resume);
        self.events.publish("vm", "resumed", &[]);
        Ok(Reply::Done)
    }

    fn press_power_button(&mut self) -> Answer {
        let verb = Request::PowerButton.verb();
        let live = self.live_in(verb, VmState::Running, "a running VM")?;
        if let Some(running) = live.running() {
            running
                .press_power_button()
                .map_err(RunError::host("press the power button"))
                .map_err(|error| error.answer(verb))?;
        }
        Ok(Reply::Done)
    }

    fn info(&self) -> Answer {
        let (definition, state, machine) = match &self.slot {
            Slot::Empty => return Err(ApiError::NotCreated { verb: "vm.info" }),
            Slot::Defined {
                definition,
                ended: false,
            } => (definition, VmState::Created, None),
            Slot::Defined { definition, .. } => (definition, VmState::Shutdown, None),
            Slot::Live(live) => (&live.definition, live.vm_state(), Some(live.machine())),
        };
        let mut config = (*definition.config).clone();
        if let Slot::Live(live) = &self.slot {
            live.resources.tell_ptys(&mut config);
        }
        Ok(Reply::Info(Box::new(VmInfo {
            config,
            state,
            memory_actual_size: machine.map_or(definition.config.memory.size.bytes(), |machine| {
                machine.usable_memory()
            }),
            device_tree: machine.map(|machine| machine.device_tree()),
        })))
    }

    /// The booted machine, for a verb that needs one.
    pub(super) fn live(
        &mut self,
        verb: &'static str,
        expected: &'static str,
    ) -> Result<&mut Live, ApiError> {
        match &mut self.slot {
            Slot::Empty => Err(ApiError::NotCreated { verb }),
            Slot::Defined { ended, .. } => Err(ApiError::WrongState {
                verb,
                state: if *ended {
                    VmState::Shutdown
                } else {
                    VmState::Created
                },
                expected,
            }),
            Slot::Live(live) => Ok(live),
        }
    }

    /// The machine in one of the states of a booted one.
    fn live_in(
        &mut self,
        verb: &'static str,
        state: VmState,
        expected: &'static str,
    ) -> Result<&mut Live, ApiError> {
        let live = self.live(verb, expected)?;
        let found = live.vm_state();
        if found == state {
            Ok(live)
        } else {
            Err(ApiError::WrongState {
                verb,
                state: found,
                expected,
            })
        }
    }

    /// Changes the booted machine's state.
    pub(super) fn change(&mut self, change: impl FnOnce(Live) -> Live) {
        self.slot = match self.slot.take() {
            Slot::Live(live) => Slot::Live(Box::new(change(*live))),
            other => other,
        };
    }
}

fn ping() -> PingInfo {
    let version = env!("CARGO_PKG_VERSION");
    PingInfo {
        build_version: format!("v{version}"),
        version: version.to_owned(),
        pid: std::process::id().into(),
        features: vec!["kvm".to_owned()],
    }
}
