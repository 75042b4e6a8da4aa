//! How machines end, start again, and are controlled, through the loop that the binary runs.

use std::time::Duration;

use api::request::{ApiError, Reply, Request, Service, VmState};
use vmm::exit_status::ExitStatus;
use vmm::vm::{Outcome, RunError};

use crate::code::{BASE, Code, SCRATCH};
use crate::guest::{Setup, eventually};

#[test]
fn acpi_power_off_ends_the_machine() {
    let outcome = Setup::new(Code::new().power_off()).run().unwrap();
    assert_eq!(outcome, Outcome::PoweredOff);
    assert_eq!(ExitStatus::from(outcome) as u8, 0);
}

#[test]
fn pvpanic_ends_the_machine_as_panicked() {
    let outcome = Setup::new(Code::new().out(0x505, 1).stop()).run().unwrap();
    assert_eq!(outcome, Outcome::Panicked);
    assert_eq!(ExitStatus::from(outcome) as u8, 3);
}

#[test]
fn crash_kernel_being_loaded_does_not_end_the_machine() {
    let outcome = Setup::new(Code::new().out(0x505, 2).power_off()).run();
    assert_eq!(outcome.unwrap(), Outcome::PoweredOff);
}

#[test]
fn crash_kernel_is_told_once_however_often_the_guest_tells_it() {
    let setup = Setup::new(Code::new().out(0x505, 2).jump(BASE));
    let mut run = setup.start();
    let told = || match run.mailbox.call(Request::Metrics) {
        Ok(Reply::Metrics(metrics)) => metrics.vcpus[0].exits["io"],
        other => panic!("metrics: {other:?}"),
    };
    eventually("a flood", || told() > 1000);
    let events = run.events();
    let crashes = events.iter().filter(|event| *event == "guest panic");
    assert_eq!(crashes.count(), 1);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

#[test]
fn absent_pvpanic_port_is_not_answered() {
    // The port reads all ones where nobody answers, and 3 where the device is.
    let mut setup = Setup::new(Code::new().input(0x505).out_al(0x3f8).power_off()).with_serial();
    setup.config.pvpanic = false;
    setup.run().unwrap();
    assert_eq!(std::fs::read(setup.path("serial")).unwrap(), [0xff]);
}

#[test]
fn serial_output_is_complete_at_the_end() {
    let text = "all of it, to the last byte\n".repeat(20);
    let setup = Setup::new(Code::new().print(&text).power_off()).with_serial();
    assert_eq!(setup.run().unwrap(), Outcome::PoweredOff);
    assert_eq!(setup.output(), text);
}

#[test]
fn reset_by_i8042_starts_the_guest_again() {
    let mut setup = Setup::new(Code::new().print("start\n").out(0x64, 0xfe).stop()).with_serial();
    setup.options.no_reboot = false;
    let run = setup.start();
    eventually("the third start", || {
        std::fs::read_to_string(setup.path("serial"))
            .is_ok_and(|text| text.matches("start").count() >= 3)
    });
    assert_eq!(run.mailbox.call(Request::ShutdownVmm), Ok(Reply::Done));
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn guest_that_resets_itself_while_it_is_paused_stays_paused() {
    let mut setup = Setup::new(Code::new().out(0x64, 0xfe).jump(BASE));
    setup.options.no_reboot = false;
    let run = setup.start();
    for _ in 0..30 {
        assert_eq!(run.mailbox.call(Request::Pause), Ok(Reply::Done));
        for _ in 0..3 {
            let Ok(Reply::Info(info)) = run.mailbox.call(Request::Info) else {
                panic!("vm.info is answered in every state");
            };
            assert_eq!(info.state, VmState::Paused);
        }
        assert_eq!(run.mailbox.call(Request::Resume), Ok(Reply::Done));
    }
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

#[test]
fn memory_is_zero_after_a_reset() {
    // The guest adds one to a byte that is zero in fresh memory, tells it, and resets.
    let code = Code::new()
        .increment(SCRATCH)
        .load_eax(SCRATCH)
        .out_al(0x3f8)
        .out(0x602, 1)
        .stop();
    let mut setup = Setup::new(code).with_serial();
    setup.options.no_reboot = false;
    let run = setup.start();
    eventually("the third start", || {
        std::fs::read(setup.path("serial")).is_ok_and(|bytes| bytes.len() >= 3)
    });
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
    let bytes = std::fs::read(setup.path("serial")).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1), "{bytes:?}");
}

#[test]
fn reset_ends_the_machine_that_shall_not_reboot() {
    let outcome = Setup::new(Code::new().out(0x64, 0xfe).stop())
        .run()
        .unwrap();
    assert_eq!(outcome, Outcome::Reset);
}

#[test]
fn triple_fault_that_comes_again_and_again_is_an_error() {
    // An undefined instruction, with an empty IDT.
    let mut setup = Setup::new(Code::new().bytes(&[0x0f, 0x0b]).stop()).with_serial();
    setup.options.no_reboot = false;
    let error = setup.run().unwrap_err();
    assert!(matches!(error, RunError::TripleFault { .. }), "{error}");
    assert!(error.to_string().contains("triple fault"), "{error}");
    assert_eq!(error.exit_status() as u8, 1);
}

#[test]
fn vcpu_that_cannot_go_on_ends_the_machine_with_rip_in_the_message() {
    // Code is fetched from where no memory is: KVM cannot emulate that, whatever its kind.
    let error = Setup::new(Code::new().jump(0xd000_0000)).run().unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("vCPU 0 cannot go on: "), "{message}");
    assert!(message.contains("RIP 0xd0000000"), "{message}");
    assert!(message.contains("CR0 0x"), "{message}");
    assert_eq!(error.exit_status() as u8, 1);
}

#[test]
fn requests_that_do_not_fit_the_state_are_refused() {
    let setup = Setup::new(Code::new().stop());
    let run = setup.start();
    let wrong = |verb, state, expected| {
        Err(ApiError::WrongState {
            verb,
            state,
            expected,
        })
    };
    assert_eq!(
        run.mailbox.call(Request::Resume),
        wrong("vm.resume", VmState::Running, "a paused VM")
    );
    assert_eq!(run.mailbox.call(Request::Pause), Ok(Reply::Done));
    assert_eq!(
        run.mailbox.call(Request::Pause),
        wrong("vm.pause", VmState::Paused, "a running VM")
    );
    assert_eq!(
        run.mailbox.call(Request::PowerButton),
        wrong("vm.power-button", VmState::Paused, "a running VM")
    );
    let Ok(Reply::Info(info)) = run.mailbox.call(Request::Info) else {
        panic!("vm.info is answered in every state");
    };
    assert_eq!(info.state, VmState::Paused);
    assert_eq!(run.mailbox.call(Request::Resume), Ok(Reply::Done));
    assert_eq!(run.mailbox.call(Request::ShutdownVmm), Ok(Reply::Done));
    let mailbox = run.mailbox.clone();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
    assert_eq!(mailbox.call(Request::Info), Err(ApiError::Gone));
}

#[test]
fn request_for_a_reboot_starts_a_guest_that_does_not_want_it() {
    let setup = Setup::new(Code::new().print("start\n").stop()).with_serial();
    let run = setup.start();
    let starts = |count: usize| {
        eventually("the start", || {
            std::fs::read_to_string(setup.path("serial"))
                .is_ok_and(|text| text.matches("start\n").count() == count)
        });
    };
    starts(1);
    assert_eq!(run.mailbox.call(Request::Reboot), Ok(Reply::Done));
    starts(2);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn power_button_reaches_the_guest() {
    // The guest looks at the event register until the button's bit is there.
    let code = Code::new().print("up\n").load_eax(0xf810_0000).test_eax(1);
    let code = code.jump_if_zero(BASE + 3 * 7).power_off();
    let setup = Setup::new(code).with_serial();
    let run = setup.start();
    eventually("the start", || {
        std::fs::read_to_string(setup.path("serial")).is_ok_and(|text| text == "up\n")
    });
    assert_eq!(run.mailbox.call(Request::PowerButton), Ok(Reply::Done));
    assert_eq!(run.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn kernel_that_is_none_is_a_configuration_error() {
    let setup = Setup::new(Code::new());
    std::fs::write(setup.path("kernel"), "#!/bin/sh\n").unwrap();
    let error = setup.run().unwrap_err();
    assert_eq!(error.exit_status() as u8, 2);
}

#[test]
fn shutdown_timeout_is_for_signals_only() {
    let mut setup = Setup::new(Code::new().stop());
    setup.options.shutdown_timeout = Duration::ZERO;
    let run = setup.start();
    run.mailbox.call(Request::PowerButton).unwrap();
    assert!(matches!(
        run.mailbox.call(Request::Info),
        Ok(Reply::Info(_))
    ));
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    assert_eq!(run.wait().unwrap(), Outcome::Stopped);
}
