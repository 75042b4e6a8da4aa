//! A virtio device driven by a guest of a few instructions: the entropy device, whose requests are the simplest.

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, Setup, eventually, word};

/// Configuration space of slot 1: the entropy device is the first behind the host bridge.
const CONFIG: u32 = 0xe800_0000 + (1 << 15);
/// Its BAR, the first in the window.
const COMMON: u32 = 0xc100_0000;
const NOTIFY: u32 = COMMON + 0x3000;

const QUEUE_SIZE: u16 = 16;
const DESCRIPTORS: u32 = 0x30_0000;
const AVAILABLE: u32 = 0x30_1000;
const USED: u32 = 0x30_2000;
const BUFFERS: u32 = 0x31_0000;
const BUFFER_LEN: u32 = 64;

/// Set by the guest when the device is its own.
const READY: u32 = SCRATCH;
/// Set by the test to have the guest notify the device.
const KICK: u32 = SCRATCH + 4;

/// Finds the device, negotiates VERSION_1, enables the queue, and notifies it whenever it is told to.
fn driver() -> Code {
    let code = Code::new()
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
    let code = [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)]
        .into_iter()
        .fold(code, |code, (register, address)| {
            code.store32(COMMON + register, address)
                .store32(COMMON + register + 4, 0)
        })
        .store16(COMMON + 0x1c, 1) // queue_enable
        .store8(COMMON + 0x14, 1 | 2 | 4 | 8) // DRIVER_OK
        .store32(READY, 1);
    let wait = code.here();
    code.load_eax(KICK)
        .test_eax(1)
        .jump_if_zero(wait)
        .store32(KICK, 0)
        .store16(NOTIFY, 0)
        .jump(wait)
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

#[test]
fn requests_are_served_before_and_after_a_pause_and_never_during_it() {
    let Built {
        mut paused,
        resources: _resources,
        ..
    } = Built::new(&Setup::new(driver()));
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
fn machine_with_a_running_device_leaves_no_thread_behind() {
    let count = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = count();
    let built = Built::new(&Setup::new(driver()));
    let running = built.paused.resume();
    eventually("the driver's start", || word(running.memory(), READY) == 1);
    // The test, the vCPU and the device's worker at least.
    assert!(count() >= before + 2);
    drop(running);
    eventually("the end of all threads", || count() == before);
}
