//! A machine without a PCI bus: what it lacks, and what is refused of it.

use api::config::{DiskConfig, ImageType, PlatformConfig, Transport, VsockConfig};
use api::request::{Answer, Descriptors, RemoveDeviceConfig, Reply, Request, Service, VmState};
use vmm::exit_status::ExitStatus;

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, Setup, eventually, word};
use crate::virtio::{READY, setup};

#[test]
fn machine_without_pci_has_no_configuration_space() {
    let code = Code::new()
        .load_eax(0xe800_0000)
        .store_eax(SCRATCH + 4)
        .store32(READY, 1)
        .stop();
    let mut setup = Setup::new(code);
    setup.config.platform = Some(PlatformConfig {
        transport: Transport::Mmio,
        ..PlatformConfig::default()
    });
    let built = Built::new(&setup);
    let running = built.paused.resume();
    eventually("the end", || word(running.memory(), READY) == 1);
    assert_eq!(word(running.memory(), SCRATCH + 4), u32::MAX);
}

#[test]
fn more_devices_than_mmio_has_places_for_are_refused_by_the_field() {
    let mut setup = setup(Transport::Mmio);
    let image = setup.path("disk");
    std::fs::write(&image, [0; 512]).unwrap();
    let disk = |_| DiskConfig {
        path: Some(image.clone()),
        readonly: true,
        image_type: ImageType::Raw,
        ..DiskConfig::default()
    };
    // The entropy device is the 17th.
    setup.config.disks = (0..16).map(disk).collect();
    setup.config.assign_ids();
    drop(Built::new(&setup));
    setup.config.disks.push(disk(16));
    setup.config.assign_ids();
    let error = setup.run().unwrap_err();
    assert!(
        error.to_string().contains("platform.transport is Mmio"),
        "{error}"
    );
    assert!(error.to_string().contains("17 devices"), "{error}");
    assert_eq!(error.exit_status(), ExitStatus::Configuration);
}

#[test]
fn nothing_comes_or_goes_by_mmio_while_the_guest_runs() {
    let mut setup = setup(Transport::Mmio);
    let image = setup.path("disk");
    std::fs::write(&image, [0; 512]).unwrap();
    let disk = |id: &str| DiskConfig {
        path: Some(image.clone()),
        readonly: true,
        image_type: ImageType::Raw,
        id: Some(id.to_owned()),
        ..DiskConfig::default()
    };
    setup.config.disks = vec![disk("first")];
    let run = setup.start();
    let ask = |request| run.mailbox.call(request);
    let refused = |answer: Answer| {
        let error = answer.unwrap_err();
        assert_eq!(error.status(), 400, "{error}");
        let messages = error.messages().join(": ");
        assert!(
            messages.contains("platform.transport is Mmio"),
            "{messages}"
        );
    };
    eventually(
        "the boot",
        || matches!(ask(Request::Info), Ok(Reply::Info(info)) if info.state == VmState::Running),
    );
    refused(ask(Request::AddDisk {
        config: Box::new(disk("second")),
        descriptors: Descriptors::none(),
    }));
    refused(ask(Request::AddVsock(Box::new(VsockConfig {
        cid: 3,
        socket: setup.path("vsock"),
        ..VsockConfig::default()
    }))));
    refused(ask(Request::RemoveDevice(RemoveDeviceConfig {
        id: "first".to_owned(),
    })));
    assert!(!setup.path("vsock").exists());
    let Ok(Reply::Info(info)) = ask(Request::Info) else {
        panic!("the VM is there");
    };
    assert_eq!(info.config.disks.len(), 1);
    assert_eq!(info.config.vsock, None);
    let tree = info.device_tree.unwrap();
    assert_eq!(tree["first"].pci_bdf, None);
    ask(Request::ShutdownVmm).unwrap();
}
