//! A machine built and held by the test: pause and resume, interrupts, notifications, and what is left behind.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arch::kernel::BootProtocol;
use arch::x86_64::boot::BootEntry;
use arch::x86_64::layout;
use devices::memory::GuestRam;
use devices::virtio::{Doorbell, Notify};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm::kvm::capabilities::Host;
use vmm::kvm::memory::{self, Backing};
use vmm::kvm::notify::IoEvents;
use vmm::kvm::vcpu::Vcpu;
use vmm::kvm::vm::Vm;
use vmm::vcpu::{Buses, VcpuThread};
use vmm::vm::notices::Notices;
use vmm::wire::generation::Generation;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::code::{BASE, Code, SCRATCH};
use crate::guest::{Built, Setup, eventually, word};

/// Adds one to [`SCRATCH`] for ever.
fn counter() -> Code {
    Code::new().increment(SCRATCH).jump(BASE)
}

#[test]
fn machine_stands_still_until_it_is_resumed() {
    let built = Built::new(&Setup::new(counter()));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(word(built.paused.memory(), SCRATCH), 0);
}

#[test]
fn paused_guest_counts_no_further_and_goes_on_where_it_was() {
    let Built {
        mut paused,
        resources: _resources,
        ..
    } = Built::new(&Setup::new(counter()));
    let mut reached = 0;
    for _ in 0..20 {
        let running = paused.resume();
        eventually("counting", || word(running.memory(), SCRATCH) > reached);
        paused = running.pause();
        reached = word(paused.memory(), SCRATCH);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(word(paused.memory(), SCRATCH), reached);
    }
}

#[test]
fn pause_while_the_guest_storms_devices_loses_no_access() {
    // Each round writes the count to the serial port; the port must see every count once, in order.
    let code = Code::new()
        .increment(SCRATCH)
        .load_eax(SCRATCH)
        .out_al(0x3f8)
        .jump(BASE);
    let setup = Setup::new(code).with_serial();
    let Built {
        mut paused,
        resources,
        ..
    } = Built::new(&setup);
    for _ in 0..50 {
        let running = paused.resume();
        thread::sleep(Duration::from_millis(2));
        paused = running.pause();
    }
    let rounds = word(paused.memory(), SCRATCH);
    drop(paused);
    drop(resources);
    let seen = std::fs::read(setup.path("serial")).unwrap();
    // The last round may have been stopped between the addition and the write.
    assert!(
        rounds > 50 && (rounds - 1..=rounds).contains(&(seen.len() as u32)),
        "{rounds} {}",
        seen.len()
    );
    for (round, byte) in (1_u32..).zip(seen) {
        assert_eq!(byte, round as u8);
    }
}

const LAPIC_REQUEST: u32 = 0xfee0_0200;
const VECTOR: u32 = 0x41;

/// Routes the event device's pin to [`VECTOR`].
fn route_events(code: Code) -> Code {
    const IOAPIC_INDEX: u32 = 0xfec0_0000;
    const IOAPIC_DATA: u32 = 0xfec0_0010;
    code.store32(IOAPIC_INDEX, 0x11 + 2 * 9)
        .store32(IOAPIC_DATA, 0)
        .store32(IOAPIC_INDEX, 0x10 + 2 * 9)
        .store32(IOAPIC_DATA, VECTOR)
}

/// Waits, interrupts off, until [`VECTOR`] is requested.
fn wait_for_event(code: Code) -> Code {
    let wait = code.here();
    code.load_eax(LAPIC_REQUEST + VECTOR / 32 * 0x10)
        .test_eax(1 << (VECTOR % 32))
        .jump_if_zero(wait)
}

/// Switches the local APIC on.
fn enable_lapic(code: Code) -> Code {
    const LAPIC_SPURIOUS: u32 = 0xfee0_00f0;
    code.store32(LAPIC_SPURIOUS, 0x1ff)
}

#[test]
fn power_button_interrupt_reaches_the_local_apic() {
    let code = route_events(enable_lapic(Code::new())).store32(SCRATCH, 1);
    let code = wait_for_event(code).store32(SCRATCH, 2).stop();
    let built = Built::new(&Setup::new(code));
    let running = built.paused.resume();
    eventually("the setup", || word(running.memory(), SCRATCH) == 1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(word(running.memory(), SCRATCH), 1);
    running.press_power_button().unwrap();
    eventually("the interrupt", || word(running.memory(), SCRATCH) == 2);
}

#[test]
fn power_button_pressed_too_early_is_heard_with_the_reminder() {
    const GO: u32 = SCRATCH + 4;
    let code = enable_lapic(Code::new()).store32(SCRATCH, 1);
    let wait = code.here();
    let code = code.load_eax(GO).test_eax(1).jump_if_zero(wait);
    let code = route_events(code).store32(SCRATCH, 2);
    let code = wait_for_event(code).store32(SCRATCH, 3).stop();
    let built = Built::new(&Setup::new(code));
    let running = built.paused.resume();
    eventually("the start", || word(running.memory(), SCRATCH) == 1);
    running.press_power_button().unwrap();
    let go = running.memory().memory();
    go.write_obj(1_u32, GuestAddress(GO.into())).unwrap();
    eventually("the setup", || word(running.memory(), SCRATCH) >= 2);
    running.remind_of_events().unwrap();
    eventually("the interrupt", || word(running.memory(), SCRATCH) == 3);
}

#[test]
fn notification_of_any_length_signals_the_eventfd_without_an_exit() {
    const NOTIFY: u32 = 0xc100_3000;
    let code = Code::new()
        .store8(NOTIFY, 1)
        .store16(NOTIFY, 2)
        .store32(NOTIFY, 3)
        .store32(SCRATCH, 1)
        .stop();
    let host = Host::open().unwrap();
    let vm = Vm::new(host.kvm()).unwrap();
    let ram = memory::allocate(&[(GuestAddress(0), 4 << 20)], Backing::default()).unwrap();
    memory::register(&vm, &ram).unwrap();
    ram.write_slice(&code.raw(), GuestAddress(BASE.into()))
        .unwrap();
    let entry = BootEntry {
        protocol: BootProtocol::Pvh,
        entry: GuestAddress(BASE.into()),
        boot_info: GuestAddress(0),
    };
    let vcpu = Vcpu::create(&vm, 0, 0).unwrap();
    vcpu.configure(host.cpuid()).unwrap();
    vcpu.enter_at(&entry).unwrap();

    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let events = IoEvents::new(&vm);
    let doorbell = Doorbell::Any(NOTIFY.into());
    events.bind(doorbell, &eventfd).unwrap();
    let notices = Arc::new(Notices::new().unwrap());
    let memory = GuestRam::new(ram);
    let thread = VcpuThread::spawn(
        vcpu,
        Buses::default(),
        memory.clone(),
        notices,
        Instant::now(),
    )
    .unwrap();
    thread.resume();
    eventually("the end of the code", || word(&memory, SCRATCH) == 1);
    assert_eq!(eventfd.read().unwrap(), 3);
    events.unbind(doorbell, &eventfd).unwrap();
    assert!(events.unbind(doorbell, &eventfd).is_err());
}

#[test]
fn machine_leaves_no_thread_and_no_descriptor_behind() {
    let mut setup = Setup::new(counter());
    setup.config.cpus.boot_vcpus = 4;
    setup.config.cpus.max_vcpus = 4;
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let once = |setup: &Setup| {
        let built = Built::new(setup);
        let running = built.paused.resume();
        eventually("counting", || word(running.memory(), SCRATCH) > 0);
    };
    // The first one also makes what lasts as long as the process.
    once(&setup);
    let (descriptors, threads) = (count("fd"), count("task"));
    for _ in 0..20 {
        once(&setup);
    }
    // The kernel's own threads of a machine may end a little later than the machine.
    eventually("the end of all threads", || count("task") == threads);
    assert_eq!(count("fd"), descriptors);
}

#[test]
fn device_event_wakes_whoever_owns_the_machine() {
    let built = Built::new(&Setup::new(Code::new().power_off()));
    let running = built.paused.resume();
    eventually("the wake-up", || built.notices.eventfd().read().is_ok());
    assert!(built.notices.take().power_off);
    drop(running);
}

#[test]
fn machine_has_a_generation_that_changes_when_it_is_told_to() {
    let code = route_events(enable_lapic(Code::new())).store32(SCRATCH, 1);
    let code = wait_for_event(code).store32(SCRATCH, 2).stop();
    let Built {
        paused, resources, ..
    } = Built::new(&Setup::new(code));
    let generation = |memory: &GuestRam| {
        let mut bytes = [0; 16];
        let memory = memory.memory();
        memory
            .read_slice(&mut bytes, GuestAddress(layout::GENERATION.start))
            .unwrap();
        bytes
    };
    assert_eq!(generation(paused.memory()), *resources.generation.bytes());
    assert_ne!(generation(paused.memory()), [0; 16]);
    let running = paused.resume();
    eventually("the setup", || word(running.memory(), SCRATCH) == 1);
    let paused = running.pause();
    let next = Generation::random().unwrap();
    paused.set_generation(&next).unwrap();
    let running = paused.resume();
    eventually("the interrupt", || word(running.memory(), SCRATCH) == 2);
    assert_eq!(generation(running.memory()), *next.bytes());
    assert_ne!(next, resources.generation);
}
