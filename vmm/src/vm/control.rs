//! The loop that owns the machine, from its first build to its end.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::config::VmConfig;
use api::request::{ApiError, Reply, Request, VmInfo, VmState};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::build::{self, BuildError};
use super::inbox::Inbox;
use super::notices::Notices;
use super::signals::Signals;
use super::{Paused, Running};
use crate::cmd::check::kvm::software_kvm;
use crate::exit_status::ExitStatus;
use crate::kvm::capabilities::{Host, NotUsable};
use crate::terminal::{self, EscapeAction};
use crate::vcpu::{End, Failure};
use crate::wire::{self, Resources, WireError};

/// A guest that triple-faults this often, each time within [`EARLY`] of its start, is not started again.
const MAX_EARLY_FAULTS: u32 = 3;
const EARLY: Duration = Duration::from_secs(10);

/// A second signal within this time is the first one again: `timeout` sends it to the process and to its group, as a
/// terminal and a service manager can do between them.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// How often a guest that shall turn itself off is told so until it has looked.
const REMINDER: Duration = Duration::from_millis(500);

/// How a machine shall be run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A reset by the guest ends the machine.
    pub no_reboot: bool,
    /// How long a guest has to turn itself off after its power button was pressed by a signal.
    pub shutdown_timeout: Duration,
    /// When the process started; boot marks count from here.
    pub started: Instant,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest turned itself off.
    PoweredOff,
    /// The guest reset itself, and was not to be started again.
    Reset,
    /// Its end was requested by [`Request::Shutdown`].
    Stopped,
    /// The guest's kernel panicked.
    Panicked,
}

/// Why a machine did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// KVM cannot be used.
    #[error("KVM cannot be used")]
    Kvm(#[from] NotUsable),
    /// Something that the configuration names could not be opened.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A vCPU failed.
    #[error("{failure}{}", because(.software))]
    Vcpu {
        /// What is known about it.
        failure: Box<Failure>,
        /// Why this host's KVM is a software one, if it is.
        software: Option<String>,
    },
    /// The guest triple-faults again and again, or must not be started again.
    #[error("the guest crashed the processor and was not started again: {failure}{}", because(.software))]
    TripleFault {
        /// What is known about the vCPU.
        failure: Box<Failure>,
        /// Why this host's KVM is a software one, if it is.
        software: Option<String>,
    },
    /// The guest did not turn itself off in time.
    #[error("the guest did not turn itself off within {} s of the power button, and was ended{}", .0.as_secs_f32(), because(&software_kvm()))]
    ShutdownTimeout(Duration),
    /// A second signal.
    #[error("the guest was ended by a second signal before it had turned itself off{}", because(&software_kvm()))]
    SecondSignal,
    /// The host lacks something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn because(software: &Option<String>) -> String {
    match software {
        Some(reason) => format!("\n{reason}"),
        None => String::new(),
    }
}

impl RunError {
    /// The exit status that tells this error's kind.
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Kvm(_) => ExitStatus::KvmNotUsable,
            Self::Wire(error) if error.is_configuration() => ExitStatus::Configuration,
            Self::Build(error) if error.is_configuration() => ExitStatus::Configuration,
            _ => ExitStatus::Failure,
        }
    }

    fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// Runs the machine of `config` to its end, on the calling thread.
///
/// A reset by the guest builds the machine anew from the resources that were opened at the start.
///
/// # Errors
///
/// [`RunError`]; nothing of the machine is left.
pub fn run(config: VmConfig, options: Options, inbox: Inbox) -> Result<Outcome, RunError> {
    let signals = Signals::new().map_err(RunError::host("take over SIGTERM and SIGINT"))?;
    let host = Host::open()?;
    let resources = wire::open(&config)?;
    let mailbox = inbox.mailbox();
    resources.start(Box::new(move |action| match action {
        EscapeAction::Quit => mailbox.post(Request::Shutdown),
        EscapeAction::PowerButton => mailbox.post(Request::PowerButton),
        // Shown where it was typed.
        EscapeAction::Help => {}
    }))?;
    if let Some(flush) = resources.flush_on_panic() {
        terminal::install_panic_hook(flush);
    }
    Control {
        config,
        options,
        inbox,
        signals,
        host,
        resources,
        terminated: None,
        early_faults: 0,
    }
    .run()
}

/// The machine in either state.
enum Machine {
    Running(Running),
    Paused(Paused),
}

impl Machine {
    fn state(&self) -> VmState {
        match self {
            Self::Running(_) => VmState::Running,
            Self::Paused(_) => VmState::Paused,
        }
    }

    fn pause(self) -> Self {
        match self {
            Self::Running(machine) => Self::Paused(machine.pause()),
            paused @ Self::Paused(_) => paused,
        }
    }

    fn resume(self) -> Self {
        match self {
            Self::Paused(machine) => Self::Running(machine.resume()),
            running @ Self::Running(_) => running,
        }
    }
}

/// What comes after a machine.
enum Next {
    Rebuild,
    End(Outcome),
}

struct Control {
    config: VmConfig,
    options: Options,
    inbox: Inbox,
    signals: Signals,
    host: Host,
    resources: Resources,
    /// When the first signal came.
    terminated: Option<Instant>,
    early_faults: u32,
}

impl Control {
    fn run(mut self) -> Result<Outcome, RunError> {
        loop {
            let notices = Arc::new(Notices::new().map_err(RunError::host("get an eventfd"))?);
            let machine = build::build(
                &self.host,
                &self.config,
                &self.resources,
                &notices,
                self.options.started,
            )?;
            // The machine is gone when this returns, before another one is built of the same resources.
            match self.supervise(Machine::Running(machine.resume()), &notices)? {
                Next::Rebuild => tracing::info!("the machine starts anew"),
                Next::End(outcome) => return Ok(outcome),
            }
        }
    }

    /// Does what is asked of `machine` until it ends.
    fn supervise(&mut self, mut machine: Machine, notices: &Notices) -> Result<Next, RunError> {
        let entered = Instant::now();
        let epoll = self
            .epoll(notices)
            .map_err(RunError::host("wait for events"))?;
        let mut ready = [EpollEvent::default(); 3];
        loop {
            match epoll.wait(self.timeout(), &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(RunError::host("wait for events"))?,
            };
            // Before what the guest does: one that resets without end must not keep them from being heard.
            for _ in 0..self.signals.take() {
                machine = self.terminate(machine)?;
            }
            while let Some(posted) = self.inbox.next() {
                let (answer, next);
                (machine, answer, next) = self.serve(machine, &posted.request);
                posted.answer(answer);
                if let Some(next) = next {
                    return Ok(next);
                }
            }
            if let Some(next) = self.look_at(notices, entered)? {
                return Ok(next);
            }
            self.watch_deadline(&machine)?;
        }
    }

    fn epoll(&self, notices: &Notices) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let sources = [
            notices.eventfd().as_raw_fd(),
            self.inbox.eventfd().as_raw_fd(),
            self.signals.as_raw_fd(),
        ];
        for fd in sources {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(epoll)
    }

    /// Milliseconds to the deadline, rounded up, or to the next reminder; -1 without a deadline.
    fn timeout(&self) -> i32 {
        self.terminated.map_or(-1, |terminated| {
            let left = self
                .options
                .shutdown_timeout
                .saturating_sub(terminated.elapsed());
            let left = left.min(REMINDER).as_millis() + 1;
            i32::try_from(left).unwrap_or(i32::MAX)
        })
    }

    /// Ends a guest that is past its deadline, and reminds one that is not.
    fn watch_deadline(&self, machine: &Machine) -> Result<(), RunError> {
        let Some(terminated) = self.terminated else {
            return Ok(());
        };
        if terminated.elapsed() >= self.options.shutdown_timeout {
            return Err(RunError::ShutdownTimeout(self.options.shutdown_timeout));
        }
        match machine {
            Machine::Running(running) => running
                .remind_of_events()
                .map_err(RunError::host("press the power button")),
            Machine::Paused(_) => Ok(()),
        }
    }

    /// What the guest's own doing means for the machine.
    fn look_at(&mut self, notices: &Notices, entered: Instant) -> Result<Option<Next>, RunError> {
        let happened = notices.take();
        if happened.crash_loaded {
            tracing::warn!("the guest's kernel panicked and starts its crash kernel");
        }
        if happened.panicked {
            return Ok(Some(Next::End(Outcome::Panicked)));
        }
        if happened.power_off {
            return Ok(Some(Next::End(Outcome::PoweredOff)));
        }
        match happened.end {
            Some(End::PowerOff) => return Ok(Some(Next::End(Outcome::PoweredOff))),
            Some(End::Failed(failure)) => {
                return Err(RunError::Vcpu {
                    failure,
                    software: software_kvm(),
                });
            }
            Some(End::TripleFault(failure)) => return self.after_fault(failure, entered).map(Some),
            Some(End::Reset) => return Ok(Some(self.after_reset())),
            None => {}
        }
        Ok(happened.reset.then(|| self.after_reset()))
    }

    fn after_reset(&self) -> Next {
        if self.options.no_reboot || self.terminated.is_some() {
            Next::End(Outcome::Reset)
        } else {
            Next::Rebuild
        }
    }

    /// A triple fault resets the machine, as it resets a PC; a guest that does nothing else is given up.
    fn after_fault(&mut self, failure: Box<Failure>, entered: Instant) -> Result<Next, RunError> {
        if entered.elapsed() < EARLY {
            self.early_faults += 1;
        } else {
            self.early_faults = 0;
        }
        if self.options.no_reboot || self.early_faults >= MAX_EARLY_FAULTS {
            return Err(RunError::TripleFault {
                failure,
                software: software_kvm(),
            });
        }
        tracing::warn!(%failure, "the guest crashed the processor: reset");
        Ok(self.after_reset())
    }

    /// A signal: the first presses the power button, the second ends the machine.
    fn terminate(&mut self, machine: Machine) -> Result<Machine, RunError> {
        match self.terminated {
            Some(first) if first.elapsed() < SAME_SIGNAL => return Ok(machine),
            Some(_) => return Err(RunError::SecondSignal),
            None => self.terminated = Some(Instant::now()),
        }
        // A guest that stands still cannot turn itself off.
        let machine = machine.resume();
        if let Machine::Running(running) = &machine {
            running
                .press_power_button()
                .map_err(RunError::host("press the power button"))?;
        }
        Ok(machine)
    }

    fn serve(
        &self,
        machine: Machine,
        request: &Request,
    ) -> (Machine, Result<Reply, ApiError>, Option<Next>) {
        let done = Ok(Reply::Done);
        match (request, machine) {
            (Request::Pause, machine @ Machine::Running(_)) => (machine.pause(), done, None),
            (Request::Resume, machine @ Machine::Paused(_)) => (machine.resume(), done, None),
            (Request::PowerButton, Machine::Running(running)) => {
                let pressed = running.press_power_button();
                let answer = pressed
                    .map(|()| Reply::Done)
                    .map_err(|error| ApiError::Failed {
                        verb: request.verb().to_owned(),
                        reason: error.to_string(),
                    });
                (Machine::Running(running), answer, None)
            }
            (Request::Shutdown, machine) => (machine, done, Some(Next::End(Outcome::Stopped))),
            (Request::Reboot, machine) => (machine, done, Some(Next::Rebuild)),
            (Request::Info, machine) => {
                let info = VmInfo {
                    config: self.config.clone(),
                    state: machine.state(),
                };
                (machine, Ok(Reply::Info(Box::new(info))), None)
            }
            (_, machine) => {
                let refused = ApiError::WrongState {
                    verb: request.verb().to_owned(),
                    state: machine.state(),
                };
                (machine, Err(refused), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_that_cannot_be_used_has_a_status_of_its_own() {
        let error = RunError::Kvm(NotUsable::Version { found: 11 });
        assert_eq!(error.exit_status() as u8, 4);
    }

    #[test]
    fn reason_of_a_software_kvm_stands_on_a_line_of_its_own() {
        assert_eq!(because(&Some("it is slow".to_owned())), "\nit is slow");
        assert_eq!(because(&None), "");
    }
}
