//! The loop that owns the machine, from its definition to its end.

mod change;
mod coredump;
mod debug;
mod error;
mod link;
mod live;
mod metrics;
mod serve;
mod stop;
mod watchdog;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::event::Events;
use api::request::{Request, VmState};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::debug::Debugger;
pub use self::error::RunError;
pub use self::live::Definition;
use self::live::{Live, Workshop};
use super::Running;
use super::inbox::{Inbox, Mailbox, Posted};
use super::notices::Notices;
use super::signals::Signals;
use crate::cmd::check::kvm::software_kvm;
use crate::kvm::capabilities::Host;
use crate::terminal::{self, EscapeAction};
use crate::vcpu::End;
use crate::wire;

/// A second signal within this time is the first one again: `timeout` sends it to the process and to its group, as a
/// terminal and a service manager can do between them.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// How often a guest is told of an event until it has looked: one that boots may have missed it.
const REMINDER: Duration = Duration::from_millis(500);

/// How machines shall be run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A machine that boots waits for a debugger to let it run.
    pub wait_for_debugger: bool,
    /// A reset by the guest ends the machine.
    pub no_reboot: bool,
    /// The end of the machine by its guest does not end the process: the next one can be asked for.
    pub no_shutdown: bool,
    /// How long a guest has to turn itself off after its power button was pressed by a signal.
    pub shutdown_timeout: Duration,
    /// When the process started; boot marks count from here.
    pub started: Instant,
}

/// How the process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest turned itself off.
    PoweredOff,
    /// The guest reset itself, and was not to be started again.
    Reset,
    /// It was asked for, by [`Request::ShutdownVmm`] or by a signal while there was no machine.
    Stopped,
    /// The guest's kernel panicked.
    Panicked,
}

/// Serves requests until one of them, a signal or the guest ends the process. A machine is booted at once if there is
/// `first`.
///
/// A reset by the guest builds the machine anew from the resources that were opened at its boot.
///
/// # Errors
///
/// [`RunError`]; nothing of the machine is left.
pub fn run(
    first: Option<Definition>,
    options: Options,
    inbox: Inbox,
    events: Events,
) -> Result<Outcome, RunError> {
    let mut control = Control {
        slot: Slot::Empty,
        terminated: None,
        outcome: None,
        signals: Signals::new().map_err(RunError::host("take over SIGTERM and SIGINT"))?,
        notices: Arc::new(Notices::new().map_err(RunError::host("get an eventfd"))?),
        host: None,
        mailbox: inbox.mailbox(),
        inbox,
        debugger: Debugger::new(options.wait_for_debugger),
        options,
        events,
    };
    control.events.publish("vmm", "starting", &[]);
    let booted = match first {
        Some(definition) => control.boot(definition).map_err(|(_, error)| error),
        None => Ok(()),
    };
    let outcome = booted.and_then(|()| control.run());
    control.end_machine();
    control.events.publish("vmm", "shutdown", &[]);
    outcome
}

/// What there is of a machine.
enum Slot {
    /// None is defined.
    Empty,
    /// One can be booted. `ended`: one of this definition was booted before.
    Defined { definition: Definition, ended: bool },
    /// One was booted.
    Live(Box<Live>),
}

impl Slot {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Empty)
    }

    /// What the machine is built of, whether it was booted or not.
    fn definition(&self) -> Option<&Definition> {
        match self {
            Self::Empty => None,
            Self::Defined { definition, .. } => Some(definition),
            Self::Live(live) => Some(&live.definition),
        }
    }

    fn definition_mut(&mut self) -> Option<&mut Definition> {
        match self {
            Self::Empty => None,
            Self::Defined { definition, .. } => Some(definition),
            Self::Live(live) => Some(&mut live.definition),
        }
    }
}

struct Control {
    slot: Slot,
    /// When the first signal came.
    terminated: Option<Instant>,
    /// Set when the process shall end.
    outcome: Option<Outcome>,
    signals: Signals,
    notices: Arc<Notices>,
    /// Opened for the first machine, so that the API answers on any host.
    host: Option<Host>,
    inbox: Inbox,
    mailbox: Mailbox,
    debugger: Debugger,
    options: Options,
    events: Events,
}

impl Control {
    fn run(&mut self) -> Result<Outcome, RunError> {
        let epoll = self.epoll().map_err(RunError::host("wait for events"))?;
        let mut ready = [EpollEvent::default(); 3];
        loop {
            if let Some(outcome) = self.outcome {
                return Ok(outcome);
            }
            match epoll.wait(self.timeout(), &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(RunError::host("wait for events"))?,
            };
            // Before what the guest does: one that resets without end must not keep them from being heard.
            let signals = self.signals.take();
            for _ in 0..signals.terminations {
                self.terminate()?;
            }
            if signals.resized
                && let Slot::Live(live) = &self.slot
            {
                live.resources.look_at_size();
            }
            // One at a time: what the guest did meanwhile is looked at in between.
            if self.outcome.is_none()
                && let Some(posted) = self.inbox.next()
            {
                match posted {
                    Posted::Request(request, answerer) => answerer.answer(self.serve(request)),
                    Posted::Debug(request) => self.debug(request),
                }
            }
            self.look_at_guest()?;
            self.watch_clock()?;
            // What a signal has to wait for may have gone by a request.
            if self.terminated.is_some() && !matches!(self.slot, Slot::Live(_)) {
                self.outcome.get_or_insert(Outcome::Stopped);
            }
        }
    }

    fn epoll(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let sources = [
            self.notices.eventfd().as_raw_fd(),
            self.inbox.eventfd().as_raw_fd(),
            self.signals.as_raw_fd(),
        ];
        for fd in sources {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(epoll)
    }

    /// Milliseconds to the next thing to do without being woken, rounded up: the deadline of a guest that shall turn
    /// itself off, or a reminder of events that it has not looked at. -1 for neither.
    fn timeout(&self) -> i32 {
        let left = self.terminated.map(|terminated| {
            let timeout = self.options.shutdown_timeout;
            timeout.saturating_sub(terminated.elapsed())
        });
        let reminder = self.running().is_some_and(Running::has_pending_events);
        let reminder = reminder.then_some(REMINDER);
        let next = [left, reminder].into_iter().flatten().min();
        next.map_or(-1, |next| {
            i32::try_from(next.as_millis() + 1).unwrap_or(i32::MAX)
        })
    }

    fn running(&self) -> Option<&Running> {
        match &self.slot {
            Slot::Live(live) => live.running(),
            _ => None,
        }
    }

    /// Tells the guest again of what it has not looked at, and ends one that is past its deadline.
    fn watch_clock(&self) -> Result<(), RunError> {
        if let Slot::Live(_) = self.slot
            && let Some(terminated) = self.terminated
            && terminated.elapsed() >= self.options.shutdown_timeout
        {
            return Err(RunError::ShutdownTimeout(self.options.shutdown_timeout));
        }
        self.running().map_or(Ok(()), |running| {
            running
                .remind_of_events()
                .map_err(RunError::host("tell the guest of an event"))
        })
    }

    /// Boots the machine of `definition`.
    fn boot(&mut self, mut definition: Definition) -> Result<(), (Definition, RunError)> {
        self.events.publish("vm", "booting", &[]);
        let resources = match self.open(&definition) {
            Ok(resources) => resources,
            Err(error) => return Err((definition, error)),
        };
        // An address that was drawn is the network's from now on.
        for (net, opened) in definition.config.net.iter_mut().zip(&resources.nets) {
            net.mac = Some(opened.mac());
        }
        let live = match self.workshop() {
            Ok(mut workshop) => workshop.boot(definition, resources, VmState::Running)?,
            Err(error) => return Err((definition, error)),
        };
        self.slot = Slot::Live(live);
        self.events.publish("vm", "booted", &[]);
        if self.is_held() {
            tracing::info!("the guest waits for a debugger");
        }
        Ok(())
    }

    /// Opens what `definition` names, and starts what moves bytes from and to the host.
    fn open(&self, definition: &Definition) -> Result<wire::Resources, RunError> {
        let resources = wire::open(&definition.config, &definition.descriptors, &self.events)?;
        let mailbox = self.mailbox.clone();
        resources.start(|| {
            let mailbox = mailbox.clone();
            Box::new(move |action| match action {
                EscapeAction::Quit => mailbox.send(Request::ShutdownVmm),
                EscapeAction::PowerButton => mailbox.send(Request::PowerButton),
                // Shown where it was typed.
                EscapeAction::Help => {}
            })
        })?;
        terminal::install_panic_hook(resources.flush_on_panic());
        Ok(resources)
    }

    fn workshop(&mut self) -> Result<Workshop<'_>, RunError> {
        let host = match self.host.take() {
            Some(host) => host,
            None => Host::open()?,
        };
        Ok(Workshop {
            host: self.host.insert(host),
            notices: &self.notices,
            options: &self.options,
            debugger: &mut self.debugger,
        })
    }

    /// Starts the machine anew, to run or to stand still. Without one, nothing is done.
    fn reboot(&mut self, then: VmState) -> Result<(), RunError> {
        let live = match self.slot.take() {
            Slot::Live(live) => live,
            other => {
                self.slot = other;
                return Ok(());
            }
        };
        self.events.publish("vm", "rebooting", &[]);
        match self.workshop()?.reboot(live, then) {
            Ok(live) => {
                self.slot = Slot::Live(live);
                tracing::info!("the machine starts anew");
                self.events.publish("vm", "rebooted", &[]);
                Ok(())
            }
            Err((definition, error)) => {
                self.slot = Slot::Defined {
                    definition,
                    ended: true,
                };
                self.debugger.machine_ended();
                self.events.publish("vm", "shutdown", &[]);
                Err(error)
            }
        }
    }

    /// Ends the machine, if there is one; its definition stays.
    fn end_machine(&mut self) {
        self.slot = match self.slot.take() {
            Slot::Live(live) => {
                let definition = live.end();
                // What the machine had to tell.
                self.notices.take();
                self.debugger.machine_ended();
                self.events.publish("vm", "shutdown", &[]);
                Slot::Defined {
                    definition,
                    ended: true,
                }
            }
            other => other,
        };
    }

    /// The machine has come to an end by itself.
    fn guest_ended(&mut self, outcome: Outcome) {
        self.end_machine();
        if !self.options.no_shutdown || self.terminated.is_some() {
            self.outcome = Some(outcome);
        }
    }

    /// What the guest's own doing means for the machine.
    fn look_at_guest(&mut self) -> Result<(), RunError> {
        if !matches!(self.slot, Slot::Live(_)) {
            return Ok(());
        }
        let happened = self.notices.take();
        self.vcpus_stopped(&happened.stops);
        // Before all that ends the machine: its definition shall not keep what the guest gave up.
        if happened.ejected {
            self.take_ejected();
        }
        if happened.link {
            self.tell_of_links();
        }
        if happened.disk_stopped {
            self.stop_for_disks();
        }
        if happened.crash_loaded
            && let Slot::Live(live) = &mut self.slot
            && live.note_crash()
        {
            tracing::warn!("the guest's kernel panicked and starts its crash kernel");
            self.events
                .publish("guest", "panic", &[("event", "crash_loaded")]);
        }
        if happened.panicked {
            self.events.publish("guest", "panic", &[("event", "panic")]);
            self.guest_ended(Outcome::Panicked);
            return Ok(());
        }
        if happened.power_off {
            self.guest_ended(Outcome::PoweredOff);
            return Ok(());
        }
        let Slot::Live(live) = &mut self.slot else {
            return Ok(());
        };
        match happened.end {
            Some(End::PowerOff) => {
                self.guest_ended(Outcome::PoweredOff);
                Ok(())
            }
            Some(End::Failed(failure)) => {
                let software = software_kvm();
                Err(self.failed(RunError::Vcpu { failure, software }))
            }
            Some(End::TripleFault(failure)) => {
                match live.count_fault(failure, self.options.no_reboot) {
                    Ok(()) => self.guest_reset(),
                    Err(error) => Err(self.failed(error)),
                }
            }
            Some(End::Reset) => self.guest_reset(),
            None if happened.reset => self.guest_reset(),
            None if happened.watchdog_expired => self.watchdog_expired(),
            None => Ok(()),
        }
    }

    /// The machine cannot go on.
    fn failed(&mut self, error: RunError) -> RunError {
        let reason = error.to_string();
        self.events.publish("vm", "failed", &[("reason", &reason)]);
        self.end_machine();
        error
    }

    fn guest_reset(&mut self) -> Result<(), RunError> {
        if self.options.no_reboot || self.terminated.is_some() {
            self.guest_ended(Outcome::Reset);
            return Ok(());
        }
        // A reset that is found after a pause does not end the pause.
        let then = match &self.slot {
            Slot::Live(live) if live.vm_state() == VmState::Paused => VmState::Paused,
            _ => VmState::Running,
        };
        self.reboot(then)
    }

    /// A signal: the first presses the power button, the second ends the machine.
    fn terminate(&mut self) -> Result<(), RunError> {
        match self.terminated {
            Some(first) if first.elapsed() < SAME_SIGNAL => return Ok(()),
            Some(_) => return Err(RunError::SecondSignal),
            None => self.terminated = Some(Instant::now()),
        }
        if !matches!(self.slot, Slot::Live(_)) {
            self.outcome = Some(Outcome::Stopped);
            return Ok(());
        }
        // A guest that stands still cannot turn itself off. One that runs is not resumed.
        let _ = self.resume();
        self.running().map_or(Ok(()), |running| {
            running
                .press_power_button()
                .map_err(RunError::host("press the power button"))
        })
    }
}
