//! A balloon in the hands of a guest of a few instructions, and the API's view of it.

use std::sync::atomic::Ordering;

use api::config::ByteSize;
use api::request::{ApiError, Reply, Request, ResizeConfig, Service, VmInfo};
use devices::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::code::{Code, SCRATCH};
use crate::guest::{Built, Run, Setup, eventually, word};

/// Configuration space of slot 2: the entropy device is in slot 1.
const CONFIG: u32 = 0xe800_0000 + (2 << 15);
/// Where the guest puts the registers.
const COMMON: u32 = 0xc800_0000;
const DEVICE: u32 = COMMON + 0x2000;
const NOTIFY: u32 = COMMON + 0x3000;

const QUEUE_SIZE: u16 = 16;
/// The rings of the queue for inflating; those of the other follow 64 KiB later.
const DESCRIPTORS: u32 = 0x30_0000;
const AVAILABLE: u32 = 0x30_1000;
const USED: u32 = 0x30_2000;
const NUMBERS: u32 = 0x31_0000;
const PAGE: u32 = 0x80_0000;

const READY: u32 = SCRATCH;
const KICK: u32 = SCRATCH + 4;

const MEMORY: u64 = 16 << 20;

fn find(code: Code) -> Code {
    code.store32(CONFIG + 0x10, COMMON)
        .store32(CONFIG + 0x14, 0)
        .store32(CONFIG + 4, 0x6)
}

/// Negotiates VERSION_1, enables both queues, and notifies the first whenever it is told to.
fn driver() -> Code {
    let code = find(Code::new())
        .store8(COMMON + 0x14, 0) // reset
        .store8(COMMON + 0x14, 1 | 2) // ACKNOWLEDGE, DRIVER
        .store32(COMMON + 0x08, 1)
        .store32(COMMON + 0x0c, 1) // VIRTIO_F_VERSION_1
        .store8(COMMON + 0x14, 1 | 2 | 8); // FEATURES_OK
    let code = (0..2_u32).fold(code, |code, queue| {
        let code = code
            .store16(COMMON + 0x16, queue as u16)
            .store16(COMMON + 0x18, QUEUE_SIZE);
        [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)]
            .into_iter()
            .fold(code, |code, (register, address)| {
                code.store32(COMMON + register, address + (queue << 16))
                    .store32(COMMON + register + 4, 0)
            })
            .store16(COMMON + 0x1c, 1) // queue_enable
    });
    let code = code
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

fn setup(code: Code) -> Setup {
    let mut setup = Setup::new(code);
    setup.config.balloon = Some("id=balloon".parse().unwrap());
    setup.config.validate().unwrap();
    setup
}

fn address(at: u32) -> GuestAddress {
    GuestAddress(at.into())
}

/// Gives the page at [`PAGE`].
fn give(memory: &GuestRam) {
    let ram = memory.memory();
    ram.write_obj(PAGE >> 12, address(NUMBERS)).unwrap();
    ram.write_obj(u64::from(NUMBERS), address(DESCRIPTORS))
        .unwrap();
    ram.write_obj(4_u32, address(DESCRIPTORS + 8)).unwrap();
    ram.store(1_u16, address(AVAILABLE + 2), Ordering::Release)
        .unwrap();
    ram.write_obj(1_u32, address(KICK)).unwrap();
}

#[test]
fn page_that_a_guest_gives_is_the_hosts() {
    for shared in [false, true] {
        let mut setup = setup(driver());
        setup.config.memory.shared = shared;
        let built = Built::new(&setup);
        let running = built.paused.resume();
        let memory = running.memory().clone();
        eventually("the driver's start", || word(&memory, READY) == 1);
        let ram = memory.memory();
        ram.write_obj(7_u32, address(PAGE)).unwrap();
        ram.write_obj(7_u32, address(PAGE + 4096)).unwrap();
        give(&memory);
        let used = || ram.load::<u16>(address(USED + 2), Ordering::Acquire);
        eventually("the answer", || used().unwrap() == 1);
        assert_eq!(word(&memory, PAGE), 0);
        assert_eq!(word(&memory, PAGE + 4096), 7);
    }
}

fn info(run: &Run) -> Box<VmInfo> {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info,
        other => panic!("vm.info answers {other:?}"),
    }
}

fn resize(run: &Run, size: u64) -> Result<Reply, ApiError> {
    run.mailbox.call(Request::Resize(ResizeConfig {
        desired_balloon: Some(size),
        ..ResizeConfig::default()
    }))
}

fn end(run: Run) {
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

/// `mov [address], eax`.
fn store_eax(code: Code, address: u32) -> Code {
    code.bytes(&[0xa3]).bytes(&address.to_le_bytes())
}

#[test]
fn size_is_asked_for_and_what_the_guest_has_given_is_told() {
    // Says that it has what it is to have.
    let code = find(Code::new());
    let again = code.here();
    let code = store_eax(code.load_eax(DEVICE), DEVICE + 4).jump(again);
    let setup = setup(code);
    let run = setup.start();
    resize(&run, 4 << 20).unwrap();
    eventually("the guest's word", || {
        info(&run).memory_actual_size == MEMORY - (4 << 20)
    });
    let size = |run: &Run| info(run).config.balloon.unwrap().size;
    assert_eq!(size(&run), ByteSize::mib(4));
    for (refused, problem) in [
        (4097, "expected a multiple of 4096"),
        (MEMORY + 4096, "expected at most the guest's memory"),
    ] {
        let error = resize(&run, refused).unwrap_err().to_string();
        assert!(
            error.contains("desired_balloon") && error.contains(problem),
            "{error}"
        );
    }
    assert_eq!(size(&run), ByteSize::mib(4));
    let Ok(Reply::Counters(counters)) = run.mailbox.call(Request::Counters) else {
        panic!("no counters");
    };
    assert_eq!(counters["balloon"]["target_bytes"], 4 << 20);
    // What the guest does not give is told as well: the size stays as it is in a paused machine.
    run.mailbox.call(Request::Pause).unwrap();
    resize(&run, 8 << 20).unwrap();
    assert_eq!(info(&run).memory_actual_size, MEMORY - (4 << 20));
    run.mailbox.call(Request::Resume).unwrap();
    eventually("the guest's word", || {
        info(&run).memory_actual_size == MEMORY - (8 << 20)
    });
    end(run);
}

#[test]
fn guest_that_says_to_have_given_more_than_all_is_not_believed() {
    let code = find(Code::new()).store32(DEVICE + 4, u32::MAX).stop();
    let setup = setup(code);
    let run = setup.start();
    eventually("the guest's word", || info(&run).memory_actual_size == 0);
    let Ok(Reply::Metrics(metrics)) = run.mailbox.call(Request::Metrics) else {
        panic!("no metrics");
    };
    assert_eq!(metrics.memory.balloon, MEMORY);
    assert_eq!(metrics.memory.guest, MEMORY);
    end(run);
}

#[test]
fn machine_without_a_balloon_refuses_a_size() {
    let setup = Setup::new(Code::new().stop());
    let run = setup.start();
    let error = resize(&run, 4096).unwrap_err();
    assert_eq!(error.status(), 400);
    assert!(error.to_string().contains("the VM has no balloon"));
    end(run);
}
