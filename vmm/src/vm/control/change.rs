//! Requests that change what a machine consists of.

use std::sync::Arc;
use std::time::Instant;

use api::config::{
    BalloonConfig, ByteSize, ConfigError, DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig,
};
use api::request::{
    Answer, ApiError, Descriptors, INITRAMFS, KERNEL, RemoveDeviceConfig, Reply, Request,
    ResizeConfig, ResizeDiskConfig, SetRateLimiterConfig,
};

use devices::acpi::hotplug::HotplugError;
use devices::virtio::block::ResizeError;

use super::live::Live;
use super::serve::BOOTED;
use super::{Control, Slot};
use crate::vm::attached::Kind;
use crate::vm::build::BuildError;
use crate::wire;

impl Control {
    pub(super) fn resize(&mut self, config: ResizeConfig) -> Answer {
        let verb = Request::Resize(config).verb();
        let ResizeConfig {
            desired_vcpus,
            desired_ram,
            desired_balloon,
        } = config;
        let live = self.live(verb, BOOTED)?;
        let (machine, _, config) = live.parts();
        if let Some(size) = desired_balloon {
            if machine.attached.balloon().is_none() {
                return Err(ConfigError::Invalid {
                    field: "desired_balloon".to_owned(),
                    value: size.to_string(),
                    problem: "expected none, as the VM has no balloon".to_owned(),
                }
                .into());
            }
            let memory = desired_ram.unwrap_or(machine.memory.size());
            BalloonConfig::check_size("desired_balloon", size, memory)?;
        }
        if let Some(count) = desired_vcpus {
            let max = machine.vcpus.max();
            if !(1..=max).contains(&count) {
                return Err(ConfigError::Invalid {
                    field: "desired_vcpus".to_owned(),
                    value: count.to_string(),
                    problem: format!("expected 1 to {max}, the VM's cpus.max_vcpus"),
                }
                .into());
            }
            // As many as the guest was asked to have last.
            let awaited = config.cpus.boot_vcpus;
            if machine.vcpus.count() != awaited {
                return Err(ApiError::Pending {
                    verb,
                    what: format!(
                        "the guest has {} vCPUs and was asked to give up some, down to {awaited}",
                        machine.vcpus.count()
                    ),
                });
            }
        }
        self.events.publish("vm", "resizing", &[]);
        let live = self.live(verb, BOOTED)?;
        let (machine, _, config) = live.parts();
        let vm = machine.vm.clone();
        // What can fail comes before what the guest is told of.
        if let Some(count) = desired_vcpus {
            machine
                .vcpus
                .prepare(&vm, count)
                .map_err(|error| ApiError::failed(verb, &error))?;
        }
        if let Some(desired) = desired_ram {
            let added = machine
                .memory
                .resize(&vm, desired)
                .map_err(|error| ApiError::of(verb, error.is_request(), &error))?;
            config
                .memory
                .note_hotplugged(machine.memory.boot_size(), added);
        }
        if let Some(count) = desired_vcpus {
            machine
                .resize_vcpus(count)
                .map_err(|error| ApiError::failed(verb, &error))?;
            config.cpus.boot_vcpus = count;
        }
        if let (Some(size), Some(balloon)) = (desired_balloon, machine.attached.balloon()) {
            balloon
                .resize(size)
                .map_err(|error| ApiError::refused(verb, &error))?;
            if let Some(balloon) = &mut config.balloon {
                balloon.size = ByteSize(size);
            }
        }
        self.events.publish("vm", "resized", &[]);
        Ok(Reply::Done)
    }

    pub(super) fn resize_disk(&mut self, config: &ResizeDiskConfig) -> Answer {
        const VERB: &str = "vm.resize-disk";
        let ResizeDiskConfig { id, desired_size } = config;
        let live = self.live(VERB, BOOTED)?;
        let device = live.machine().attached.get(id);
        let Some(Kind::Disk { resizer, .. }) = device.map(|device| &device.kind) else {
            return Err(ApiError::UnknownDevice { id: id.clone() });
        };
        resizer.resize(*desired_size).map_err(|error| {
            let at_fault = !matches!(error, ResizeError::Host { .. } | ResizeError::Busy { .. });
            ApiError::of(VERB, at_fault, &error)
        })?;
        let size = desired_size.to_string();
        self.events
            .publish("vm", "disk-resized", &[("id", id), ("size", &size)]);
        Ok(Reply::Done)
    }

    pub(super) fn set_rate_limiter(&mut self, config: SetRateLimiterConfig) -> Answer {
        const VERB: &str = "vm.set-rate-limiter";
        config.validate()?;
        let SetRateLimiterConfig {
            id,
            rate_limit_group,
            rate_limiter_config,
        } = config;
        let definition = self.slot.definition_mut();
        let definition = definition.ok_or(ApiError::NotCreated { verb: VERB })?;
        let limits = wire::disk::limits(rate_limiter_config.as_ref());
        match (id, rate_limit_group) {
            (_, Some(name)) => {
                let groups = definition.config.rate_limit_groups.iter_mut().flatten();
                let group = groups.into_iter().find(|group| group.id == name);
                let Some(group) = group else {
                    return Err(ConfigError::Invalid {
                        field: "rate_limit_group".to_owned(),
                        value: format!("{name:?}"),
                        problem: "expected one of the machine's rate_limit_groups".to_owned(),
                    }
                    .into());
                };
                group.rate_limiter_config = rate_limiter_config.unwrap_or_default();
                if let Slot::Live(live) = &mut self.slot {
                    let (machine, resources, _) = live.parts();
                    if let Some(limiter) = resources.groups.get(&name) {
                        limiter.set(limits, Instant::now());
                    }
                    for disk in machine.attached.disk_limits() {
                        disk.look_again();
                    }
                }
            }
            (id, None) => {
                let id = id.unwrap_or_default();
                let mut nets = definition.config.net.iter_mut();
                if let Some(net) = nets.find(|net| net.id.as_deref() == Some(&id)) {
                    net.rate_limiter_config = rate_limiter_config;
                    self.limit_net(&id, limits);
                    return Ok(Reply::Done);
                }
                let mut disks = definition.config.disks.iter_mut();
                let disk = disks.find(|disk| disk.id.as_deref() == Some(&id));
                let Some(disk) = disk else {
                    return Err(not_limited(&definition.config, &id));
                };
                if let Some(group) = &disk.rate_limit_group {
                    return Err(ConfigError::Invalid {
                        field: "id".to_owned(),
                        value: format!("{id:?}"),
                        problem: format!(
                            "expected a disk with limits of its own: those of this one are its group's \
                             (rate_limit_group {group:?})"
                        ),
                    }
                    .into());
                }
                disk.rate_limiter_config = rate_limiter_config;
                if let Slot::Live(live) = &self.slot
                    && let Some(device) = live.machine().attached.get(&id)
                    && let Kind::Disk { limits: disk, .. } = &device.kind
                {
                    disk.set(limits);
                }
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn add_disk(&mut self, config: DiskConfig, descriptors: Descriptors) -> Answer {
        const VERB: &str = "vm.add-disk";
        let platform = self.notices.clone();
        self.add(
            VERB,
            descriptors,
            |vm| vm.disks.push(config),
            |vm| vm.disks.last().and_then(|disk| disk.id.clone()),
            |live, vm, id, descriptors| {
                let disk = vm.disks.last().ok_or_else(|| unknown(id))?;
                let (machine, resources, _) = live.parts();
                let opened = wire::disk::open(disk, descriptors.get(id), &resources.groups)
                    .map_err(|error| ApiError::refused(VERB, &error))?;
                let device = opened.device(platform);
                let kind = Kind::disk(&device);
                let info = machine
                    .plug(id, device, kind)
                    .map_err(|error| not_plugged(VERB, &error))?;
                resources.disks.push(opened);
                Ok(Reply::Device(info))
            },
        )
    }

    pub(super) fn add_net(&mut self, config: NetConfig, descriptors: Descriptors) -> Answer {
        const VERB: &str = "vm.add-net";
        let notices = Arc::clone(&self.notices);
        self.add(
            VERB,
            descriptors,
            |vm| vm.net.push(config),
            |vm| vm.net.last().and_then(|net| net.id.clone()),
            |live, vm, id, descriptors| {
                let net = vm.net.last_mut().ok_or_else(|| unknown(id))?;
                let failed = |error: wire::net::NetError| {
                    ApiError::of(VERB, error.is_configuration(), &error)
                };
                let mut opened = wire::net::open(net, descriptors.get(id)).map_err(failed)?;
                // An address that was drawn is the network's from now on.
                net.mac = Some(opened.mac());
                let (machine, resources, _) = live.parts();
                let device = opened.device(notices).map_err(failed)?;
                let kind = Kind::net(&device);
                let info = machine
                    .plug(id, device, kind)
                    .map_err(|error| not_plugged(VERB, &error))?;
                opened.settle();
                resources.nets.push(opened);
                Ok(Reply::Device(info))
            },
        )
    }

    pub(super) fn add_fs(&mut self, config: FsConfig) -> Answer {
        const VERB: &str = "vm.add-fs";
        let definition = self.slot.definition();
        let definition = definition.ok_or(ApiError::NotCreated { verb: VERB })?;
        definition.config.memory.check_shared("a file system")?;
        let events = self.events.clone();
        self.add(
            VERB,
            Descriptors::default(),
            |vm| vm.fs.push(config),
            |vm| vm.fs.last().and_then(|fs| fs.id.clone()),
            |live, vm, id, _| {
                let fs = vm.fs.last().ok_or_else(|| unknown(id))?;
                let failed =
                    |error: wire::fs::FsError| ApiError::of(VERB, error.is_configuration(), &error);
                let opened = wire::fs::open(fs, &events).map_err(failed)?;
                let (machine, resources, _) = live.parts();
                let device = opened.device().map_err(failed)?;
                let kind = Kind::fs(&device);
                let info = machine
                    .plug(id, device, kind)
                    .map_err(|error| ApiError::failed(VERB, &error))?;
                resources.fs.push(opened);
                Ok(Reply::Device(info))
            },
        )
    }

    pub(super) fn add_vsock(&mut self, config: VsockConfig) -> Answer {
        const VERB: &str = "vm.add-vsock";
        let definition = self.slot.definition();
        let definition = definition.ok_or(ApiError::NotCreated { verb: VERB })?;
        // A guest has one address.
        if let Some(there) = &definition.config.vsock {
            let id = there.id.as_deref().unwrap_or_default();
            return Err(ApiError::Refused {
                verb: VERB,
                causes: vec![format!(
                    "the VM has a vsock already, {id:?}: remove that first (vm.remove-device)"
                )],
            });
        }
        self.add(
            VERB,
            Descriptors::default(),
            |vm| vm.vsock = Some(config),
            |vm| vm.vsock.as_ref().and_then(|vsock| vsock.id.clone()),
            |live, vm, id, _| {
                let vsock = vm.vsock.as_ref().ok_or_else(|| unknown(id))?;
                let failed = |error: wire::vsock::VsockError| {
                    ApiError::of(VERB, error.is_configuration(), &error)
                };
                let opened = wire::vsock::open(vsock).map_err(failed)?;
                let (machine, resources, _) = live.parts();
                let device = opened.device().map_err(failed)?;
                let kind = Kind::vsock(&device);
                let info = machine
                    .plug(id, device, kind)
                    .map_err(|error| not_plugged(VERB, &error))?;
                resources.vsock = Some(opened);
                Ok(Reply::Device(info))
            },
        )
    }

    /// Adds a device to the definition, and by `plug` to the machine if there is one. The device's part of the
    /// configuration is added by `push`, and `id` tells the name that it got.
    fn add(
        &mut self,
        verb: &'static str,
        mut descriptors: Descriptors,
        push: impl FnOnce(&mut VmConfig),
        id: impl Fn(&VmConfig) -> Option<String>,
        plug: impl FnOnce(&mut Live, &mut VmConfig, &str, &Descriptors) -> Answer,
    ) -> Answer {
        let definition = self.slot.definition();
        let definition = definition.ok_or(ApiError::NotCreated { verb })?;
        // The configuration as it will be; nothing is changed until all has succeeded.
        let mut config = (*definition.config).clone();
        let devices: Vec<String> = config.ids().map(str::to_owned).collect();
        push(&mut config);
        let given = id(&config);
        if let Some(given) = given.filter(|given| devices.contains(given)) {
            return Err(ApiError::Taken {
                field: "id",
                value: given,
            });
        }
        config.assign_ids();
        let id = id(&config).unwrap_or_default();
        descriptors.assign(&id);
        let passed = definition.descriptors.count(&id) + descriptors.count(&id);
        if matches!(id.as_str(), KERNEL | INITRAMFS) && passed > 0 {
            return Err(ConfigError::Invalid {
                field: "id".to_owned(),
                value: format!("{id:?}"),
                problem: format!(
                    "expected another name: a descriptor of that name is the VM's {id}"
                ),
            }
            .into());
        }
        let answer = match &mut self.slot {
            Slot::Live(live) => {
                check_hotplug(verb, live)?;
                plug(live, &mut config, &id, &descriptors)?
            }
            _ => Reply::Done,
        };
        let definition = self.slot.definition_mut();
        let definition = definition.ok_or(ApiError::NotCreated { verb })?;
        *definition.config = config;
        definition
            .descriptors
            .insert(id.clone(), descriptors.take(&id));
        self.events.publish("vm", "device-added", &[("id", &id)]);
        Ok(answer)
    }

    pub(super) fn remove_device(&mut self, config: &RemoveDeviceConfig) -> Answer {
        const VERB: &str = "vm.remove-device";
        let id = &config.id;
        match &mut self.slot {
            Slot::Empty => Err(ApiError::NotCreated { verb: VERB }),
            Slot::Defined { definition, .. } => {
                check_removable(&definition.config, id)?;
                definition.config.remove_device(id);
                definition.descriptors.take(id);
                self.events.publish("vm", "device-removed", &[("id", id)]);
                Ok(Reply::Done)
            }
            Slot::Live(live) => {
                check_removable(&live.definition.config, id)?;
                check_hotplug(VERB, live)?;
                let (machine, ..) = live.parts();
                let device = machine.attached.get(id).ok_or_else(|| unknown(id))?;
                match machine.request_removal(device.place) {
                    Ok(()) => Ok(Reply::Done),
                    // The guest gave it up just now.
                    Err(BuildError::Hotplug(HotplugError::Empty { .. })) => Err(unknown(id)),
                    Err(error) => Err(ApiError::failed(VERB, &error)),
                }
            }
        }
    }

    /// Frees what the guest has given up.
    pub(super) fn take_ejected(&mut self) {
        let Slot::Live(live) = &mut self.slot else {
            return;
        };
        let (machine, resources, config) = live.parts();
        let gone = machine.take_ejected();
        if gone.vcpus > 0 {
            // A guest may give up more than it was asked to.
            config.cpus.boot_vcpus = config.cpus.boot_vcpus.min(machine.vcpus.count());
        }
        if gone.memory > 0 {
            let (boot, size) = (machine.memory.boot_size(), machine.memory.size());
            config.memory.note_hotplugged(boot, size - boot);
        }
        for id in &gone.devices {
            resources.remove(id);
            config.remove_device(id);
        }
        for id in &gone.devices {
            live.definition.descriptors.take(id);
            self.events.publish("vm", "device-removed", &[("id", id)]);
        }
        if gone.vcpus > 0 || gone.memory > 0 {
            self.events.publish("vm", "resized", &[]);
        }
    }
}

/// The answer to `verb`, whose device did not get onto the bus.
fn not_plugged(verb: &'static str, error: &BuildError) -> ApiError {
    ApiError::of(verb, error.is_configuration(), error)
}

/// Why the limits of `id` cannot be set, which is no disk.
fn not_limited(config: &VmConfig, id: &str) -> ApiError {
    if !config.ids().any(|device| device == id) {
        return unknown(id);
    }
    ConfigError::Invalid {
        field: "id".to_owned(),
        value: format!("{id:?}"),
        problem: "expected a disk or a network: the limits of this device cannot be changed"
            .to_owned(),
    }
    .into()
}

pub(super) fn unknown(id: &str) -> ApiError {
    ApiError::UnknownDevice { id: id.to_owned() }
}

/// Whether devices can come to the machine and go.
fn check_hotplug(verb: &'static str, live: &Live) -> Result<(), ApiError> {
    if live.machine().transport.can_hotplug() {
        return Ok(());
    }
    Err(ApiError::refused(verb, &BuildError::NoPci))
}

/// Whether `id` is a device that can go.
fn check_removable(config: &VmConfig, id: &str) -> Result<(), ApiError> {
    if !config.ids().any(|device| device == id) {
        return Err(unknown(id));
    }
    if config.boots_from(id) {
        return Err(ConfigError::Invalid {
            field: "id".to_owned(),
            value: format!("{id:?}"),
            problem: "expected another device: the VM boots from this disk (payload.boot_disk)"
                .to_owned(),
        }
        .into());
    }
    if config.can_remove(id) {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        field: "id".to_owned(),
        value: format!("{id:?}"),
        problem: "expected a disk, a network, a file system or a vsock: this device stays as long as the VM"
            .to_owned(),
    }
    .into())
}
