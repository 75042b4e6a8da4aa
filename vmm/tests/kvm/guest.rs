//! Machines for tests: a configuration around a piece of code, run as the binary runs it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use api::config::{ConsoleOutputMode, SerialConfig, VmConfig};
use api::event::{Event, Events};
use api::request::{Descriptors, Request};
use devices::memory::GuestRam;
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver as Receiving;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm::kvm::capabilities::Host;
use vmm::vm::notices::Notices;
use vmm::vm::{Definition, Inbox, Mailbox, Options, Outcome, Paused, RunError, build};
use vmm::wire::{self, Resources};

use crate::code::Code;

/// Longer than any of the guests takes; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration, and the files it names.
pub(crate) struct Setup {
    folder: TempDir,
    pub(crate) config: VmConfig,
    pub(crate) options: Options,
}

impl Setup {
    /// One vCPU, 16 MiB, no serial port, no reboot.
    pub(crate) fn new(code: Code) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, code.elf()).unwrap();
        let mut config = VmConfig::default();
        config.payload.kernel = Some(kernel);
        config.memory.size = api::config::ByteSize::mib(16);
        config.serial = SerialConfig::from(ConsoleOutputMode::Off);
        config.assign_ids();
        Self {
            folder,
            config,
            options: Options {
                no_reboot: true,
                wait_for_debugger: false,
                no_shutdown: false,
                shutdown_timeout: PATIENCE,
                started: Instant::now(),
            },
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lets the guest's serial output go to a file.
    pub(crate) fn with_serial(mut self) -> Self {
        self.config.serial = SerialConfig {
            mode: ConsoleOutputMode::File,
            file: Some(self.path("serial")),
            socket: None,
        };
        self
    }

    /// What the guest has sent to its serial port.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.path("serial")).unwrap()
    }

    /// The machine, as a client asks for it.
    pub(crate) fn create(&self) -> Request {
        Request::Create {
            config: Box::new(self.config.clone()),
            descriptors: Descriptors::none(),
        }
    }

    /// Starts the machine on a thread of its own.
    pub(crate) fn start(&self) -> Run {
        self.serve(Some(Definition {
            config: Box::new(self.config.clone()),
            descriptors: Descriptors::none(),
        }))
    }

    /// Starts a VMM on a thread of its own, without a machine unless there is a `first`.
    pub(crate) fn serve(&self, first: Option<Definition>) -> Run {
        let inbox = Inbox::new().unwrap();
        let mailbox = inbox.mailbox();
        let (sender, end) = mpsc::channel();
        let options = self.options;
        let events = Events::new(options.started);
        let happened = events.subscribe();
        thread::spawn(move || {
            let end = vmm::vm::run(first, options, inbox, events);
            if let Err(error) = &end {
                eprintln!("the machine ended: {error}");
            }
            // The test may have given up waiting.
            let _ = sender.send(end);
        });
        Run {
            mailbox,
            happened,
            end,
        }
    }

    /// Runs the machine to its end.
    pub(crate) fn run(&self) -> Result<Outcome, RunError> {
        self.start().wait()
    }
}

/// A machine on its way.
pub(crate) struct Run {
    pub(crate) mailbox: Mailbox,
    happened: Receiving<Arc<Event>>,
    end: Receiver<Result<Outcome, RunError>>,
}

impl Run {
    /// The names of the events since the last call, as in `vm booted`.
    pub(crate) fn events(&mut self) -> Vec<String> {
        let next = || self.happened.try_recv().ok();
        std::iter::from_fn(next)
            .map(|event| format!("{} {}", event.source, event.event))
            .collect()
    }

    /// How the machine ends.
    pub(crate) fn wait(self) -> Result<Outcome, RunError> {
        self.end
            .recv_timeout(PATIENCE)
            .expect("the machine ends in time")
    }
}

/// A machine that was built and did not run, with everything that has to live as long.
pub(crate) struct Built {
    pub(crate) paused: Paused,
    pub(crate) notices: Arc<Notices>,
    pub(crate) resources: Resources,
}

impl Built {
    pub(crate) fn new(setup: &Setup) -> Self {
        let host = Host::open().unwrap();
        let events = Events::new(setup.options.started);
        let resources = wire::open(&setup.config, &Descriptors::none(), &events).unwrap();
        resources.start(|| Box::new(|_| {})).unwrap();
        let notices = Arc::new(Notices::new().unwrap());
        let paused =
            build::build(&host, &setup.config, &resources, &notices, Instant::now()).unwrap();
        Self {
            paused,
            notices,
            resources,
        }
    }
}

/// The 32 bits at `address` of the guest's memory.
pub(crate) fn word(memory: &GuestRam, address: u32) -> u32 {
    memory
        .memory()
        .read_obj(GuestAddress(address.into()))
        .unwrap()
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen in time");
        thread::sleep(Duration::from_millis(2));
    }
}
