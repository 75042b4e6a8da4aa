//! Cores of running and paused machines.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;

use api::config::{ByteSize, HotplugMethod};
use api::request::{
    Answer, ApiError, CoredumpConfig, Reply, Request, ResizeConfig, Service, VmState,
};
use vmm::vm::Mailbox;

use crate::code::{BASE, Code, SCRATCH};
use crate::guest::{Run, Setup, eventually};

/// Number of instruction bytes of [`counter`].
const COUNTER_LEN: u32 = 11;

/// Adds one to [`SCRATCH`] for ever.
fn counter() -> Code {
    Code::new().increment(SCRATCH).jump(BASE)
}

fn coredump(mailbox: &Mailbox, url: String) -> Answer {
    mailbox.call(Request::Coredump(CoredumpConfig {
        destination_url: url,
    }))
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn state(run: &Run) -> VmState {
    match run.mailbox.call(Request::Info) {
        Ok(Reply::Info(info)) => info.state,
        other => panic!("vm.info answers {other:?}"),
    }
}

fn end(run: Run) {
    run.mailbox.call(Request::ShutdownVmm).unwrap();
    run.wait().unwrap();
}

/// A core, read without the code that wrote it.
struct Core(Vec<u8>);

impl Core {
    fn read(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    fn number<const LEN: usize>(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let at = at as usize;
        bytes[..LEN].copy_from_slice(&self.0[at..at + LEN]);
        u64::from_le_bytes(bytes)
    }

    /// Offset, physical address and length of each part of kind `kind`.
    fn parts(&self, kind: u64) -> Vec<[u64; 3]> {
        let headers = (0..self.number::<2>(56)).map(|index| 64 + 56 * index);
        headers
            .filter(|at| self.number::<4>(*at) == kind)
            .map(|at| [8, 24, 32].map(|field| self.number::<8>(at + field)))
            .collect()
    }

    /// The notes of that name, without their headers.
    fn notes(&self, name: &[u8; 4]) -> Vec<&[u8]> {
        let [start, _, len] = self.parts(4)[0];
        let mut at = start;
        let mut found = Vec::new();
        while at < start + len {
            let len = self.number::<4>(at + 4);
            let note = &self.0[at as usize..][..20 + len as usize];
            if note[12..16] == *name {
                found.push(&note[20..]);
            }
            at += note.len() as u64;
        }
        found
    }

    /// The 32 bits at physical `address`.
    fn word(&self, address: u32) -> u32 {
        let address = u64::from(address);
        let parts = self.parts(1);
        let part = parts
            .iter()
            .find(|[_, start, len]| (*start..start + len).contains(&address));
        let [offset, start, _] = part.expect("the address is memory");
        self.number::<4>(offset + address - start) as u32
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn core_of_a_running_guest_has_its_memory_and_registers_and_the_guest_goes_on() {
    let mut setup = Setup::new(counter());
    setup.config.cpus.boot_vcpus = 2;
    setup.config.cpus.max_vcpus = 2;
    let mut run = setup.start();
    let code = counter().raw();
    assert_eq!(code.len() as u32, COUNTER_LEN);
    let mut counts = Vec::new();
    for name in ["first", "second"] {
        let path = setup.path(name);
        eventually("a core of a guest that counts", || {
            let _ = fs::remove_file(&path);
            assert_eq!(coredump(&run.mailbox, url(&path)), Ok(Reply::Done));
            let count = Core::read(&path).word(SCRATCH);
            count > counts.last().copied().unwrap_or(0)
        });
        let core = Core::read(&path);
        counts.push(core.word(SCRATCH));
        let words = code.chunks_exact(4).zip((BASE..).step_by(4));
        for (expected, address) in words {
            assert_eq!(core.word(address).to_le_bytes(), expected);
        }
        let memory: u64 = core.parts(1).iter().map(|[_, _, len]| len).sum();
        assert_eq!(memory, 16 << 20);
        let (common, qemu) = (core.notes(b"CORE"), core.notes(b"QEMU"));
        assert_eq!((common.len(), qemu.len()), (2, 2));
        let rip = u64_at(common[0], 112 + 8 * 16);
        let inside = u64::from(BASE)..u64::from(BASE + COUNTER_LEN);
        assert!(inside.contains(&rip), "{rip:#x}");
        assert_eq!(u64_at(qemu[0], 8 + 8 * 16), rip);
        assert_eq!(u64_at(qemu[0], 392) & 1, 1, "CR0.PE");
        // The other vCPU was not started.
        assert_eq!(u64_at(common[1], 112 + 8 * 16), 0xfff0);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions(), Permissions::from_mode(0o100_600));
        assert!(metadata.blocks() * 512 < 2 << 20, "{}", metadata.blocks());
    }
    assert_eq!(state(&run), VmState::Running);
    let events = run.events();
    let round = [
        "vm coredumping",
        "vm pausing",
        "vm paused",
        "vm resuming",
        "vm resumed",
        "vm coredumped",
    ];
    assert_eq!(events[3..9], round);
    end(run);
}

#[test]
fn core_of_a_paused_guest_leaves_it_paused() {
    let setup = Setup::new(counter());
    let mut run = setup.start();
    run.mailbox.call(Request::Pause).unwrap();
    let paths = [setup.path("first"), setup.path("second")];
    run.events();
    for path in &paths {
        assert_eq!(coredump(&run.mailbox, url(path)), Ok(Reply::Done));
    }
    assert_eq!(state(&run), VmState::Paused);
    let one = ["vm coredumping", "vm coredumped"];
    assert_eq!(run.events(), [one, one].concat());
    // Nothing has changed in between.
    let [first, second] = paths.map(|path| fs::read(path).unwrap());
    assert!(first == second);
    run.mailbox.call(Request::Resume).unwrap();
    end(run);
}

#[test]
fn core_that_cannot_be_made_is_refused_and_nothing_is_changed() {
    let setup = Setup::new(counter());
    let mut run = setup.start();
    let there = setup.path("there");
    fs::write(&there, "mine").unwrap();
    run.mailbox.call(Request::Info).unwrap();
    run.events();
    for bad in [
        url(&there),
        url(&setup.path("missing/core")),
        "core".to_owned(),
        "http://host/core".to_owned(),
    ] {
        let error = coredump(&run.mailbox, bad.clone()).unwrap_err();
        assert_eq!(error.status(), 400, "{error:?}");
        let named = format!("destination_url {bad:?}");
        assert!(error.messages()[1].starts_with(&named), "{error:?}");
    }
    assert_eq!(fs::read(&there).unwrap(), b"mine");
    assert_eq!(run.events(), Vec::<String>::new());
    end(run);
}

#[test]
fn core_needs_a_machine_that_was_booted() {
    let verb = "vm.coredump";
    let setup = Setup::new(counter());
    let run = setup.serve(None);
    let path = setup.path("core");
    let without = coredump(&run.mailbox, url(&path));
    assert_eq!(without, Err(ApiError::NotCreated { verb }));
    run.mailbox.call(setup.create()).unwrap();
    let before = coredump(&run.mailbox, url(&path)).unwrap_err();
    assert_eq!(before.status(), 405);
    assert!(!path.exists());
    end(run);
}

#[test]
fn core_has_memory_that_was_added_and_no_room_for_more() {
    const BOOT: u64 = 16 << 20;
    const ADDED: u64 = 128 << 20;
    for (method, desired, expected) in [
        (HotplugMethod::Acpi, BOOT, BOOT),
        (HotplugMethod::Acpi, BOOT + ADDED, BOOT + ADDED),
        // The guest does not plug what it is offered.
        (HotplugMethod::VirtioMem, BOOT + ADDED, BOOT),
    ] {
        let mut setup = Setup::new(counter());
        setup.config.memory.hotplug_method = method;
        setup.config.memory.hotplug_size = Some(ByteSize::mib(256));
        let run = setup.start();
        let resized = run.mailbox.call(Request::Resize(ResizeConfig {
            desired_ram: Some(desired),
            ..Default::default()
        }));
        assert_eq!(resized, Ok(Reply::Done));
        let path = setup.path("core");
        coredump(&run.mailbox, url(&path)).unwrap();
        let parts = Core::read(&path).parts(1);
        let memory: u64 = parts.iter().map(|[_, _, len]| len).sum();
        assert_eq!(memory, expected, "{method:?}");
        end(run);
    }
}

/// Puts a file system of `size` bytes at `folder`, for the calling thread and those that it starts.
fn mount_small_disk(folder: &Path, size: u32) {
    fs::create_dir(folder).unwrap();
    let folder = folder.to_str().unwrap();
    // SAFETY: the call takes no pointer, and changes what the calling thread alone sees.
    #[expect(unsafe_code)]
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "a mount namespace needs root");
    let mount = |arguments: &[&str]| {
        let status = Command::new("mount").args(arguments).status();
        assert!(status.unwrap().success(), "mount {arguments:?}");
    };
    // What is mounted here stays here.
    mount(&["--make-rprivate", "/"]);
    mount(&[
        "-t",
        "tmpfs",
        "-o",
        &format!("size={size}"),
        "tmpfs",
        folder,
    ]);
}

#[test]
fn disk_that_is_full_fails_the_core_and_leaves_no_part_of_it() {
    let setup = Setup::new(counter());
    thread::scope(|scope| {
        scope.spawn(|| {
            let folder = setup.path("small");
            mount_small_disk(&folder, 8192);
            let mut run = setup.start();
            run.mailbox.call(Request::Info).unwrap();
            run.events();
            let error = coredump(&run.mailbox, url(&folder.join("core"))).unwrap_err();
            assert_eq!(error.status(), 500, "{error:?}");
            let messages = error.messages().join(": ");
            assert!(messages.contains("small/core"), "{messages}");
            assert!(messages.contains("No space left"), "{messages}");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            assert_eq!(state(&run), VmState::Running);
            assert_eq!(run.events().last().unwrap(), "vm resumed");
            end(run);
        });
    });
}
