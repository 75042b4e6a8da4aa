//! A VMM without a machine: it keeps the states, and what it was given.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::config::{DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig};
use crate::metrics::Metrics;
use crate::request::{
    Answer, Answerer, ApiError, Descriptors, PciDeviceInfo, PingInfo, Reply, Request, Service,
    VmInfo, VmState,
};

type Post = (Request, Answerer);

/// What the fake was given, for tests to look at.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) verbs: Vec<&'static str>,
    pub(super) descriptors: BTreeMap<String, Vec<OwnedFd>>,
    pub(super) disks: Vec<DiskConfig>,
    pub(super) nets: Vec<NetConfig>,
    pub(super) fs: Vec<FsConfig>,
    pub(super) vsocks: Vec<VsockConfig>,
}

/// Posts to the thread that owns the state.
pub(super) struct Fake {
    inbox: Mutex<Option<Sender<Post>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    seen: Arc<Mutex<Seen>>,
}

impl Fake {
    pub(super) fn start(metrics: Metrics) -> Arc<Self> {
        let (inbox, posts) = mpsc::channel::<Post>();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut vmm = Vmm {
            config: None,
            state: VmState::Created,
            metrics,
            seen: Arc::clone(&seen),
        };
        let thread = thread::spawn(move || {
            for (request, answerer) in posts {
                answerer(vmm.serve(request));
            }
        });
        Arc::new(Self {
            inbox: Mutex::new(Some(inbox)),
            thread: Mutex::new(Some(thread)),
            seen,
        })
    }

    pub(super) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.inbox.lock().unwrap().take();
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }
}

impl Service for Fake {
    fn post(&self, request: Request, answerer: Answerer) {
        if let Some(inbox) = &*self.inbox.lock().unwrap() {
            inbox.send((request, answerer)).unwrap();
        }
    }
}

struct Vmm {
    config: Option<VmConfig>,
    state: VmState,
    metrics: Metrics,
    seen: Arc<Mutex<Seen>>,
}

impl Vmm {
    fn serve(&mut self, request: Request) -> Answer {
        use VmState::{Created, Paused, Running, Shutdown};

        let verb = request.verb();
        self.seen.lock().unwrap().verbs.push(verb);
        match request {
            Request::Ping => Ok(Reply::Ping(PingInfo {
                build_version: "v1".to_owned(),
                version: "1".to_owned(),
                pid: 1,
                features: vec![],
            })),
            Request::ShutdownVmm => Ok(Reply::Done),
            Request::Metrics => Ok(Reply::Metrics(Box::new(self.metrics.clone()))),
            Request::Create { .. } if self.config.is_some() => {
                Err(ApiError::AlreadyCreated { verb })
            }
            Request::Create {
                config,
                mut descriptors,
            } => {
                let ids: Vec<_> = config.device_ids().map(|(_, id)| id.to_owned()).collect();
                for id in ids {
                    self.keep(&id, &mut descriptors);
                }
                self.keep("kernel", &mut descriptors);
                self.keep("initramfs", &mut descriptors);
                self.config = Some(*config);
                self.state = Created;
                Ok(Reply::Done)
            }
            Request::Delete => {
                self.config = None;
                Ok(Reply::Done)
            }
            Request::Boot => self.change(verb, &[Created, Shutdown], Running),
            Request::Pause => self.change(verb, &[Running], Paused),
            Request::Resume => self.change(verb, &[Paused], Running),
            Request::Shutdown => self.change(verb, &[Running, Paused], Shutdown),
            Request::Reboot => self.change(verb, &[Running, Paused], Running),
            Request::PowerButton => self.change(verb, &[Running], Running),
            Request::AddDisk {
                config,
                mut descriptors,
            } => {
                let id = config.id.clone().unwrap_or_else(|| "_disk9".to_owned());
                descriptors.assign(&id);
                self.add(verb, &id, &mut descriptors)?;
                self.seen.lock().unwrap().disks.push(*config);
                self.added(id)
            }
            Request::AddNet {
                config,
                mut descriptors,
            } => {
                let id = config.id.clone().unwrap_or_else(|| "_net9".to_owned());
                descriptors.assign(&id);
                self.add(verb, &id, &mut descriptors)?;
                self.seen.lock().unwrap().nets.push(*config);
                self.added(id)
            }
            Request::AddFs(config) => {
                let id = config.id.clone().unwrap_or_else(|| "_fs9".to_owned());
                self.config(verb)?;
                self.seen.lock().unwrap().fs.push(*config);
                self.added(id)
            }
            Request::AddVsock(config) => {
                let id = config.id.clone().unwrap_or_else(|| "_vsock9".to_owned());
                self.config(verb)?;
                self.seen.lock().unwrap().vsocks.push(*config);
                self.added(id)
            }
            Request::SetLink(link) => {
                self.config(verb)?;
                Err(ApiError::UnknownDevice { id: link.id })
            }
            Request::RemoveDevice(device) => {
                self.config(verb)?;
                Err(ApiError::UnknownDevice { id: device.id })
            }
            Request::SetRateLimiter(_) => {
                self.config(verb)?;
                Ok(Reply::Done)
            }
            Request::Info => Ok(Reply::Info(Box::new(VmInfo {
                config: self.config(verb)?.clone(),
                state: self.state,
                memory_actual_size: 0,
                device_tree: None,
            }))),
            Request::Counters => {
                self.booted(verb)?;
                Ok(Reply::Counters(BTreeMap::new()))
            }
            Request::Nmi | Request::Resize(_) | Request::Coredump(_) | Request::ResizeDisk(_) => {
                self.booted(verb)?;
                Ok(Reply::Done)
            }
        }
    }

    fn config(&self, verb: &'static str) -> Result<&VmConfig, ApiError> {
        self.config.as_ref().ok_or(ApiError::NotCreated { verb })
    }

    fn booted(&mut self, verb: &'static str) -> Result<(), ApiError> {
        let state = self.state;
        self.change(verb, &[VmState::Running, VmState::Paused], state)?;
        Ok(())
    }

    fn change(&mut self, verb: &'static str, from: &[VmState], to: VmState) -> Answer {
        self.config(verb)?;
        if !from.contains(&self.state) {
            return Err(ApiError::WrongState {
                verb,
                state: self.state,
                expected: "another state",
            });
        }
        self.state = to;
        Ok(Reply::Done)
    }

    fn add(
        &mut self,
        verb: &'static str,
        id: &str,
        descriptors: &mut Descriptors,
    ) -> Result<(), ApiError> {
        self.config(verb)?;
        self.keep(id, descriptors);
        Ok(())
    }

    fn added(&self, id: String) -> Answer {
        Ok(match self.state {
            VmState::Running | VmState::Paused | VmState::BreakPoint => {
                Reply::Device(PciDeviceInfo {
                    id,
                    bdf: "0000:00:05.0".to_owned(),
                })
            }
            VmState::Created | VmState::Shutdown => Reply::Done,
        })
    }

    fn keep(&self, id: &str, descriptors: &mut Descriptors) {
        let taken = descriptors.take(id);
        if !taken.is_empty() {
            let mut seen = self.seen.lock().unwrap();
            seen.descriptors.insert(id.to_owned(), taken);
        }
    }
}
