//! The thread of a vCPU and its inbox.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use api::metrics::VcpuMetrics;
use devices::memory::GuestRam;
use kvm_bindings::kvm_debug_exit_arch;
use vm_memory::GuestAddressSpace;

use super::exits::{self, Next};
use super::failure::{Failure, Reason};
use super::kick::{self, Kickable};
use super::measure::{self, ExitCounters};
use super::{Buses, End, Watch};
use crate::kvm::vcpu::{Registers, Vcpu, VcpuError};

/// What a vCPU's thread is told. The sender kicks it afterwards.
enum Command {
    /// Enter the guest.
    Resume,
    /// Stay out of the guest, with no instruction half done, and answer.
    Pause(Sender<()>),
    /// Stay out of the guest, and wait to be started by another vCPU before entering it again.
    Unplug,
    /// Raise a non-maskable interrupt.
    Nmi,
    /// Do this out of the guest.
    Ask(Box<dyn FnOnce(&mut Vcpu) + Send>),
}

/// A vCPU on a thread of its own. The thread ends, outside of the guest, when this is dropped.
pub struct VcpuThread {
    index: u32,
    exits: Arc<ExitCounters>,
    inbox: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// A vCPU that was asked for something.
pub struct Asked<T> {
    index: u32,
    answer: Receiver<Result<T, VcpuError>>,
}

/// A vCPU that was told to pause.
pub struct Pausing(Receiver<()>);

impl VcpuThread {
    /// Starts the thread of `vcpu`, paused. The first entry into the guest is logged with the time since `started`.
    ///
    /// # Errors
    ///
    /// The host gives no thread or no signal handler.
    pub fn spawn(
        vcpu: Vcpu,
        buses: Buses,
        memory: GuestRam,
        watch: Arc<dyn Watch>,
        started: Instant,
    ) -> io::Result<Self> {
        kick::install()?;
        let (inbox, commands) = mpsc::channel();
        let index = vcpu.index();
        let exits = Arc::<ExitCounters>::default();
        let runner = Runner {
            exits: Arc::clone(&exits),
            vcpu,
            buses,
            memory,
            watch,
            commands,
            started,
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.serve())?;
        Ok(Self {
            index,
            exits,
            inbox: Some(inbox),
            thread: Some(thread),
        })
    }

    /// Lets the vCPU run. One that has ended stays where it is.
    pub fn resume(&self) {
        self.send(Command::Resume);
    }

    /// Tells the vCPU to pause.
    pub fn pause(&self) -> Pausing {
        let (answer, paused) = mpsc::channel();
        self.send(Command::Pause(answer));
        Pausing(paused)
    }

    /// Pauses the vCPU, without waiting until it is out of the guest, and forgets what it was doing: when it runs again,
    /// it first waits for another one to start it.
    pub fn unplug(&self) {
        self.send(Command::Unplug);
    }

    /// Raises a non-maskable interrupt, which a paused vCPU gets when it runs on.
    pub fn inject_nmi(&self) {
        self.send(Command::Nmi);
    }

    /// Asks for what the registers hold. They stay so if the vCPU is paused.
    pub fn registers(&self) -> Asked<Registers> {
        self.ask(|vcpu| vcpu.registers())
    }

    /// Has `question` answered on the vCPU's thread, out of the guest, in the order of all that the vCPU is told.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Vcpu) -> Result<T, VcpuError> + Send + 'static,
    ) -> Asked<T> {
        let (sender, answer) = mpsc::channel();
        self.send(Command::Ask(Box::new(move |vcpu| {
            // Whoever asked may have gone.
            let _ = sender.send(question(vcpu));
        })));
        Asked {
            index: self.index,
            answer,
        }
    }

    /// What is measured of the vCPU.
    pub fn measure(&self) -> VcpuMetrics {
        VcpuMetrics {
            index: self.index,
            cpu_time: self
                .thread
                .as_ref()
                .map(measure::cpu_time)
                .unwrap_or_default(),
            exits: self.exits.by_kind(),
        }
    }

    fn send(&self, command: Command) {
        if let (Some(inbox), Some(thread)) = (&self.inbox, &self.thread) {
            // The thread holds its end until this one is dropped.
            let _ = inbox.send(command);
            kick::kick(thread);
        }
    }
}

impl Pausing {
    /// Waits until the vCPU is out of the guest.
    pub fn wait(self) {
        // The thread answers, unless it panicked, which ends the process.
        let _ = self.0.recv();
    }
}

impl<T> Asked<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    ///
    /// KVM refused, or the vCPU is gone.
    pub fn wait(self) -> Result<T, VcpuError> {
        let index = self.index;
        let gone = |_| Err(VcpuError::Ended { index });
        self.answer.recv().unwrap_or_else(gone)
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        drop(self.inbox.take());
        if let Some(thread) = self.thread.take() {
            kick::kick(&thread);
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Runner {
    vcpu: Vcpu,
    exits: Arc<ExitCounters>,
    buses: Buses,
    memory: GuestRam,
    watch: Arc<dyn Watch>,
    commands: Receiver<Command>,
    started: Instant,
}

/// What the thread does next.
enum State {
    Paused,
    Running,
    Ended,
}

/// Why the guest was left.
enum Left {
    Kicked,
    Stopped(kvm_debug_exit_arch),
    Ended(End),
}

impl Runner {
    fn serve(mut self) {
        let _kickable = Kickable::new(&mut self.vcpu.fd);
        let mut state = State::Paused;
        let mut ran = false;
        loop {
            let command = match state {
                // Looked at before each entry: the kick for a command that came before this thread could be kicked is
                // lost, and every later one makes the entry return.
                State::Running => match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Disconnected) => return,
                    Err(TryRecvError::Empty) => {
                        if !ran {
                            ran = true;
                            self.log_first_entry();
                        }
                        match self.run() {
                            Left::Kicked => {}
                            Left::Stopped(at) => {
                                state = State::Paused;
                                self.watch.stopped(self.vcpu.index(), at);
                            }
                            Left::Ended(end) => {
                                state = State::Ended;
                                self.watch.ended(self.vcpu.index(), end);
                            }
                        }
                        continue;
                    }
                },
                State::Paused | State::Ended => match self.commands.recv() {
                    Ok(command) => command,
                    Err(RecvError) => return,
                },
            };
            match (command, &state) {
                (Command::Resume, State::Paused) => {
                    if ran {
                        // The guest's watchdogs shall not count the pause. A guest without kvm-clock has it refused.
                        let _ = self.vcpu.fd.kvmclock_ctrl();
                    }
                    state = State::Running;
                }
                (Command::Resume, State::Running | State::Ended) => {}
                (Command::Nmi, _) => {
                    if let Err(error) = self.vcpu.fd.nmi() {
                        tracing::error!(vcpu = self.vcpu.index(), %error, "no non-maskable interrupt");
                    }
                }
                (Command::Ask(question), _) => question(&mut self.vcpu),
                (Command::Unplug, before) => {
                    if let State::Running = before {
                        state = State::Paused;
                    }
                    if let Err(error) = self.vcpu.wait_for_start() {
                        tracing::error!(%error, "a vCPU that was unplugged does not forget its state");
                    }
                }
                (Command::Pause(answer), before) => {
                    if let State::Running = before {
                        state = State::Paused;
                    }
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }

    /// Runs the guest until the thread is kicked, or until the vCPU stops or ends.
    fn run(&mut self) -> Left {
        loop {
            match exits::run(&mut self.vcpu.fd, &self.buses, &self.exits) {
                Next::Run => {}
                Next::Interrupted => {
                    // Taken back before the inbox is looked at: a kick after that look sets it again.
                    self.vcpu.fd.set_kvm_immediate_exit(0);
                    return Left::Kicked;
                }
                Next::Reset => return Left::Ended(End::Reset),
                Next::PowerOff => return Left::Ended(End::PowerOff),
                Next::TripleFault => {
                    return Left::Ended(End::TripleFault(self.failure(Reason::TripleFault)));
                }
                Next::Debug(at) => return Left::Stopped(at),
                Next::Fail(reason) => return Left::Ended(End::Failed(self.failure(reason))),
            }
        }
    }

    fn failure(&self, reason: Reason) -> Box<Failure> {
        let ram = self.memory.memory();
        Box::new(Failure::collect(
            self.vcpu.index(),
            &self.vcpu.fd,
            &ram,
            reason,
        ))
    }

    fn log_first_entry(&self) {
        if self.vcpu.index() == 0 {
            let micros = self.started.elapsed().as_micros() as u64;
            tracing::info!(target: "boot_mark", micros, "first KVM_RUN");
        }
    }
}
