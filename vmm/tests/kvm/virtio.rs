//! A virtio device driven by a guest of a few instructions, by PCI and by MMIO: the entropy device, whose requests are the
//! simplest.

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use api::config::{PlatformConfig, Transport};
use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, Setup, eventually, word};

/// Configuration space of slot 1: the entropy device is the first behind the host bridge.
const CONFIG: u32 = 0xe800_0000 + (1 << 15);
/// Its BAR, the first in the window.
const COMMON: u32 = 0xc100_0000;
pub(crate) const NOTIFY: u32 = COMMON + 0x3000;
/// Its registers where there is no PCI bus: the first slot.
const MMIO: u32 = 0xf800_0000;
const MMIO_NOTIFY: u32 = MMIO + 0x50;
const MMIO_STATUS: u32 = MMIO + 0x70;
/// The interrupt of that slot.
const MMIO_PIN: u32 = 5;

const QUEUE_SIZE: u16 = 16;
pub(crate) const DESCRIPTORS: u32 = 0x30_0000;
pub(crate) const AVAILABLE: u32 = 0x30_1000;
pub(crate) const USED: u32 = 0x30_2000;
pub(crate) const BUFFERS: u32 = 0x31_0000;
const BUFFER_LEN: u32 = 64;

/// Set by the guest when the device is its own.
pub(crate) const READY: u32 = SCRATCH;
/// Set by the test to have the guest notify the device.
const KICK: u32 = SCRATCH + 4;

/// A machine whose guest finds the device, negotiates VERSION_1, enables the queue, and notifies it whenever it is told to.
pub(crate) fn setup(transport: Transport) -> Setup {
    let code = Code::new();
    let (code, notify) = match transport {
        Transport::Pci => (start_by_pci(code), NOTIFY),
        Transport::Mmio => (start_by_mmio(code), MMIO_NOTIFY),
    };
    let code = code.store32(READY, 1);
    let wait = code.here();
    let code = code
        .load_eax(KICK)
        .test_eax(1)
        .jump_if_zero(wait)
        .store32(KICK, 0)
        .store32(notify, 0)
        .jump(wait);
    let mut setup = Setup::new(code);
    setup.config.platform = Some(PlatformConfig {
        transport,
        ..PlatformConfig::default()
    });
    setup
}

/// Brings the device in slot 1 to DRIVER_OK, with VERSION_1 and its first queue.
pub(crate) fn start_by_pci(code: Code) -> Code {
    let code = code
        .store32(CONFIG + 4, 0x6) // memory space, bus master
        .store8(COMMON + 0x14, 0) // reset
        .store8(COMMON + 0x14, 1) // ACKNOWLEDGE
        .store8(COMMON + 0x14, 1 | 2) // DRIVER
        .store32(COMMON + 0x08, 1)
        .store32(COMMON + 0x0c, 1) // VIRTIO_F_VERSION_1
        .store32(COMMON + 0x08, 0)
        .store32(COMMON + 0x0c, 0)
        .store8(COMMON + 0x14, 1 | 2 | 8) // FEATURES_OK
        .store16(COMMON + 0x16, 0)
        .store16(COMMON + 0x18, QUEUE_SIZE);
    [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)]
        .into_iter()
        .fold(code, |code, (register, address)| {
            code.store32(COMMON + register, address)
                .store32(COMMON + register + 4, 0)
        })
        .store16(COMMON + 0x1c, 1) // queue_enable
        .store8(COMMON + 0x14, 1 | 2 | 4 | 8) // DRIVER_OK
}

fn start_by_mmio(code: Code) -> Code {
    start_queue_by_mmio(code, MMIO, 0)
}

/// Brings the device whose registers are at `base` to DRIVER_OK, with VERSION_1 and the queue of that number alone.
pub(crate) fn start_queue_by_mmio(code: Code, base: u32, queue: u32) -> Code {
    let status = base + (MMIO_STATUS - MMIO);
    let code = code
        .store32(status, 0) // reset
        .store32(status, 1) // ACKNOWLEDGE
        .store32(status, 1 | 2) // DRIVER
        .store32(base + 0x24, 1)
        .store32(base + 0x20, 1) // VIRTIO_F_VERSION_1
        .store32(base + 0x24, 0)
        .store32(base + 0x20, 0)
        .store32(status, 1 | 2 | 8) // FEATURES_OK
        .store32(base + 0x30, queue)
        .store32(base + 0x38, QUEUE_SIZE.into());
    [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)]
        .into_iter()
        .fold(code, |code, (register, address)| {
            code.store32(base + register, address)
                .store32(base + register + 4, 0)
        })
        .store32(base + 0x44, 1) // QueueReady
        .store32(status, 1 | 2 | 4 | 8) // DRIVER_OK
}

fn address(at: u32) -> GuestAddress {
    GuestAddress(at.into())
}

/// Makes request number `index` available to the device.
fn push(memory: &GuestRam, index: u16) {
    let ram = memory.memory();
    let slot = u32::from(index % QUEUE_SIZE);
    let buffer = BUFFERS + slot * BUFFER_LEN;
    ram.write_slice(&[0; BUFFER_LEN as usize], address(buffer))
        .unwrap();
    let descriptor = DESCRIPTORS + 16 * slot;
    ram.write_obj(u64::from(buffer), address(descriptor))
        .unwrap();
    ram.write_obj(BUFFER_LEN, address(descriptor + 8)).unwrap();
    ram.write_obj(2_u16, address(descriptor + 12)).unwrap(); // device writes
    ram.write_obj(slot as u16, address(AVAILABLE + 4 + 2 * slot))
        .unwrap();
    ram.store(index + 1, address(AVAILABLE + 2), Ordering::Release)
        .unwrap();
    ram.write_obj(1_u32, address(KICK)).unwrap();
}

fn used(memory: &GuestRam) -> u16 {
    memory
        .memory()
        .load(address(USED + 2), Ordering::Acquire)
        .unwrap()
}

fn is_filled(memory: &GuestRam, index: u16) -> bool {
    let mut buffer = [0; BUFFER_LEN as usize];
    let at = BUFFERS + u32::from(index % QUEUE_SIZE) * BUFFER_LEN;
    memory
        .memory()
        .read_slice(&mut buffer, address(at))
        .unwrap();
    buffer != [0; BUFFER_LEN as usize]
}

fn serve_around_pauses(transport: Transport) {
    let Built {
        mut paused,
        resources: _resources,
        ..
    } = Built::new(&setup(transport));
    // The number of requests so far, as free-running as the ring's own.
    let requests = AtomicU16::new(0);
    for _ in 0..20 {
        let running = paused.resume();
        eventually("the driver's start", || word(running.memory(), READY) == 1);
        let index = requests.fetch_add(1, Ordering::Relaxed);
        push(running.memory(), index);
        eventually("the answer", || used(running.memory()) == index + 1);
        assert!(is_filled(running.memory(), index));

        paused = running.pause();
        let index = requests.fetch_add(1, Ordering::Relaxed);
        push(paused.memory(), index);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(used(paused.memory()), index);
        assert!(!is_filled(paused.memory(), index));

        let running = paused.resume();
        eventually("the answer", || used(running.memory()) == index + 1);
        assert!(is_filled(running.memory(), index));
        paused = running.pause();
    }
}

#[test]
fn requests_are_served_before_and_after_a_pause_and_never_during_it() {
    serve_around_pauses(Transport::Pci);
}

#[test]
fn requests_by_mmio_are_served_before_and_after_a_pause_and_never_during_it() {
    serve_around_pauses(Transport::Mmio);
}

#[test]
fn machine_with_a_running_device_leaves_nothing_behind() {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    for transport in [Transport::Pci, Transport::Mmio] {
        let threads = count("task");
        let once = || {
            let built = Built::new(&setup(transport));
            let running = built.paused.resume();
            eventually("the driver's start", || word(running.memory(), READY) == 1);
            // The test, the vCPU and the device's worker at least.
            assert!(count("task") >= threads + 2);
        };
        // The first one also makes what lasts as long as the process.
        once();
        eventually("the end of all threads", || count("task") == threads);
        let descriptors = count("fd");
        once();
        eventually("the end of all threads", || count("task") == threads);
        assert_eq!(count("fd"), descriptors);
    }
}

#[test]
fn interrupt_by_mmio_reaches_the_local_apic_and_is_acknowledged() {
    const IOAPIC_INDEX: u32 = 0xfec0_0000;
    const IOAPIC_DATA: u32 = 0xfec0_0010;
    const LAPIC: u32 = 0xfee0_0000;
    const VECTOR: u32 = 0x41;
    /// Edges that the guest has seen.
    const SEEN: u32 = SCRATCH + 8;
    /// The interrupt status with the last one.
    const STATUS: u32 = SCRATCH + 12;
    let request = LAPIC + 0x200 + VECTOR / 32 * 0x10;

    let code = Code::new()
        .store32(LAPIC + 0xf0, 0x1ff) // the local APIC on
        .store32(IOAPIC_INDEX, 0x11 + 2 * MMIO_PIN)
        .store32(IOAPIC_DATA, 0)
        .store32(IOAPIC_INDEX, 0x10 + 2 * MMIO_PIN)
        .store32(IOAPIC_DATA, VECTOR); // edge-triggered, active high
    let code = start_by_mmio(code).store32(READY, 1);
    let wait = code.here();
    // Interrupts are off: the local APIC holds one request, and the pin no level that would make another.
    let code = code
        .load_eax(KICK)
        .test_eax(1)
        .jump_if_zero(wait)
        .store32(KICK, 0)
        .store32(MMIO_NOTIFY, 0);
    let pending = code.here();
    let code = code
        .load_eax(request)
        .test_eax(1 << (VECTOR % 32))
        .jump_if_zero(pending)
        .load_eax(MMIO + 0x60)
        .store_eax(STATUS)
        .store32(MMIO + 0x64, 1) // InterruptACK
        .load_eax(MMIO + 0x60)
        .test_eax(0xffff_ffff)
        .store_eax(SCRATCH + 16)
        .increment(SEEN)
        .stop();
    let mut setup = Setup::new(code);
    setup.config.platform = Some(PlatformConfig {
        transport: Transport::Mmio,
        ..PlatformConfig::default()
    });
    let built = Built::new(&setup);
    let running = built.paused.resume();
    eventually("the driver's start", || word(running.memory(), READY) == 1);
    assert_eq!(word(running.memory(), SEEN), 0);
    push(running.memory(), 0);
    eventually("the interrupt", || word(running.memory(), SEEN) == 1);
    assert_eq!(word(running.memory(), STATUS), 1);
    assert_eq!(word(running.memory(), SCRATCH + 16), 0, "acknowledged");
}
