//! Every path of the API, and how its request is read.

use axum::http::Method;

use super::answer::Refusal;
use super::descriptors::{DeviceFds, Map, Passed};
use super::intake::Arrived;
use crate::config::json::{self, WithFds};
use crate::config::{ConfigError, DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig};
use crate::request::{Request, SetRateLimiterConfig};

/// What came with a request.
pub(super) struct Input<'a> {
    pub(super) body: &'a [u8],
    pub(super) arrived: Arrived,
}

/// A path of the API.
pub(super) struct Verb {
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) read: fn(Input<'_>) -> Result<Request, Refusal>,
}

const fn get(name: &'static str, read: fn(Input<'_>) -> Result<Request, Refusal>) -> Verb {
    Verb {
        name,
        method: Method::GET,
        read,
    }
}

const fn put(name: &'static str, read: fn(Input<'_>) -> Result<Request, Refusal>) -> Verb {
    Verb {
        name,
        method: Method::PUT,
        read,
    }
}

pub(super) const VERBS: &[Verb] = &[
    get("vmm.ping", |input| input.nothing(Request::Ping)),
    put("vmm.shutdown", |input| input.nothing(Request::ShutdownVmm)),
    get("vm.info", |input| input.nothing(Request::Info)),
    get("vm.counters", |input| input.nothing(Request::Counters)),
    put("vm.create", create),
    put("vm.delete", |input| input.nothing(Request::Delete)),
    put("vm.boot", |input| input.nothing(Request::Boot)),
    put("vm.pause", |input| input.nothing(Request::Pause)),
    put("vm.resume", |input| input.nothing(Request::Resume)),
    put("vm.shutdown", |input| input.nothing(Request::Shutdown)),
    put("vm.reboot", |input| input.nothing(Request::Reboot)),
    put("vm.power-button", |input| {
        input.nothing(Request::PowerButton)
    }),
    put("vm.nmi", |input| input.nothing(Request::Nmi)),
    put("vm.coredump", |input| {
        Ok(Request::Coredump(json::read(input.body)?))
    }),
    put("vm.resize", |input| {
        Ok(Request::Resize(json::read(input.body)?))
    }),
    put("vm.resize-disk", |input| {
        Ok(Request::ResizeDisk(json::read(input.body)?))
    }),
    put("vm.set-link", |input| {
        Ok(Request::SetLink(json::read(input.body)?))
    }),
    put("vm.set-rate-limiter", |input| {
        let config: SetRateLimiterConfig = json::read(input.body)?;
        config.validate()?;
        Ok(Request::SetRateLimiter(config))
    }),
    put("vm.add-disk", add_disk),
    put("vm.add-fs", |input| {
        let config: FsConfig = json::read(input.body)?;
        config.validate()?;
        Ok(Request::AddFs(Box::new(config)))
    }),
    put("vm.add-net", add_net),
    put("vm.add-vsock", |input| {
        let config: VsockConfig = json::read(input.body)?;
        config.validate()?;
        Ok(Request::AddVsock(Box::new(config)))
    }),
    put("vm.remove-device", |input| {
        Ok(Request::RemoveDevice(json::read(input.body)?))
    }),
];

/// Paths of Cloud Hypervisor's API that are no part of this VMM, all of them for PUT, and why.
pub(super) const UNSUPPORTED: &[(&str, &str)] = &[
    ("vm.add-device", "there are no VFIO devices"),
    (
        "vm.add-generic-vhost-user",
        "there are no vhost-user devices but for virtio-fs",
    ),
    ("vm.add-pmem", "there is no virtio-pmem device"),
    ("vm.add-user-device", "there are no vfio-user devices"),
    ("vm.add-vdpa", "there are no vDPA devices"),
    ("vm.receive-migration", "a VM cannot be migrated"),
    ("vm.resize-zone", "memory has no zones"),
    ("vm.restore", "a VM cannot be restored"),
    ("vm.send-migration", "a VM cannot be migrated"),
    ("vm.snapshot", "a VM cannot be saved"),
];

impl Input<'_> {
    /// `request`, which has no body: an object without fields is the same as nothing.
    fn nothing(self, request: Request) -> Result<Request, Refusal> {
        let body = self.body.trim_ascii();
        if body.is_empty() {
            return Ok(request);
        }
        let value: serde_json::Value = json::read(body)?;
        match value {
            serde_json::Value::Null => Ok(request),
            serde_json::Value::Object(fields) if fields.is_empty() => Ok(request),
            _ => Err(ConfigError::Json {
                field: "the document".to_owned(),
                problem: format!("expected no body, as {} takes none", request.verb()),
            }
            .into()),
        }
    }
}

fn create(input: Input<'_>) -> Result<Request, Refusal> {
    let WithFds { value, fds } = json::read::<WithFds<VmConfig, Map>>(input.body)?;
    let mut config = value;
    // Names that are given twice would be a matter of chance in `fds`.
    config.assign_ids();
    let passed = Passed::new(input.arrived)?;
    let descriptors = passed.for_machine(&config, &fds.unwrap_or_default())?;
    config.validate_with(&|id| descriptors.count(id))?;
    Ok(Request::Create {
        config: Box::new(config),
        descriptors,
    })
}

fn add_disk(input: Input<'_>) -> Result<Request, Refusal> {
    let WithFds { value, fds } = json::read::<WithFds<DiskConfig, DeviceFds>>(input.body)?;
    let passed = Passed::new(input.arrived)?;
    let descriptors = passed.for_disk(value.id.as_deref(), fds)?;
    value.validate_with(&|id| descriptors.count(id))?;
    Ok(Request::AddDisk {
        config: Box::new(value),
        descriptors,
    })
}

fn add_net(input: Input<'_>) -> Result<Request, Refusal> {
    let WithFds { value, fds } = json::read::<WithFds<NetConfig, DeviceFds>>(input.body)?;
    let passed = Passed::new(input.arrived)?;
    let descriptors = passed.for_net(value.id.as_deref(), fds)?;
    value.validate_with(&|id| descriptors.count(id))?;
    Ok(Request::AddNet {
        config: Box::new(value),
        descriptors,
    })
}
