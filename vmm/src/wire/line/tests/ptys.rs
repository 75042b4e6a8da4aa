//! Lines whose other end is a pty.

use super::*;

fn client_of(host: &HostLine) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(host.pty_path().unwrap())
        .unwrap()
}

#[test]
fn pty_is_raw_and_survives_its_clients() {
    let host = started(open(ConsoleOutputMode::Pty, None));
    let mut port = host.serial_port(interrupt());
    send(&mut port, b"before");
    assert!(idle_cpu_time(&host) < IDLE);
    for _ in 0..3 {
        let mut client = client_of(&host);
        assert!(is_raw(&client));
        assert_eq!(read_exactly(&client, 6), b"before");
        client.write_all(b"\x03\r\n").unwrap();
        assert_eq!(receive(&mut port, 3), b"\x03\r\n");
        drop(client);
        assert!(idle_cpu_time(&host) < IDLE);
        send(&mut port, b"before");
    }
}

#[test]
fn pty_client_that_leaves_at_once_is_heard() {
    let host = started(open(ConsoleOutputMode::Pty, None));
    let mut client = client_of(&host);
    client.write_all(b"reboot\n").unwrap();
    drop(client);
    let mut port = host.serial_port(interrupt());
    assert_eq!(receive(&mut port, 7), b"reboot\n");
    assert!(idle_cpu_time(&host) < IDLE);
}
