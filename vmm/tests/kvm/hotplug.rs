//! Devices, vCPUs and memory that come while a guest runs, and go because it gives them up: here, a guest that gives up
//! everything at once and for ever.

use std::fs;

use api::config::{ByteSize, DiskConfig, RateLimiterConfig, TokenBucket, VsockConfig};
use api::request::{
    ApiError, Descriptors, PciDeviceInfo, RemoveDeviceConfig, Reply, Request, ResizeConfig,
    Service, SetRateLimiterConfig, VmInfo,
};
use arch::x86_64::layout;
use devices::acpi::hotplug::units::{SELECT, STATUS, Status};
use devices::acpi::hotplug::{HotplugError, pci};
use vmm::vm::ram::ResizeMemoryError;

use crate::code::{BASE, Code};
use crate::guest::{Run, Setup, eventually};

fn register(page: layout::AddressRange, offset: u64) -> u32 {
    u32::try_from(page.start + offset).unwrap()
}

/// Ejects, for ever, what is in the PCI slots from 2 on: the entropy device is in slot 1.
fn ejects_devices() -> Code {
    let eject = register(layout::ACPI_PCI_HOTPLUG, pci::EJECT);
    Code::new().store32(eject, !0b11).jump(BASE)
}

/// Ejects, for ever, unit `index` behind the registers in `page`.
fn ejects(page: layout::AddressRange, index: u32) -> Code {
    Code::new()
        .store32(register(page, SELECT), index)
        .store32(register(page, STATUS), Status::EJECT.bits())
        .jump(BASE)
}

fn info(run: &Run) -> Box<VmInfo> {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info,
        other => panic!("vm.info answers {other:?}"),
    }
}

fn end(run: Run) {
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

fn add_disk(run: &Run, setup: &Setup, id: Option<&str>) -> Result<PciDeviceInfo, ApiError> {
    let config = DiskConfig {
        path: Some(setup.path("disk")),
        // Several devices may share it so.
        readonly: true,
        id: id.map(str::to_owned),
        ..DiskConfig::default()
    };
    let request = Request::AddDisk {
        config: Box::new(config),
        descriptors: Descriptors::none(),
    };
    match run.mailbox.call(request)? {
        Reply::Device(info) => Ok(info),
        other => panic!("vm.add-disk answers {other:?}"),
    }
}

/// How many threads and descriptors this process has.
fn counts() -> [usize; 2] {
    ["task", "fd"].map(|what| fs::read_dir(format!("/proc/self/{what}")).unwrap().count())
}

/// Waits until there is no more of either than there was `before`. A thread that helped to build the machine, or one of
/// KVM's own, may have been on its way out then.
fn nothing_is_left(before: [usize; 2]) {
    eventually("the end of threads and descriptors", || {
        let now = counts();
        now[0] <= before[0] && now[1] == before[1]
    });
}

#[test]
fn device_that_the_guest_gives_up_is_gone_with_all_that_it_had() {
    let setup = Setup::new(ejects_devices());
    fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let run = setup.start();
    let mut before = None;
    for _ in 0..200 {
        let info_of_disk = add_disk(&run, &setup, Some("plugged")).unwrap();
        assert_eq!(info_of_disk.bdf, "0000:00:02.0");
        eventually("the eject", || info(&run).config.disks.is_empty());
        assert!(!info(&run).device_tree.unwrap().contains_key("plugged"));
        // The first round may have made what stays.
        nothing_is_left(*before.get_or_insert_with(counts));
    }
    end(run);
}

#[test]
fn sockets_that_are_added_are_there_until_the_guest_gives_them_up() {
    let setup = Setup::new(ejects_devices());
    let run = setup.start();
    let add = |socket: &str| {
        let config = VsockConfig {
            cid: 3,
            socket: setup.path(socket),
            id: Some("plugged".to_owned()),
            ..VsockConfig::default()
        };
        run.mailbox.call(Request::AddVsock(Box::new(config)))
    };
    for _ in 0..20 {
        let added = add("vsock");
        assert!(matches!(added, Ok(Reply::Device(_))), "{added:?}");
        eventually("the eject", || info(&run).config.vsock.is_none());
        assert!(!setup.path("vsock").exists());
    }
    fs::write(setup.path("file"), "not a socket").unwrap();
    assert_eq!(add("file").unwrap_err().status(), 400);
    assert_eq!(info(&run).config.vsock, None);
    end(run);

    let setup = Setup::new(Code::new().stop());
    let run = setup.start();
    let add = |socket: &str| {
        let config = VsockConfig {
            cid: 3,
            socket: setup.path(socket),
            ..VsockConfig::default()
        };
        run.mailbox.call(Request::AddVsock(Box::new(config)))
    };
    add("vsock").unwrap();
    assert!(setup.path("vsock").exists());
    let second = add("second").unwrap_err();
    assert_eq!(second.status(), 400, "{second:?}");
    assert!(!setup.path("second").exists());
    end(run);
    assert!(!setup.path("vsock").exists());
}

#[test]
fn device_that_the_guest_gave_up_is_unknown_at_once() {
    let setup = Setup::new(ejects_devices());
    fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let run = setup.start();
    let remove = RemoveDeviceConfig {
        id: "plugged".to_owned(),
    };
    for _ in 0..200 {
        add_disk(&run, &setup, Some("plugged")).unwrap();
        let mut answer = Ok(Reply::Done);
        while answer.is_ok() {
            answer = run.mailbox.call(Request::RemoveDevice(remove.clone()));
        }
        let error = answer.unwrap_err();
        assert_eq!(error.status(), 404, "{error:?}");
    }
    end(run);
}

#[test]
fn device_stays_as_long_as_the_guest_keeps_it() {
    let setup = Setup::new(Code::new().stop());
    fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let run = setup.start();
    let first = add_disk(&run, &setup, None).unwrap();
    let second = add_disk(&run, &setup, None).unwrap();
    assert_ne!((&first.id, &first.bdf), (&second.id, &second.bdf));
    let taken = add_disk(&run, &setup, Some(&first.id)).unwrap_err();
    assert_eq!(taken.status(), 409, "{taken:?}");
    let remove = |id: &str| {
        let id = id.to_owned();
        run.mailbox
            .call(Request::RemoveDevice(RemoveDeviceConfig { id }))
    };
    assert_eq!(remove(&first.id), Ok(Reply::Done));
    assert_eq!(remove("nobody").unwrap_err().status(), 404);
    let rng = info(&run).config.rng.id.unwrap();
    assert_eq!(remove(&rng).unwrap_err().status(), 400);
    assert_eq!(info(&run).config.disks.len(), 2);
    end(run);
}

#[test]
fn device_that_cannot_be_opened_leaves_nothing_behind() {
    let setup = Setup::new(Code::new().stop());
    let run = setup.start();
    let before = info(&run);
    let counts_before = counts();
    for _ in 0..50 {
        let error = add_disk(&run, &setup, Some("plugged")).unwrap_err();
        assert_eq!(error.status(), 400, "{error:?}");
        let text = error.messages().concat();
        assert!(text.contains("cannot open"), "{text}");
    }
    // Fewer than one for each: threads of KVM's own come and go while a machine starts.
    for (now, before) in counts().into_iter().zip(counts_before) {
        assert!(now < before + 25, "{before} became {now}");
    }
    assert_eq!(info(&run), before);
    end(run);
}

#[test]
fn bus_that_is_full_refuses_another_device_and_keeps_the_others() {
    let setup = Setup::new(Code::new().stop());
    fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let run = setup.start();
    // 32 slots, less the host bridge and the entropy device.
    for _ in 0..30 {
        add_disk(&run, &setup, None).unwrap();
    }
    let before = counts();
    let error = add_disk(&run, &setup, None).unwrap_err();
    assert_eq!(error.status(), 400);
    assert!(
        error.messages().concat().contains("no free PCI slot"),
        "{error:?}"
    );
    nothing_is_left(before);
    assert_eq!(info(&run).config.disks.len(), 30);
    end(run);
}

#[test]
fn limits_are_set_for_disks_and_groups_and_for_nothing_else() {
    let setup = Setup::new(Code::new().stop());
    fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let run = setup.start();
    add_disk(&run, &setup, Some("plugged")).unwrap();
    let limits = RateLimiterConfig {
        ops: Some(TokenBucket {
            size: 5,
            one_time_burst: None,
            refill_time: 1000,
        }),
        bandwidth: None,
    };
    let set = |id: Option<&str>, group: Option<&str>, limits: Option<&RateLimiterConfig>| {
        run.mailbox
            .call(Request::SetRateLimiter(SetRateLimiterConfig {
                id: id.map(str::to_owned),
                rate_limit_group: group.map(str::to_owned),
                rate_limiter_config: limits.cloned(),
            }))
            .map_err(|error| (error.status(), error.to_string()))
    };
    let told = || info(&run).config.disks[0].rate_limiter_config.clone();
    assert_eq!(set(Some("plugged"), None, Some(&limits)), Ok(Reply::Done));
    assert_eq!(told().as_ref(), Some(&limits));
    assert_eq!(set(Some("plugged"), None, None), Ok(Reply::Done));
    assert_eq!(told(), None);
    let rng = info(&run).config.rng.id.unwrap();
    for (id, group, status, part) in [
        (Some("nobody"), None, 404, "no device has the id"),
        (Some(rng.as_str()), None, 400, "expected a disk"),
        (None, Some("none"), 400, "rate_limit_groups"),
        (None, None, 400, "id is missing"),
        (Some("plugged"), Some("none"), 400, "not both"),
    ] {
        let (code, message) = set(id, group, Some(&limits)).unwrap_err();
        assert_eq!(code, status, "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(told(), None);
    end(run);
}

#[test]
fn vcpus_come_and_go_as_the_guest_gives_them_up() {
    let mut setup = Setup::new(ejects(layout::ACPI_CPU_HOTPLUG, 1));
    setup.config.cpus.max_vcpus = 4;
    let run = setup.start();
    let resize = |count| {
        run.mailbox.call(Request::Resize(ResizeConfig {
            desired_vcpus: Some(count),
            ..ResizeConfig::default()
        }))
    };
    for _ in 0..20 {
        assert_eq!(resize(2), Ok(Reply::Done));
        eventually("the eject", || info(&run).config.cpus.boot_vcpus == 1);
    }
    for count in [0, 5] {
        assert_eq!(resize(count).unwrap_err().status(), 400);
    }
    end(run);
}

/// Port accesses of a vCPU.
fn port_accesses(run: &Run, vcpu: usize) -> u64 {
    match run.mailbox.call(Request::Metrics) {
        Ok(Reply::Metrics(metrics)) => metrics.vcpus[vcpu].exits["io"],
        other => panic!("metrics: {other:?}"),
    }
}

#[test]
fn vcpu_that_comes_back_waits_to_be_started() {
    const START: u32 = 0x5_0000;
    const RUNS: u32 = 0x4000;
    const INTERRUPT_COMMAND: u32 = layout::LAPIC_START as u32 + 0x300;
    // To all others.
    const INIT: u32 = 0xc_4500;
    const STARTUP: u32 = 0xc_4600;
    // In real mode, at START: mov byte [RUNS], 1; out 0x80, al; jmp to the one before.
    let code = [0x4000_06c6, 0xeb80_e601, 0x0000_00fc];
    let code = (START..)
        .step_by(4)
        .zip(code)
        .fold(Code::new(), |all, (at, word)| all.store32(at, word))
        .store32(INTERRUPT_COMMAND, INIT)
        .store32(INTERRUPT_COMMAND, STARTUP | START >> 12);
    let wait = code.here();
    let code = code
        .load_eax(RUNS)
        .test_eax(1)
        .jump_if_zero(wait)
        .store32(register(layout::ACPI_CPU_HOTPLUG, SELECT), 1)
        .store32(
            register(layout::ACPI_CPU_HOTPLUG, STATUS),
            Status::EJECT.bits(),
        );
    let count = code.here();
    let mut setup = Setup::new(code.input(0x80).jump(count));
    setup.config.cpus.boot_vcpus = 2;
    setup.config.cpus.max_vcpus = 2;
    let run = setup.start();
    eventually("the eject", || info(&run).config.cpus.boot_vcpus == 1);
    // No vCPU is in the guest any more when the pause is answered.
    run.mailbox.call(Request::Pause).unwrap();
    run.mailbox.call(Request::Resume).unwrap();
    let before = port_accesses(&run, 1);
    run.mailbox
        .call(Request::Resize(ResizeConfig {
            desired_vcpus: Some(2),
            ..ResizeConfig::default()
        }))
        .unwrap();
    let now = port_accesses(&run, 0);
    eventually("some work of the other vCPU", || {
        port_accesses(&run, 0) > now + 5000
    });
    assert_eq!(port_accesses(&run, 1), before);
    end(run);
}

#[test]
fn vcpus_that_the_guest_was_asked_to_give_up_are_awaited() {
    let mut setup = Setup::new(Code::new().stop());
    setup.config.cpus.boot_vcpus = 2;
    setup.config.cpus.max_vcpus = 2;
    let run = setup.start();
    let resize = |count| {
        run.mailbox.call(Request::Resize(ResizeConfig {
            desired_vcpus: Some(count),
            ..ResizeConfig::default()
        }))
    };
    assert_eq!(resize(1), Ok(Reply::Done));
    let pending = resize(2).unwrap_err();
    assert_eq!(pending.status(), 429, "{pending:?}");
    end(run);
}

fn resize_memory(run: &Run, mib: u64) -> Result<Reply, ApiError> {
    run.mailbox.call(Request::Resize(ResizeConfig {
        desired_ram: Some(mib << 20),
        ..ResizeConfig::default()
    }))
}

#[test]
fn memory_comes_in_blocks_and_goes_as_the_guest_gives_it_up() {
    let mut setup = Setup::new(ejects(layout::ACPI_MEMORY_HOTPLUG, 0));
    setup.config.memory.hotplug_size = Some(ByteSize::mib(512));
    let run = setup.start();
    // More rounds than there are slots, here or in KVM's table if one were lost in each.
    for _ in 0..40 {
        resize_memory(&run, 16 + 128).unwrap();
        eventually("the eject", || info(&run).memory_actual_size == 16 << 20);
    }
    for mib in [15, 17, 16 + 513, 16 + 640] {
        let error = resize_memory(&run, mib).unwrap_err();
        assert_eq!(error.status(), 400, "{error:?}");
    }
    end(run);
}

#[test]
fn memory_keeps_its_size_if_vcpus_cannot_be_had() {
    let mut setup = Setup::new(Code::new().stop());
    setup.config.memory.hotplug_size = Some(ByteSize::mib(512));
    setup.config.cpus.max_vcpus = 2;
    let run = setup.start();
    let before = info(&run);
    // The descriptor of a vCPU is one too many.
    let limit = |soft| {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both calls get one rlimit, which is theirs for the time of the call.
        #[expect(unsafe_code)]
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
            let before = std::mem::replace(&mut limit.rlim_cur, soft);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
            before
        }
    };
    let soft = limit(3);
    let resized = run.mailbox.call(Request::Resize(ResizeConfig {
        desired_vcpus: Some(2),
        desired_ram: Some((16 + 128) << 20),
        ..ResizeConfig::default()
    }));
    limit(soft);
    assert_eq!(resized.unwrap_err().status(), 500);
    assert_eq!(info(&run), before);
    end(run);
}

#[test]
fn memory_that_was_added_is_there_after_a_reboot_and_goes_in_its_pieces() {
    let mut setup = Setup::new(Code::new().stop());
    setup.config.memory.hotplug_size = Some(ByteSize::mib(512));
    let run = setup.start();
    let size = || info(&run).memory_actual_size >> 20;
    resize_memory(&run, 16 + 128).unwrap();
    resize_memory(&run, 16 + 384).unwrap();
    assert_eq!(size(), 16 + 384);
    let error = resize_memory(&run, 16 + 256).unwrap_err();
    assert_eq!(error.status(), 400, "{error:?}");
    // What can be had is named: both pieces, the first alone, none.
    let text = error.messages().concat();
    let sizes = [16 + 384, 16 + 128, 16].map(|mib: u64| (mib << 20).to_string());
    assert!(text.contains(&sizes.join(", ")), "{text}");
    info(&run).config.validate().unwrap();
    run.mailbox.call(Request::Reboot).unwrap();
    assert_eq!(size(), 16 + 384);
    // It is part of the memory that the machine boots with now.
    assert_eq!(resize_memory(&run, 16 + 128).unwrap_err().status(), 400);
    resize_memory(&run, 16 + 512).unwrap();
    assert_eq!(size(), 16 + 512);
    // With all of it there is no room for more.
    run.mailbox.call(Request::Reboot).unwrap();
    assert_eq!(size(), 16 + 512);
    assert_eq!(resize_memory(&run, 16 + 640).unwrap_err().status(), 400);
    end(run);
}

#[test]
fn machine_without_room_keeps_its_memory() {
    let setup = Setup::new(Code::new().stop());
    let run = setup.start();
    resize_memory(&run, 16).unwrap();
    let error = resize_memory(&run, 32).unwrap_err();
    assert_eq!(error.status(), 400, "{error:?}");
    assert!(
        error.messages().concat().contains("hotplug_size"),
        "{error:?}"
    );
    end(run);
}

#[test]
fn host_that_fails_is_not_the_fault_of_the_request() {
    let notify = HotplugError::Notify(std::io::Error::other("x"));
    assert!(!ResizeMemoryError::Plug(notify).is_request());
    let unit = ResizeMemoryError::Unit {
        desired: 1,
        now: 0,
        unit: 2,
    };
    assert!(unit.is_request());
}
