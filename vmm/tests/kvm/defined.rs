//! Machines that clients define, boot, end and define again.

use std::fs::File;
use std::os::fd::OwnedFd;

use api::config::DiskConfig;
use api::request::{ApiError, Descriptors, KERNEL, Reply, Request, Service, VmState};
use vmm::vm::Outcome;

use crate::code::Code;
use crate::guest::{Run, Setup, eventually};

fn state(run: &Run) -> VmState {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info.state,
        other => panic!("vm.info answers {other:?}"),
    }
}

fn starts(setup: &Setup, count: usize) {
    eventually("the start", || {
        std::fs::read_to_string(setup.path("serial"))
            .is_ok_and(|text| text.matches("start\n").count() == count)
    });
}

#[test]
fn machine_is_created_booted_shut_down_and_booted_again() {
    let setup = Setup::new(Code::new().print("start\n").stop()).with_serial();
    let mut run = setup.serve(None);
    let verb = "vm.info";
    assert_eq!(
        run.mailbox.call(Request::Info),
        Err(ApiError::NotCreated { verb })
    );
    assert_eq!(run.mailbox.call(setup.create()), Ok(Reply::Done));
    assert_eq!(state(&run), VmState::Created);
    for _ in 0..2 {
        assert_eq!(run.mailbox.call(Request::Boot), Ok(Reply::Done));
        assert_eq!(state(&run), VmState::Running);
        // The file is emptied at each boot.
        starts(&setup, 1);
        assert_eq!(run.mailbox.call(Request::Shutdown), Ok(Reply::Done));
        assert_eq!(state(&run), VmState::Shutdown);
    }
    assert_eq!(run.mailbox.call(Request::Delete), Ok(Reply::Done));
    assert_eq!(
        run.mailbox.call(Request::Boot),
        Err(ApiError::NotCreated { verb: "vm.boot" })
    );
    let once = ["vm booting", "vm booted", "vm shutdown"];
    let expected = [
        &["vmm starting", "vm created"],
        &once[..],
        &once[..],
        &["vm deleted"],
    ];
    assert_eq!(run.events(), expected.concat());
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn second_machine_is_refused_until_the_first_is_deleted() {
    let setup = Setup::new(Code::new().stop());
    let run = setup.serve(None);
    run.mailbox.call(setup.create()).unwrap();
    let verb = "vm.create";
    assert_eq!(
        run.mailbox.call(setup.create()),
        Err(ApiError::AlreadyCreated { verb })
    );
    run.mailbox.call(Request::Boot).unwrap();
    assert_eq!(
        run.mailbox.call(setup.create()),
        Err(ApiError::AlreadyCreated { verb })
    );
    run.mailbox.call(Request::Delete).unwrap();
    run.mailbox.call(setup.create()).unwrap();
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn boot_that_fails_leaves_a_machine_that_can_be_booted_once_the_cause_is_gone() {
    let setup = Setup::new(Code::new().print("start\n").stop()).with_serial();
    let kernel = setup.path("kernel");
    let aside = setup.path("aside");
    std::fs::rename(&kernel, &aside).unwrap();
    let run = setup.serve(None);
    run.mailbox.call(setup.create()).unwrap();
    let error = run.mailbox.call(Request::Boot).unwrap_err();
    assert_eq!(error.status(), 400, "{error:?}");
    assert!(
        error.messages().concat().contains("cannot open"),
        "{error:?}"
    );
    assert_eq!(state(&run), VmState::Created);
    std::fs::rename(&aside, &kernel).unwrap();
    run.mailbox.call(Request::Boot).unwrap();
    starts(&setup, 1);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

#[test]
fn device_does_not_take_the_descriptor_of_the_kernel() {
    let mut setup = Setup::new(Code::new().stop());
    std::fs::write(setup.path("disk"), [0; 4096]).unwrap();
    let open = |name| vec![OwnedFd::from(File::open(setup.path(name)).unwrap())];
    let mut descriptors = Descriptors::none();
    descriptors.insert(KERNEL, open("kernel"));
    let disk = open("disk");
    setup.config.payload.kernel = None;
    let run = setup.serve(None);
    let config = Box::new(setup.config.clone());
    run.mailbox
        .call(Request::Create {
            config,
            descriptors,
        })
        .unwrap();
    let add = |path, passed| {
        let mut descriptors = Descriptors::none();
        descriptors.insert(KERNEL, passed);
        run.mailbox.call(Request::AddDisk {
            config: Box::new(DiskConfig {
                path,
                readonly: true,
                id: Some(KERNEL.to_owned()),
                ..DiskConfig::default()
            }),
            descriptors,
        })
    };
    for (path, passed) in [(Some(setup.path("disk")), Vec::new()), (None, disk)] {
        let error = add(path, passed).unwrap_err();
        assert_eq!(error.status(), 400, "{error:?}");
    }
    for _ in 0..2 {
        run.mailbox.call(Request::Boot).unwrap();
        run.mailbox.call(Request::Shutdown).unwrap();
    }
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

#[test]
fn guest_that_powers_off_ends_the_process_unless_that_is_unwanted() {
    let mut setup = Setup::new(Code::new().power_off());
    assert_eq!(setup.run().unwrap(), Outcome::PoweredOff);
    setup.options.no_shutdown = true;
    let run = setup.start();
    eventually("the end", || state(&run) == VmState::Shutdown);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn measures_show_what_a_guest_does() {
    // The guest asks the empty port 0x80 for ever.
    let code = Code::new().out(0x80, 1).jump(crate::code::BASE);
    let setup = Setup::new(code);
    let run = setup.start();
    let exits = || match run.mailbox.call(Request::Metrics) {
        Ok(Reply::Metrics(metrics)) => {
            assert_eq!(metrics.memory.guest, 16 << 20);
            metrics.vcpus[0].exits["io"]
        }
        other => panic!("metrics: {other:?}"),
    };
    let before = exits();
    eventually("further exits", || exits() > before);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}
