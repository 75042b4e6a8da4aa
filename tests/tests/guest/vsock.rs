//! Sockets between host and guest.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tests::api::Api;
use tests::{Guest, Shell, assets, eventually};

/// socat waits 60 s for the other direction once one has ended. With longer blocks it would wait for itself to empty a pipe
/// in which it finds only one free page.
const OPTIONS: &str = "-t 60 -b 4096";

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(60);

struct Setup {
    dir: TempDir,
    shell: Shell,
    api: Api,
}

impl Setup {
    /// A guest with the sockets, or one that gets them later.
    fn start(with: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut guest = Guest::new().kernel(assets::vmlinux()?).tools()?.api();
        if with {
            let value = format!("cid=3,socket={}", dir.path().join("vsock").display());
            guest = guest.arg("--vsock").arg(value);
        }
        let mut shell = Shell::start(guest)?;
        let api = shell.vmm().api()?;
        Ok(Self { dir, shell, api })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the guest echo what comes to `port`, one connection after the other.
    fn echo_in_guest(&mut self, port: u32) -> Result<()> {
        self.shell.run(&format!(
            "tools socat {OPTIONS} VSOCK-LISTEN:{port},fork PIPE >/tmp/socat 2>&1 &"
        ))?;
        // It listens once a connection to it is taken.
        let socket = self.path("vsock");
        eventually("the guest listens", || Ok(connect(&socket, port).is_ok()))
    }
}

/// A connection to `port` of the guest.
fn connect(socket: &Path, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte)? == 1 {
        line.push(byte[0]);
    }
    ensure!(line.starts_with(b"OK "), "{line:?}");
    Ok(stream)
}

/// Sends `data` and gives what came back by the end of the connection.
fn exchange(stream: UnixStream, data: &[u8]) -> Result<Vec<u8>> {
    let mut writer = stream.try_clone()?;
    let mut back = Vec::new();
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            writer.write_all(data)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        (&stream).read_to_end(&mut back)?;
        writing.join().expect("the writer does not panic")?;
        Ok(back)
    })
}

fn data(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

fn sha256(data: &[u8]) -> Result<String> {
    let mut command = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    command.stdin.take().context("stdin")?.write_all(data)?;
    let output = command.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn host_reaches_a_program_of_the_guest_over_many_connections() -> Result<()> {
    let mut setup = Setup::start(true)?;
    assert!(connect(&setup.path("vsock"), 9).is_err(), "nobody listens");
    setup.echo_in_guest(52)?;
    let socket = setup.path("vsock");
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let socket = &socket;
                scope.spawn(move || {
                    let sent = data(1 << 20, seed);
                    let back = exchange(connect(socket, 52)?, &sent)?;
                    ensure!(sha256(&back)? == sha256(&sent)?, "{} bytes", back.len());
                    Ok(())
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;

    // A connection is still there after a pause.
    let mut stream = connect(&socket, 52)?;
    setup.api.done("vm.pause", None)?;
    stream.write_all(b"sent during a pause")?;
    setup.api.done("vm.resume", None)?;
    let mut back = [0; 19];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"sent during a pause");
    drop(stream);
    eventually("all connections end", || {
        let counters = setup.api.get("vm.counters")?.body;
        Ok(counters["_vsock2"]["connections"] == 0)
    })?;
    setup.api.done("vmm.shutdown", None)?;
    setup.shell.into_vmm().wait()?;
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn guest_reaches_a_program_of_the_host() -> Result<()> {
    let mut setup = Setup::start(true)?;
    let refused = setup
        .shell
        .run("tools socat -u VSOCK-CONNECT:2:7000 STDOUT 2>&1 || true")?;
    assert!(refused.contains("reset by peer"), "{refused}");
    let listener = UnixListener::bind(setup.path("vsock_7000"))?;
    let echo = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        let mut buffer = vec![0; 65536];
        loop {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                return Ok(all);
            }
            stream.write_all(&buffer[..len])?;
            all.extend_from_slice(&buffer[..len]);
        }
    });
    setup.shell.run("head -c 4194304 /dev/urandom >/tmp/sent")?;
    setup.shell.run(&format!(
        "tools socat {OPTIONS} VSOCK-CONNECT:2:7000 STDIO </tmp/sent >/tmp/back"
    ))?;
    let sent = setup.shell.run("sha256sum </tmp/sent")?;
    let back = setup.shell.run("sha256sum </tmp/back")?;
    let received = echo.join().expect("the echo does not panic")?;
    assert_eq!(received.len(), 4 << 20);
    assert_eq!(sha256(&received)?, sent);
    assert_eq!(back, sent);
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}

#[test]
fn sockets_are_added_and_removed_while_the_guest_runs() -> Result<()> {
    let mut setup = Setup::start(false)?;
    let socket = setup.path("vsock");
    let body = json!({"cid": 7, "socket": socket, "id": "plugged"});
    setup.api.done("vm.add-vsock", Some(&body))?;
    setup.shell.run("modprobe vmw_vsock_virtio_transport")?;
    setup.echo_in_guest(52)?;
    let sent = data(100_000, 7);
    assert_eq!(exchange(connect(&socket, 52)?, &sent)?, sent);
    setup
        .api
        .done("vm.remove-device", Some(&json!({"id": "plugged"})))?;
    eventually("the socket is gone", || Ok(!socket.exists()))?;
    setup.api.done("vmm.shutdown", None)?;
    Ok(())
}
