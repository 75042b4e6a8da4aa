//! The binary itself: its exit status and its answer to signals.

use std::os::fd::AsRawFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use api::client::Client;
use api::request::VmState;

use crate::code::{BASE, Code};
use crate::guest::{Setup, eventually};

/// The binary with the guest's serial port on standard output.
fn podvisor(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podvisor"));
    command
        .arg("--kernel")
        .arg(setup.path("kernel"))
        .args(["--memory", "size=16M"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn status(code: Code, arguments: &[&str]) -> (i32, String) {
    let output = podvisor(&Setup::new(code), arguments).output().unwrap();
    told(&output)
}

fn told(output: &Output) -> (i32, String) {
    let code = output.status.code().expect("no signal ends the process");
    (code, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Starts the binary, and waits for the guest's first output in a file.
fn start(setup: &Setup, arguments: &[&str]) -> Child {
    let serial = format!("file={}", setup.path("serial").display());
    let arguments = [&["--serial", &serial], arguments].concat();
    let child = podvisor(setup, &arguments).spawn().unwrap();
    eventually("the guest's start", || {
        std::fs::read(setup.path("serial")).is_ok_and(|bytes| !bytes.is_empty())
    });
    child
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: the process is a child that was not waited for, so the number is still its own.
    #[expect(unsafe_code)]
    let result = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(result, 0);
}

/// Says that it is there, then turns itself off when the power button is pressed.
fn obedient() -> Code {
    let code = Code::new().print(".");
    let wait = code.here();
    code.load_eax(0xf810_0000)
        .test_eax(1)
        .jump_if_zero(wait)
        .power_off()
}

/// Says that it is there, and nothing else.
fn deaf() -> Code {
    Code::new().print(".").stop()
}

#[test]
fn guest_power_off_is_status_0_and_its_output_is_on_standard_output() {
    let setup = Setup::new(Code::new().print("hello").power_off());
    let output = podvisor(&setup, &["--serial", "tty"]).output().unwrap();
    assert_eq!(told(&output), (0, String::new()));
    assert_eq!(output.stdout, b"hello");
}

#[test]
fn guest_panic_is_status_3() {
    let told = status(Code::new().out(0x505, 1).stop(), &[]);
    let message = "podvisor: the guest's kernel panicked\n";
    assert_eq!(told, (3, message.to_owned()));
}

#[test]
fn file_that_is_no_kernel_is_status_2_and_named() {
    let setup = Setup::new(Code::new());
    std::fs::write(setup.path("kernel"), "#!/bin/sh\n").unwrap();
    let (status, message) = told(&podvisor(&setup, &[]).output().unwrap());
    assert_eq!(status, 2, "{message}");
    assert!(message.contains("--kernel"), "{message}");
    assert!(message.contains("script"), "{message}");
}

#[test]
fn missing_disk_is_status_2() {
    let (status, message) = status(deaf(), &["--disk", "path=/nowhere/disk.img"]);
    assert_eq!(status, 2, "{message}");
    assert!(message.contains("/nowhere/disk.img"), "{message}");
}

#[test]
fn vcpu_that_cannot_go_on_is_status_1() {
    let (status, message) = status(Code::new().jump(0xd000_0000), &[]);
    assert_eq!(status, 1, "{message}");
    assert!(message.contains("RIP 0xd0000000"), "{message}");
}

#[test]
fn write_beyond_the_file_limit_ends_no_process() {
    let setup = Setup::new(obedient());
    let mut child = start(&setup, &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_ne!(ignored & 1 << (libc::SIGXFSZ - 1), 0, "{ignored:#x}");
    signal(&child, libc::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn sigterm_and_sigint_press_the_power_button() {
    for number in [libc::SIGTERM, libc::SIGINT] {
        let setup = Setup::new(obedient());
        let child = start(&setup, &[]);
        signal(&child, number);
        assert_eq!(told(&child.wait_with_output().unwrap()), (0, String::new()));
    }
}

#[test]
fn guest_that_does_not_listen_is_ended_after_the_timeout() {
    let setup = Setup::new(deaf());
    let child = start(&setup, &["--shutdown-timeout", "1"]);
    let pressed = Instant::now();
    signal(&child, libc::SIGTERM);
    let (status, message) = told(&child.wait_with_output().unwrap());
    assert_eq!(status, 1, "{message}");
    assert!(
        message.contains("within 1 s of the power button"),
        "{message}"
    );
    assert!(pressed.elapsed() >= Duration::from_secs(1));
}

#[test]
fn second_signal_ends_the_machine_now() {
    let setup = Setup::new(deaf());
    let child = start(&setup, &[]);
    signal(&child, libc::SIGTERM);
    // Signals that come at once are one.
    signal(&child, libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    let pressed = Instant::now();
    signal(&child, libc::SIGTERM);
    let (status, message) = told(&child.wait_with_output().unwrap());
    assert_eq!(status, 1, "{message}");
    assert!(message.contains("second signal"), "{message}");
    assert!(pressed.elapsed() < Duration::from_secs(10));
}

#[test]
fn reader_that_does_not_read_does_not_keep_the_machine() {
    let code = Code::new();
    let begin = code.here();
    let setup = Setup::new(code.print("................").jump(begin));
    let mut child = podvisor(&setup, &["--serial", "tty"]).spawn().unwrap();
    let pipe = child.stdout.as_ref().unwrap().as_raw_fd();
    // SAFETY: the call takes no pointer.
    #[expect(unsafe_code)]
    let page = unsafe { libc::fcntl(pipe, libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(page, 4096);
    eventually("a full pipe", || {
        let mut waiting: libc::c_int = 0;
        // SAFETY: the call writes one integer, for which there is a place.
        #[expect(unsafe_code)]
        let result = unsafe { libc::ioctl(pipe, libc::FIONREAD, &raw mut waiting) };
        assert_eq!(result, 0);
        waiting >= 3 << 10
    });
    // More than the rest of the page.
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, libc::SIGTERM);
    // Two at once would be one.
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, libc::SIGINT);
    let pressed = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(pressed.elapsed() < Duration::from_secs(10));
}

#[test]
fn flood_of_resets_leaves_room_for_a_signal() {
    let setup = Setup::new(Code::new().print(".").out(0x64, 0xfe).jump(BASE));
    let child = start(&setup, &[]);
    signal(&child, libc::SIGTERM);
    // A reset after the signal is the end.
    let (status, message) = told(&child.wait_with_output().unwrap());
    assert_eq!(status, 0, "{message}");
}

#[test]
fn signal_ends_the_process_when_its_machine_is_ended_by_a_request() {
    let setup = Setup::new(deaf());
    let socket = setup.path("api");
    let api = format!("path={}", socket.display());
    let child = start(&setup, &["--api-socket", &api]);
    let client = Client::new(&socket);
    client.put("vm.pause").unwrap();
    signal(&child, libc::SIGTERM);
    // The power button is pressed by then, which takes a guest that runs.
    eventually("the signal", || {
        client.info().unwrap().state == VmState::Running
    });
    client.put("vm.shutdown").unwrap();
    let (status, message) = told(&child.wait_with_output().unwrap());
    assert_eq!(status, 0, "{message}");
}
