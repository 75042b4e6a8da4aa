//! What the VMM makes of a process that says anything. `vmm/tests/boot_disk.rs` has the real one.

use std::thread;

use devices::virtio::block::FileDisk;

use super::*;
use crate::boot_disk::messages;

const LIMITS: Limits = Limits {
    kernel: 1000,
    initrd: 1000,
};

/// What comes of a reading whose other end does `act`.
fn heard(act: impl FnOnce(UnixStream) + Send + 'static) -> Result<Booted, String> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let disk = FileDisk::new(file, true).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let other = thread::spawn(move || act(theirs));
    let mut talk = Talk {
        socket: &ours,
        left: Duration::from_millis(300),
    };
    let result = listen(&mut talk, &disk, LIMITS);
    drop(ours);
    other.join().unwrap();
    result.map_err(|error| match error {
        Unheard::Gone => "gone".to_owned(),
        Unheard::Known(error) => error.to_string(),
    })
}

fn said(
    say: impl FnOnce(&mut UnixStream) -> io::Result<()> + Send + 'static,
) -> Result<Booted, String> {
    heard(move |mut socket| {
        // The VMM may have heard enough.
        let _ = say(&mut socket);
    })
}

fn text(file: File) -> String {
    io::read_to_string(file).unwrap()
}

#[test]
fn kernel_initrd_and_command_line_are_taken() {
    let booted = said(|to| {
        messages::ask(to, 4000, 96)?;
        let mut answer = [1; 97];
        to.read_exact(&mut answer)?;
        assert_eq!(answer, [0; 97]);
        messages::kernel(to, b"ker")?;
        messages::kernel(to, b"nel")?;
        messages::initrd(to, b"initrd")?;
        messages::done(to, "an\nentry", " root=/dev/vda ")
    });
    let booted = booted.unwrap();
    assert_eq!(booted.title, "an\u{fffd}entry");
    assert_eq!(booted.cmdline, "root=/dev/vda");
    assert_eq!(text(booted.kernel), "kernel");
    assert_eq!(text(booted.initramfs.unwrap()), "initrd");
}

#[test]
fn more_than_the_guest_can_hold_is_not_taken() {
    let kernel = said(|to| messages::kernel(to, &[0; 1001]));
    let initrd = said(|to| {
        messages::initrd(to, &[0; 1000])?;
        messages::initrd(to, &[0])
    });
    for result in [kernel, initrd] {
        assert!(
            result
                .unwrap_err()
                .contains("gives more than was asked for")
        );
    }
}

#[test]
fn bytes_beyond_the_disk_are_not_given() {
    for (offset, len) in [(4096, 1), (0, 4097), (u64::MAX, 2)] {
        let error = said(move |to| messages::ask(to, offset, len)).unwrap_err();
        assert!(
            error.contains("asks for what is not on the disk"),
            "{error}"
        );
    }
}

#[test]
fn nonsense_is_not_understood() {
    for bytes in [
        &[9, 0, 0, 0, 0][..],
        &[2, 0xff, 0xff, 0xff, 0xff],
        &[1, 1, 0, 0, 0, 7],
        &[5, 1, 0, 0, 0, 0xff],
    ] {
        let bytes = bytes.to_vec();
        let error = said(move |to| to.write_all(&bytes)).unwrap_err();
        assert!(error.contains("says what cannot be understood"), "{error}");
    }
}

#[test]
fn command_line_with_control_characters_or_without_end_is_refused() {
    for cmdline in [
        "root=/dev/vda\nx".to_owned(),
        "a\0b".to_owned(),
        "x".repeat(4097),
    ] {
        let error = said(move |to| {
            messages::kernel(to, b"k")?;
            messages::done(to, "e", &cmdline)
        });
        let error = error.unwrap_err();
        assert!(
            error.contains("expected at most 4096 bytes of text"),
            "{error}"
        );
    }
}

#[test]
fn kernel_without_bytes_is_refused() {
    let error = said(|to| messages::done(to, "e", "ro")).unwrap_err();
    assert_eq!(error, "the kernel of entry \"e\" is empty");
}

#[test]
fn silence_ends_in_time() {
    let silent = heard(|mut socket| {
        let _ = socket.read(&mut [0]);
    });
    assert!(silent.unwrap_err().contains("was not read within"));
    // One that asks without listening to the answers.
    let deaf = heard(
        |mut socket| {
            while messages::ask(&mut socket, 0, 4096).is_ok() {}
        },
    );
    assert!(deaf.unwrap_err().contains("was not read within"));
}

#[test]
fn end_of_the_process_is_noticed() {
    assert_eq!(said(|_| Ok(())).unwrap_err(), "gone");
}

#[test]
fn reason_of_a_refusal_is_one_line() {
    let error = said(|to| messages::failed(to, "it is\x1b[31m\nXFS")).unwrap_err();
    assert_eq!(error, "it is\u{fffd}[31m\u{fffd}XFS");
}
