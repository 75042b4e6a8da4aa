mod ptys;
mod sockets;

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use devices::bus::BusDevice;
use devices::legacy::{RECEIVE_FIFO_SIZE, SerialLine};
use devices::virtio::console::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::output::{CAPACITY, REPLAY};
use super::*;
use crate::terminal::tests::{is_raw, one_at_a_time, open_pty};

fn interrupt() -> InterruptLine {
    InterruptLine::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

/// What is to be opened: a line of `kind`, of which `path` is what the mode needs.
fn request(kind: Kind, mode: ConsoleOutputMode, path: Option<&Path>) -> LineRequest<'_> {
    LineRequest {
        option: "--serial ",
        what: "the serial port",
        thread: "serial",
        kind,
        mode,
        file: path.filter(|_| mode == ConsoleOutputMode::File),
        socket: path.filter(|_| mode == ConsoleOutputMode::Socket),
    }
}

fn config(mode: ConsoleOutputMode, path: Option<&Path>) -> LineRequest<'_> {
    request(Kind::Console, mode, path)
}

fn open(mode: ConsoleOutputMode, path: Option<&Path>) -> HostLine {
    HostLine::open(&config(mode, path)).unwrap().unwrap()
}

fn started(host: HostLine) -> HostLine {
    host.start(Box::new(|_| ())).unwrap();
    host
}

fn on_streams(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> HostLine {
    let endpoint = Endpoint::streams(input.into(), output.into()).unwrap();
    HostLine::new(&config(ConsoleOutputMode::Tty, None), "tty", Some(endpoint)).unwrap()
}

/// A running host side with pipes for standard input and output.
fn on_pipes() -> (HostLine, PipeWriter, PipeReader) {
    let (input, typed) = pipe().unwrap();
    let (shown, output) = pipe().unwrap();
    (started(on_streams(input, output)), typed, shown)
}

fn send(port: &mut SerialPort, bytes: &[u8]) {
    for byte in bytes {
        port.write(0, &[*byte]);
    }
}

fn register(port: &mut SerialPort, offset: u64) -> u8 {
    let mut data = [0xff];
    port.read(offset, &mut data);
    data[0]
}

/// Reads `len` bytes as a guest that polls.
fn receive(port: &mut SerialPort, len: usize) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut received = Vec::new();
    while received.len() < len {
        assert!(Instant::now() < deadline, "{} bytes came", received.len());
        if register(port, 5) & 1 != 0 {
            received.push(register(port, 0));
        } else {
            thread::yield_now();
        }
    }
    received
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn read_exactly(mut from: impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

/// CPU time that the serial thread takes while nothing happens for 300 ms.
fn idle_cpu_time(host: &HostLine) -> Duration {
    let thread = host.stage().thread.as_ref().unwrap().as_pthread_t();
    let now = || {
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the thread was not joined, and both results have a place.
        #[allow(unsafe_code)]
        unsafe {
            assert_eq!(libc::pthread_getcpuclockid(thread, &mut clock), 0);
            assert_eq!(libc::clock_gettime(clock, &mut time), 0);
        }
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    thread::sleep(Duration::from_millis(100));
    let before = now();
    thread::sleep(Duration::from_millis(300));
    now() - before
}

const IDLE: Duration = Duration::from_millis(30);

#[test]
fn mode_off_has_no_serial_port() {
    let host = HostLine::open(&config(ConsoleOutputMode::Off, None)).unwrap();
    assert!(host.is_none());
}

#[test]
fn mode_null_takes_any_output_without_a_thread() {
    let host = started(open(ConsoleOutputMode::Null, None));
    assert!(host.stage().thread.is_none());
    let mut port = host.serial_port(interrupt());
    send(&mut port, &pattern(2 * CAPACITY));
    assert_eq!(host.output.len(), 0);
    host.finish();
}

#[test]
fn file_is_emptied_and_holds_all_output_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    fs::write(&path, "of an earlier run").unwrap();
    let host = started(open(ConsoleOutputMode::File, Some(&path)));
    let bytes = pattern(3 * CAPACITY);
    send(&mut host.serial_port(interrupt()), &bytes);
    host.finish();
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn file_that_cannot_be_opened_is_named_in_the_error() {
    let path = Path::new("/nonexistent/console");
    let error = HostLine::open(&config(ConsoleOutputMode::File, Some(path)))
        .err()
        .unwrap();
    assert!(error.is_configuration());
    let text = error.to_string();
    assert_eq!(
        text,
        "--serial file=/nonexistent/console: cannot open it for writing"
    );
}

#[test]
fn mode_without_its_path_is_refused() {
    for (mode, expected) in [
        (ConsoleOutputMode::File, "file=PATH"),
        (ConsoleOutputMode::Socket, "socket=PATH"),
    ] {
        let error = HostLine::open(&config(mode, None)).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn output_that_was_not_read_before_the_end_is_in_the_pipe() {
    let (host, _typed, mut shown) = on_pipes();
    send(&mut host.serial_port(interrupt()), b"Power down.\n");
    host.finish();
    drop(host);
    let mut text = String::new();
    shown.read_to_string(&mut text).unwrap();
    assert_eq!(text, "Power down.\n");
}

#[test]
fn panic_flush_writes_out_what_was_sent() {
    let (host, _typed, shown) = on_pipes();
    let flush = host.flush_on_panic();
    send(&mut host.serial_port(interrupt()), b"last words");
    flush();
    assert_eq!(read_exactly(shown, 10), b"last words");
}

#[test]
fn guest_waits_for_a_slow_reader_and_loses_nothing() {
    let (host, _typed, shown) = on_pipes();
    let mut port = host.serial_port(interrupt());
    let bytes = pattern(3 * CAPACITY);
    let (done, is_done) = mpsc::channel();
    let guest = {
        let bytes = bytes.clone();
        thread::spawn(move || {
            send(&mut port, &bytes);
            done.send(()).unwrap();
        })
    };
    assert!(is_done.recv_timeout(Duration::from_millis(500)).is_err());
    let read = thread::spawn(move || read_exactly(shown, 3 * CAPACITY));
    guest.join().unwrap();
    host.finish();
    assert!(read.join().unwrap() == bytes);
}

#[test]
fn paused_guest_does_not_wait_for_room() {
    let (host, _typed, shown) = on_pipes();
    host.pause();
    let mut port = host.serial_port(interrupt());
    let start = Instant::now();
    send(&mut port, &pattern(CAPACITY + (1 << 20)));
    // One wait takes a tenth of a second, and there would be one for each byte.
    assert!(start.elapsed() < Duration::from_secs(8));
    drop(shown);
    host.finish();
}

#[test]
fn pause_wakes_a_guest_that_waits() {
    let line = Arc::new(Output::new(Kind::Console).unwrap());
    line.set_connected(true);
    let port = PortEnd::new(&line);
    for byte in pattern(CAPACITY) {
        SerialLine::transmit(&port, byte);
    }
    let start = Instant::now();
    port.wait_for_room();
    assert!(start.elapsed() >= Duration::from_millis(90));
    line.set_paused(true);
    let start = Instant::now();
    (0..100).for_each(|_| port.wait_for_room());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn flood_without_a_reader_holds_no_more_than_the_capacity() {
    let line = Arc::new(Output::new(Kind::Console).unwrap());
    let port = PortEnd::new(&line);
    let bytes = pattern(3 * CAPACITY);
    for byte in &bytes {
        port.wait_for_room();
        SerialLine::transmit(&port, *byte);
    }
    let mut kept = Vec::new();
    line.take(&mut kept, usize::MAX);
    assert!(kept == bytes[2 * CAPACITY..]);
}

#[test]
fn burst_is_written_in_few_calls() {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for two descriptors, which are new.
    #[allow(unsafe_code)]
    let (shown, output) = unsafe {
        let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr());
        assert_eq!(made, 0);
        (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    let host = started(on_streams(File::open("/dev/null").unwrap(), output));
    let start = Instant::now();
    send(&mut host.serial_port(interrupt()), &pattern(2000));
    host.finish();
    let millis = start.elapsed().as_millis();
    drop(host);
    let (mut calls, mut bytes) = (0, 0);
    let mut packet = [0; 8192];
    while let Ok(count @ 1..) = (&shown).read(&mut packet) {
        calls += 1;
        bytes += count;
    }
    assert_eq!(bytes, 2000);
    assert!(calls <= millis + 2, "{calls} calls in {millis} ms");
}

#[test]
fn end_does_not_wait_for_ever_for_a_reader_that_is_stuck() {
    let (host, _typed, _shown) = on_pipes();
    send(&mut host.serial_port(interrupt()), &pattern(CAPACITY));
    let start = Instant::now();
    host.finish();
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[test]
fn output_to_a_reader_that_is_gone_is_thrown_away() {
    let (host, _typed, shown) = on_pipes();
    drop(shown);
    send(&mut host.serial_port(interrupt()), &pattern(2 * CAPACITY));
    assert!(idle_cpu_time(&host) < IDLE);
    host.finish();
}

#[test]
fn output_to_a_full_device_is_thrown_away() {
    let path = Path::new("/dev/full");
    let host = started(open(ConsoleOutputMode::File, Some(path)));
    send(&mut host.serial_port(interrupt()), &pattern(2 * CAPACITY));
    host.finish();
    assert_eq!(host.output.len(), 0);
}

#[test]
fn large_paste_reaches_the_guest_whole() {
    let (host, mut typed, _shown) = on_pipes();
    let mut port = host.serial_port(interrupt());
    let bytes = pattern(100_000);
    let paste = {
        let bytes = bytes.clone();
        thread::spawn(move || typed.write_all(&bytes).unwrap())
    };
    assert!(receive(&mut port, bytes.len()) == bytes);
    paste.join().unwrap();
}

#[test]
fn input_waits_in_the_pipe_while_the_guest_reads_nothing() {
    let (host, mut typed, _shown) = on_pipes();
    let mut port = host.serial_port(interrupt());
    typed.write_all(&pattern(20_000)).unwrap();
    assert!(idle_cpu_time(&host) < IDLE);
    assert_eq!(receive(&mut port, 20_000), pattern(20_000));
}

#[test]
fn end_of_input_is_not_polled_again() {
    let (host, typed, shown) = on_pipes();
    drop(typed);
    assert!(idle_cpu_time(&host) < IDLE);
    send(&mut host.serial_port(interrupt()), b"still here");
    assert_eq!(read_exactly(shown, 10), b"still here");
}

#[test]
fn paused_guest_gets_no_input_until_it_resumes() {
    let (host, mut typed, _shown) = on_pipes();
    let mut port = host.serial_port(interrupt());
    host.pause();
    typed.write_all(b"x").unwrap();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(register(&mut port, 5) & 1, 0);
    host.resume();
    assert_eq!(receive(&mut port, 1), b"x");
}

#[test]
fn rebuilt_machine_takes_the_line_over() {
    let (host, mut typed, shown) = on_pipes();
    let mut old = host.serial_port(interrupt());
    send(&mut old, b"1");
    let mut new = host.serial_port(interrupt());
    send(&mut old, b"old");
    send(&mut new, b"2");
    assert_eq!(read_exactly(shown, 2), b"12");
    typed.write_all(b"y").unwrap();
    assert_eq!(receive(&mut new, 1), b"y");
    assert_eq!(register(&mut old, 5) & 1, 0);
}

#[test]
fn input_before_there_is_a_machine_is_kept() {
    let (host, mut typed, _shown) = on_pipes();
    typed.write_all(b"early").unwrap();
    thread::sleep(Duration::from_millis(20));
    let mut port = host.serial_port(interrupt());
    assert_eq!(receive(&mut port, 5), b"early");
}

#[test]
fn raw_terminal_has_an_escape_key_even_if_the_guest_reads_nothing() {
    let _lock = one_at_a_time();
    let (mut user, slave) = open_pty();
    let terminal = slave.try_clone().unwrap();
    let host = on_streams(slave.try_clone().unwrap(), slave);
    let (actions, asked) = mpsc::channel();
    host.start(Box::new(move |action| actions.send(action).unwrap()))
        .unwrap();
    assert!(is_raw(&terminal));
    let mut port = host.serial_port(interrupt());
    user.write_all(&[b'z'; 4 * RECEIVE_FIFO_SIZE]).unwrap();
    user.write_all(b"\x01p\x01x\x01h\x01\x01\x03").unwrap();
    let wait = Duration::from_secs(10);
    assert_eq!(asked.recv_timeout(wait), Ok(EscapeAction::PowerButton));
    assert_eq!(asked.recv_timeout(wait), Ok(EscapeAction::Quit));
    let help = read_exactly(&user, crate::terminal::HELP.len());
    assert!(help.windows(8).any(|part| part == b"Ctrl-A x"));
    let typed = receive(&mut port, 4 * RECEIVE_FIFO_SIZE + 2);
    assert!(typed.ends_with(b"z\x01\x03"));
    host.finish();
    assert!(!is_raw(&terminal));
}

#[test]
fn input_that_is_no_terminal_has_no_escape_key() {
    let (host, mut typed, _shown) = on_pipes();
    let mut port = host.serial_port(interrupt());
    typed.write_all(b"\x01x").unwrap();
    assert_eq!(receive(&mut port, 2), b"\x01x");
}

#[test]
fn end_does_not_wait_for_a_client_that_is_not_there() {
    let host = started(open(ConsoleOutputMode::Pty, None));
    send(&mut host.serial_port(interrupt()), &pattern(2 * CAPACITY));
    let start = Instant::now();
    host.finish();
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn next_client_of_a_socket_sees_the_last_output_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let mut port = host.serial_port(interrupt());
    let bytes = pattern(REPLAY + 1000);
    let first = UnixStream::connect(&path).unwrap();
    send(&mut port, &bytes);
    assert!(read_exactly(&first, bytes.len()) == bytes);
    drop(first);
    let second = UnixStream::connect(&path).unwrap();
    assert!(read_exactly(&second, REPLAY) == bytes[1000..]);
    send(&mut port, b"more");
    assert_eq!(read_exactly(&second, 4), b"more");
}

#[test]
fn client_that_left_in_the_middle_costs_the_next_one_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let mut port = host.serial_port(interrupt());
    let bytes = pattern(CAPACITY);
    send(&mut port, &bytes);
    let first = UnixStream::connect(&path).unwrap();
    read_exactly(&first, 10);
    drop(first);
    let second = UnixStream::connect(&path).unwrap();
    second
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut seen = Vec::new();
    let _ = (&second).read_to_end(&mut seen);
    assert!(
        seen.len() >= REPLAY && bytes.ends_with(&seen),
        "{} bytes",
        seen.len()
    );
}

/// A stream's line on a socket, its end towards a device that is not there, and the path.
fn stream(directory: &tempfile::TempDir) -> (HostLine, Arc<dyn PortLine>, PathBuf) {
    let path = directory.path().join("port");
    let request = request(Kind::Stream, ConsoleOutputMode::Socket, Some(&path));
    let host = started(HostLine::open(&request).unwrap().unwrap());
    let port = host.port();
    (host, port, path)
}

#[test]
fn stream_takes_nothing_while_nobody_is_there_and_forgets_with_its_client() {
    let directory = tempfile::tempdir().unwrap();
    let (host, port, path) = stream(&directory);
    assert_eq!(port.room(), 0);
    assert_eq!(port.client(), Client::default());
    let first = UnixStream::connect(&path).unwrap();
    until("the client is there", || port.room() == CAPACITY);
    assert!(port.client().present);
    port.transmit(b"for the first");
    assert_eq!(read_exactly(&first, 13), b"for the first");
    // More than its socket takes.
    let bytes = pattern(CAPACITY);
    for _ in 0..4 {
        let room = port.room().min(bytes.len());
        port.transmit(&bytes[..room]);
        thread::sleep(Duration::from_millis(10));
    }
    drop(first);
    until("the client is gone", || !port.client().present);
    assert_eq!(host.output.len(), 0);
    let second = UnixStream::connect(&path).unwrap();
    until("the next client is there", || port.room() == CAPACITY);
    let expected = Client {
        session: 2,
        present: true,
    };
    assert_eq!(port.client(), expected);
    port.transmit(b"for the second");
    assert_eq!(read_exactly(&second, 14), b"for the second");
}

#[test]
fn stream_that_is_not_read_fills_up_and_stops() {
    let directory = tempfile::tempdir().unwrap();
    let (host, port, path) = stream(&directory);
    let client = UnixStream::connect(&path).unwrap();
    until("the client is there", || port.room() > 0);
    let mut sent = 0;
    let mut since = Instant::now();
    // Longer than after which a console goes on without its reader.
    while since.elapsed() < Duration::from_millis(1500) {
        let room = port.room();
        if room > 0 {
            port.transmit(&pattern(room));
            sent += room;
            since = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert!(sent < 4 * CAPACITY, "{sent} bytes");
    assert!(idle_cpu_time(&host) < IDLE);
    read_exactly(&client, sent);
    assert_eq!(port.room(), CAPACITY);
}

#[test]
fn console_goes_on_without_a_client_that_reads_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let port = host.port();
    assert_eq!(port.room(), usize::MAX);
    let _client = UnixStream::connect(&path).unwrap();
    until("the client is there", || port.room() <= CAPACITY);
    let mut waited = false;
    until("the client counts as absent", || {
        let room = port.room();
        waited |= room == 0;
        if room <= CAPACITY {
            port.transmit(&pattern(room));
        }
        room == usize::MAX
    });
    assert!(waited);
    assert!(idle_cpu_time(&host) < IDLE);
}

#[test]
fn end_of_a_machine_before_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let (host, old, path) = stream(&directory);
    let client = UnixStream::connect(&path).unwrap();
    until("the client is there", || old.client().present);
    let new = host.port();
    assert!(!old.client().present);
    assert_eq!(old.room(), usize::MAX);
    old.transmit(b"old");
    new.transmit(b"new");
    assert_eq!(read_exactly(&client, 3), b"new");
}
