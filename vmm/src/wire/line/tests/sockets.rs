//! Lines whose other end is a socket.

use super::*;

#[test]
fn socket_is_its_owners_alone_and_is_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    host.finish();
    assert!(!path.exists());
}

#[test]
fn socket_that_was_opened_but_never_started_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    drop(open(ConsoleOutputMode::Socket, Some(&path)));
    assert!(!path.exists());
}

#[test]
fn socket_client_gets_the_last_output_from_before_it_came() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let mut port = host.serial_port(interrupt());
    let bytes = pattern(2 * CAPACITY);
    send(&mut port, &bytes);
    let mut first = UnixStream::connect(&path).unwrap();
    assert!(read_exactly(&first, CAPACITY) == bytes[CAPACITY..]);
    first.write_all(b"hi").unwrap();
    assert_eq!(receive(&mut port, 2), b"hi");

    let second = UnixStream::connect(&path).unwrap();
    drop(first);
    until("the first client goes", || {
        send(&mut port, b".");
        second.set_nonblocking(true).unwrap();
        (&second).read(&mut [0; 64]).is_ok()
    });
    assert!(idle_cpu_time(&host) < IDLE);
}

#[test]
fn socket_client_that_leaves_at_once_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let bytes = pattern(10_000);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&bytes).unwrap();
    drop(client);
    let mut port = host.serial_port(interrupt());
    assert!(receive(&mut port, bytes.len()) == bytes);
    assert!(idle_cpu_time(&host) < IDLE);
}

#[test]
fn socket_client_that_only_reads_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    let host = started(open(ConsoleOutputMode::Socket, Some(&path)));
    let client = UnixStream::connect(&path).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(idle_cpu_time(&host) < IDLE);
    send(&mut host.serial_port(interrupt()), b"listen");
    assert_eq!(read_exactly(&client, 6), b"listen");
}

#[test]
fn stale_socket_is_replaced_and_live_one_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let host = open(ConsoleOutputMode::Socket, Some(&path));
    let error = HostLine::open(&config(ConsoleOutputMode::Socket, Some(&path)))
        .err()
        .unwrap();
    assert!(
        matches!(error.fault(), LineFault::SocketInUse { .. }),
        "{error}"
    );
    assert!(path.exists());
    drop(host);
}

#[test]
fn socket_path_that_is_a_file_or_too_long_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "precious").unwrap();
    let refuse = |path: &Path| {
        HostLine::open(&config(ConsoleOutputMode::Socket, Some(path)))
            .err()
            .unwrap()
    };
    assert!(matches!(
        refuse(&path).fault(),
        LineFault::NotASocket { .. }
    ));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let long = directory.path().join("x".repeat(120));
    assert!(matches!(
        refuse(&long).fault(),
        LineFault::SocketPathTooLong { max: 107, .. }
    ));
}
