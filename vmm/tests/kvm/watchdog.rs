//! A watchdog that a guest of a few instructions starts and forgets.

use api::config::WatchdogAction;
use api::request::{Reply, Request, Service, VmState};
use arch::x86_64::layout;
use vmm::vm::{Outcome, RunError};

use crate::code::Code;
use crate::guest::{Run, Setup, eventually};

/// Configuration space of slot 2: the entropy device is in slot 1.
const CONFIG: u32 = 0xe800_0000 + (2 << 15);
/// Where the guest puts the registers.
const BAR: u32 = 0xc800_0000;
const RELOAD: u32 = BAR + 0xc;
const TIMEOUT: u32 = 1 << 9;

fn find(code: Code) -> Code {
    code.store32(CONFIG + 0x10, BAR).store16(CONFIG + 4, 2)
}

fn unlock(code: Code) -> Code {
    code.store16(RELOAD, 0x80).store16(RELOAD, 0x86)
}

/// Starts the watchdog for two milliseconds.
fn start(code: Code) -> Code {
    // Ticks of a microsecond, no interrupt.
    let code = code.store16(CONFIG + 0x60, 0b111);
    let code = unlock(code).store32(BAR, 1000);
    unlock(code).store32(BAR + 4, 1000).store8(CONFIG + 0x68, 2)
}

fn setup(code: Code, action: Option<WatchdogAction>) -> Setup {
    let mut setup = Setup::new(code);
    setup.config.watchdog = true;
    setup.config.watchdog_action = action;
    setup.config.validate().unwrap();
    setup
}

/// How a machine ends whose guest starts its watchdog, and what it told meanwhile.
fn end(action: Option<WatchdogAction>) -> (Result<Outcome, RunError>, Vec<String>) {
    let setup = setup(start(find(Code::new())).stop(), action);
    let mut run = setup.start();
    let mut told = Vec::new();
    eventually("the end", || {
        told.extend(run.events());
        told.iter().any(|event| event == "vmm shutdown")
    });
    (run.wait(), told)
}

fn state(run: &Run) -> VmState {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info.state,
        other => panic!("vm.info answers {other:?}"),
    }
}

#[test]
fn watchdog_resets_the_machine_or_turns_it_off() {
    for (action, expected) in [
        (None, Outcome::Reset),
        (Some(WatchdogAction::Reset), Outcome::Reset),
        (Some(WatchdogAction::Poweroff), Outcome::PoweredOff),
    ] {
        let (outcome, told) = end(action);
        assert_eq!(outcome.unwrap(), expected);
        assert!(
            told.iter().any(|event| event == "watchdog expired"),
            "{told:?}"
        );
    }
}

#[test]
fn guest_finds_that_its_watchdog_reset_it() {
    // It turns itself off at its second start, and waits for its end at the first.
    let code = find(Code::new()).load_eax(RELOAD).test_eax(TIMEOUT);
    let power_off = Code::new().power_off().raw();
    let first = code.here() + 6 + power_off.len() as u32;
    let code = code.jump_if_zero(first).bytes(&power_off);
    // Relative jumps only: the bytes can be anywhere.
    assert_eq!(code.here(), first);
    let mut setup = setup(start(code).stop(), None);
    setup.options.no_reboot = false;
    let mut run = setup.start();
    let mut told = Vec::new();
    eventually("the end", || {
        told.extend(run.events());
        told.iter().any(|event| event == "vmm shutdown")
    });
    assert_eq!(run.wait().unwrap(), Outcome::PoweredOff);
    let times = |name| told.iter().filter(|event| *event == name).count();
    assert_eq!(times("watchdog expired"), 1);
    assert_eq!(times("vm rebooted"), 1);
}

#[test]
fn watchdog_presses_the_power_button() {
    let event = u32::try_from(layout::ACPI_EVENT.start).unwrap();
    let code = start(find(Code::new()));
    let wait = code.here();
    let code = code
        .load_eax(event)
        .test_eax(1 << layout::EVENT_POWER_BUTTON)
        .jump_if_zero(wait)
        .power_off();
    let setup = setup(code, Some(WatchdogAction::Shutdown));
    assert_eq!(setup.run().unwrap(), Outcome::PoweredOff);
}

#[test]
fn watchdog_pauses_the_machine_which_can_go_on() {
    let code = start(find(Code::new())).stop();
    let setup = setup(code, Some(WatchdogAction::Pause));
    let run = setup.start();
    eventually("the pause", || state(&run) == VmState::Paused);
    run.mailbox.call(Request::Resume).unwrap();
    assert_eq!(state(&run), VmState::Running);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

#[test]
fn watchdog_without_an_action_tells_of_its_end_and_floods_nobody() {
    // Starts it again and again, for a microsecond.
    let code = find(Code::new()).store16(CONFIG + 0x60, 0b111);
    let code = unlock(code).store32(BAR, 0);
    let code = unlock(code).store32(BAR + 4, 0);
    let again = code.here();
    let code = code
        .store8(CONFIG + 0x68, 2)
        .store8(CONFIG + 0x68, 0)
        .jump(again);
    let setup = setup(code, Some(WatchdogAction::None));
    let mut run = setup.start();
    let mut told = Vec::new();
    let begun = std::time::Instant::now();
    eventually("two events", || {
        told.extend(run.events());
        told.iter().filter(|e| *e == "watchdog expired").count() >= 2
    });
    assert!(begun.elapsed() >= std::time::Duration::from_millis(990));
    assert_eq!(state(&run), VmState::Running);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}
