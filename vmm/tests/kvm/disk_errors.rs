//! Errors of the host on a disk, in the whole of a machine: one write, to an image whose file system is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::config::{DiskConfig, WriteErrorPolicy};
use api::request::{Reply, Request, Service, VmState};
use vmm::vm::Outcome;

use crate::code::Code;
use crate::guest::{Run, Setup, eventually};
use crate::virtio::{AVAILABLE, BUFFERS, DESCRIPTORS, NOTIFY, USED, start_by_pci};

const SECTOR: u32 = BUFFERS + 0x100;
const STATUS: u32 = BUFFERS + 0x400;
/// A status that the device never writes.
const UNTOUCHED: u8 = b'?';

/// Writes one sector to the disk in slot 1, prints the status as a digit once it is there, and turns itself off.
fn writes_a_sector() -> Code {
    let parts = [
        (BUFFERS, 16, 1, 1), // leads on to descriptor 1
        (SECTOR, 512, 1, 2),
        (STATUS, 1, 2, 0), // device writes
    ];
    let code = (0..).zip(parts).fold(
        start_by_pci(Code::new()).store8(STATUS, UNTOUCHED),
        |code, (index, (address, len, flags, next))| {
            let descriptor = DESCRIPTORS + 16 * index;
            code.store32(descriptor, address)
                .store32(descriptor + 4, 0)
                .store32(descriptor + 8, len)
                .store16(descriptor + 12, flags)
                .store16(descriptor + 14, next)
        },
    );
    let code = code
        .store32(BUFFERS, 1) // VIRTIO_BLK_T_OUT, at sector 0
        .store32(BUFFERS + 8, 0)
        .store32(SECTOR, 0x1234_5678)
        .store16(AVAILABLE + 4, 0)
        .store16(AVAILABLE + 2, 1)
        .store32(NOTIFY, 0);
    let wait = code.here();
    code.load_eax(USED)
        .test_eax(1 << 16)
        .jump_if_zero(wait)
        .load_eax(STATUS)
        .out_al(0x3f8)
        .power_off()
}

/// A file system in memory, without any room left, that goes with the test.
struct Full(PathBuf);

impl Full {
    /// At `path`, with an image of a disk that takes no room yet.
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], &path);
        let full = Self(path);
        let image = fs::File::create_new(full.image()).unwrap();
        image.set_len(1 << 20).unwrap();
        fs::write(full.0.join("filler"), [1; 64 << 10]).unwrap();
        full
    }

    fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let status = Command::new("mount").args(arguments).arg(path).status();
    assert!(status.unwrap().success(), "this test has to be run as root");
}

fn setup(werror: WriteErrorPolicy) -> (Setup, Full) {
    let mut setup = Setup::new(writes_a_sector()).with_serial();
    let full = Full::at(setup.path("full"));
    setup.config.disks = vec![DiskConfig {
        path: Some(full.image()),
        id: Some("data".to_owned()),
        werror,
        ..DiskConfig::default()
    }];
    (setup, full)
}

fn wait_for_pause(run: &Run) {
    eventually("the pause", || match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info.state == VmState::Paused,
        other => panic!("vm.info answers {other:?}"),
    });
}

#[test]
fn error_is_the_guests_unless_it_stops_the_machine() {
    let (setup, full) = setup(WriteErrorPolicy::Report);
    assert_eq!(setup.run().unwrap(), Outcome::PoweredOff);
    assert_eq!(setup.output().as_bytes(), [1]); // VIRTIO_BLK_S_IOERR
    drop(full);
}

#[test]
fn machine_is_paused_until_the_host_has_room() {
    for werror in [WriteErrorPolicy::Stop, WriteErrorPolicy::Enospc] {
        let (setup, full) = setup(werror);
        let mut run = setup.start();
        wait_for_pause(&run);
        let events = run.events();
        let tail: Vec<_> = events.iter().rev().take(3).rev().collect();
        assert_eq!(tail, ["vm disk-error", "vm pausing", "vm paused"]);
        // There is no more room than before.
        run.mailbox.call(Request::Resume).unwrap();
        wait_for_pause(&run);
        let again = [
            "vm resuming",
            "vm resumed",
            "vm disk-error",
            "vm pausing",
            "vm paused",
        ];
        assert_eq!(run.events(), again);
        full.make_room();
        run.mailbox.call(Request::Resume).unwrap();
        assert_eq!(run.wait().unwrap(), Outcome::PoweredOff);
        assert_eq!(setup.output().as_bytes(), [0]); // VIRTIO_BLK_S_OK
        let image = fs::read(full.image()).unwrap();
        assert_eq!(image[..4], 0x1234_5678_u32.to_le_bytes());
    }
}

#[test]
fn machine_that_waits_for_room_is_ended_rebooted_and_deleted() {
    let (setup, _full) = setup(WriteErrorPolicy::Stop);
    let mut run = setup.start();
    wait_for_pause(&run);
    run.mailbox.call(Request::Reboot).unwrap();
    // The next guest writes as well.
    wait_for_pause(&run);
    let errors = |events: Vec<String>| {
        let errors = events.iter().filter(|event| *event == "vm disk-error");
        errors.count()
    };
    assert_eq!(errors(run.events()), 2);
    run.mailbox.call(Request::Shutdown).unwrap();
    run.mailbox.call(Request::Boot).unwrap();
    wait_for_pause(&run);
    assert_eq!(errors(run.events()), 1);
    run.mailbox.call(Request::Delete).unwrap();
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}
