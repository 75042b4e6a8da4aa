//! The virtio console of a guest of a few instructions, and what clients are told of it.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;

use api::config::{ConsoleOutputMode, PlatformConfig, Transport};
use api::request::{Reply, Request, Service};
use arch::x86_64::layout;
use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, PATIENCE, Setup, eventually, word};
use crate::virtio::{AVAILABLE, BUFFERS, DESCRIPTORS, READY, USED, start_queue_by_mmio};

/// Set by the test to have the guest notify the device.
const KICK: u32 = SCRATCH + 4;
/// The queue of what the guest sends.
const TRANSMIT: u32 = 1;

/// A machine whose console is the second device, behind the entropy device, and goes to a socket.
fn setup() -> Setup {
    let (slot, _) = layout::virtio_mmio_slot(1).unwrap();
    let base = u32::try_from(slot.start).unwrap();
    let code = start_queue_by_mmio(Code::new(), base, TRANSMIT).store32(READY, 1);
    let wait = code.here();
    let code = code
        .load_eax(KICK)
        .test_eax(1)
        .jump_if_zero(wait)
        .store32(KICK, 0)
        .store32(base + 0x50, TRANSMIT)
        .jump(wait);
    let mut setup = Setup::new(code);
    setup.config.platform = Some(PlatformConfig {
        transport: Transport::Mmio,
        ..PlatformConfig::default()
    });
    setup.config.console.mode = ConsoleOutputMode::Socket;
    setup.config.console.socket = Some(setup.path("console"));
    setup.config.assign_ids();
    setup
}

fn address(at: u32) -> GuestAddress {
    GuestAddress(at.into())
}

/// Sends `text` as chain number `index`, of which there are fewer than the ring has room for.
fn send(memory: &GuestRam, index: u16, text: &str) {
    let ram = memory.memory();
    let slot = u32::from(index);
    let buffer = BUFFERS + slot * 0x100;
    ram.write_slice(text.as_bytes(), address(buffer)).unwrap();
    let descriptor = DESCRIPTORS + 16 * slot;
    ram.write_obj(u64::from(buffer), address(descriptor))
        .unwrap();
    ram.write_obj(text.len() as u32, address(descriptor + 8))
        .unwrap();
    ram.write_obj(index, address(AVAILABLE + 4 + 2 * slot))
        .unwrap();
    ram.store(index + 1, address(AVAILABLE + 2), Ordering::Release)
        .unwrap();
    ram.write_obj(1_u32, address(KICK)).unwrap();
}

fn used(memory: &GuestRam) -> u16 {
    let ram = memory.memory();
    ram.load(address(USED + 2), Ordering::Acquire).unwrap()
}

/// A client that has read `expected`.
fn client(path: &Path, expected: &str) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    reads(&client, expected);
    client
}

fn reads(mut client: &UnixStream, expected: &str) {
    let mut text = vec![0; expected.len()];
    client.read_exact(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), expected);
}

#[test]
fn console_output_reaches_one_client_after_the_other() {
    let setup = setup();
    let path = setup.path("console");
    let Built {
        paused,
        resources: _resources,
        ..
    } = Built::new(&setup);
    let running = paused.resume();
    eventually("the driver's start", || word(running.memory(), READY) == 1);
    send(running.memory(), 0, "before anybody came, ");
    eventually("the answer", || used(running.memory()) == 1);
    let first = client(&path, "before anybody came, ");
    send(running.memory(), 1, "for the first, ");
    reads(&first, "for the first, ");
    drop(first);
    let second = client(&path, "before anybody came, for the first, ");

    // The client stays over a pause, during which nothing is taken.
    let paused = running.pause();
    send(paused.memory(), 2, "after a pause");
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(used(paused.memory()), 2);
    let running = paused.resume();
    reads(&second, "after a pause");
    drop(running);
}

#[test]
fn pseudo_terminals_are_told_by_vm_info() {
    let mut setup = Setup::new(Code::new().print("start\n").stop()).with_serial();
    setup.config.console.mode = ConsoleOutputMode::Pty;
    setup.config.console.ports = Some(vec![
        "name=first,pty".parse().unwrap(),
        "name=second,null".parse().unwrap(),
    ]);
    setup.config.assign_ids();
    let run = setup.serve(None);
    run.mailbox.call(setup.create()).unwrap();
    let info = || match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info,
        other => panic!("vm.info answers {other:?}"),
    };
    assert_eq!(info().config.console.file, None);
    run.mailbox.call(Request::Boot).unwrap();
    let info_booted = info();
    let console = info_booted.config.console;
    let port = console.ports.unwrap().remove(0);
    for file in [console.file, port.file] {
        let file = file.unwrap();
        assert!(file.starts_with("/dev/pts"), "{}", file.display());
        assert!(file.exists());
    }
    let tree = info_booted.device_tree.unwrap();
    assert!(tree.contains_key("_console0") && tree.contains_key("__ports"));
    let counters = match run.mailbox.call(Request::Counters) {
        Ok(Reply::Counters(counters)) => counters,
        other => panic!("vm.counters answers {other:?}"),
    };
    assert_eq!(counters["_console0"]["tx_bytes"], 0);
    run.mailbox.call(Request::ShutdownVmm).unwrap();
}
