//! The virtio console, and ports between programs of the guest and of the host.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tests::{Guest, Shell, eventually};

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn connect(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Reads until `text` has come, and gives all that came.
fn read_until(mut stream: impl Read, text: &str) -> Result<String> {
    let start = Instant::now();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let seen_text = String::from_utf8_lossy(&seen);
        if seen_text.contains(text) {
            return Ok(seen_text.into_owned());
        }
        ensure!(start.elapsed() < LIMIT, "{text:?} is not in {seen_text:?}");
        let count = stream
            .read(&mut buffer)
            .with_context(|| format!("{text:?} is not in {seen_text:?}"))?;
        ensure!(count > 0, "{text:?} is not in {seen_text:?}");
        seen.extend(&buffer[..count]);
    }
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

/// A guest with a console, and a shell on it beside the one on the serial port.
fn with_console(mode: &str) -> Result<Shell> {
    let mut shell = Shell::start(Guest::new().args(&["--console", mode]).api())?;
    shell.run("setsid sh -c 'exec sh -i </dev/hvc0 >/dev/hvc0 2>&1' &")?;
    Ok(shell)
}

#[test]
fn console_on_a_socket_is_seen_again_by_its_next_client() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("console");
    let mut shell = with_console(&format!("socket={}", path.display()))?;
    let mut first = connect(&path)?;
    first.write_all(b"echo $((6 * 7)) is the answer\n")?;
    read_until(&first, "42 is the answer")?;
    drop(first);
    let mut second = connect(&path)?;
    read_until(&second, "42 is the answer")?;
    second.write_all(b"echo $((7 * 7)) is not\n")?;
    read_until(&second, "49 is not")?;

    // Its client stays over a pause, and over a reboot.
    let api = shell.vmm().api()?;
    api.done("vm.pause", None)?;
    second.write_all(b"echo $((8 * 8)) after a pause\n")?;
    api.done("vm.resume", None)?;
    read_until(&second, "64 after a pause")?;
    shell.vmm().send("reboot -f\n")?;
    shell.wait_for_boot()?;
    shell
        .vmm()
        .send("echo $((9 * 9)) after a reboot >/dev/hvc0\n")?;
    read_until(&second, "81 after a reboot")?;
    let counters = api.get("vm.counters")?.body;
    ensure!(
        counters["_console1"]["tx_bytes"].as_u64() > Some(10),
        "{counters}"
    );
    Ok(())
}

#[test]
fn console_on_a_pty_has_the_size_of_its_terminal() -> Result<()> {
    let mut shell = with_console("pty")?;
    let info = shell.vmm().api()?.get("vm.info")?.body;
    let path = info["config"]["console"]["file"]
        .as_str()
        .with_context(|| format!("the pseudo-terminal in {info}"))?
        .to_owned();
    let stty = |words: &[&str]| -> Result<()> {
        let status = Command::new("stty")
            .arg("-F")
            .arg(&path)
            .args(words)
            .status()?;
        ensure!(status.success(), "stty {words:?}");
        Ok(())
    };
    stty(&["rows", "43", "cols", "132"])?;
    let terminal = File::options().read(true).write(true).open(&path)?;
    (&terminal).write_all(b"echo I am $((1 + 1))\n")?;
    read_until(&terminal, "I am 2")?;
    shell.run_until("stty size </dev/hvc0", "43 132")?;
    stty(&["rows", "24", "cols", "80"])?;
    (&terminal).write_all(b"\n")?;
    shell.run_until("stty size </dev/hvc0", "24 80")?;
    Ok(())
}

/// A guest with the ports `names`, and the folder where their sockets have the same names.
fn with_ports(names: &[&str]) -> Result<(Shell, TempDir)> {
    let dir = tempfile::tempdir()?;
    let mut guest = Guest::new().tools()?.api();
    for name in names {
        let socket = dir.path().join(name);
        guest = guest
            .arg("--console-port")
            .arg(format!("name={name},socket={}", socket.display()));
    }
    Ok((Shell::start(guest)?, dir))
}

/// The device of the port `name` in the guest, which has no udev that would name it.
fn device(shell: &mut Shell, name: &str) -> Result<String> {
    let found = shell.run(&format!("grep -lx {name} /sys/class/virtio-ports/*/name"))?;
    let port = Path::new(&found).parent().and_then(Path::file_name);
    let port = port.with_context(|| format!("a port in {found}"))?;
    Ok(format!("/dev/{}", port.to_string_lossy()))
}

#[test]
fn port_carries_each_direction_whole() -> Result<()> {
    let (mut shell, dir) = with_ports(&["com.example.other", "com.example.data"])?;
    let port = device(&mut shell, "com.example.data")?;
    let mut stream = connect(&dir.path().join("com.example.data"))?;

    let sent = data(MIB, 1);
    shell.run(&format!(
        "(head -c {MIB} {port} | sha256sum >/tmp/received) & echo $! >/tmp/pid"
    ))?;
    stream.write_all(&sent)?;
    shell.run_until("cat /tmp/received", &sha256(&sent)?)?;

    let expected = shell.run(&format!(
        "head -c {MIB} /dev/urandom >/tmp/data; sha256sum </tmp/data; (cat /tmp/data >{port}) &"
    ))?;
    let mut back = vec![0; MIB];
    stream.read_exact(&mut back)?;
    assert_eq!(sha256(&back)?, expected);

    // What a reader of the guest sees of a client: its bytes, and its end.
    shell.run(&format!(
        "(exec 3<{port}; echo open >/tmp/state; cat <&3 >/tmp/text; echo over >>/tmp/text) &"
    ))?;
    shell.run_until("cat /tmp/state", "open")?;
    stream.write_all(b"to the end\n")?;
    drop(stream);
    shell.run_until("tr '\\n' , </tmp/text", "to the end,over,")?;

    // Nobody is there: the guest waits, and another port works meanwhile.
    shell.run(&format!("(echo kept >{port}; echo done >/tmp/written) &"))?;
    let other = device(&mut shell, "com.example.other")?;
    let stream = connect(&dir.path().join("com.example.other"))?;
    shell.run(&format!("echo other >{other}"))?;
    read_until(&stream, "other\n")?;
    shell.run("test ! -e /tmp/written")?;
    let stream = connect(&dir.path().join("com.example.data"))?;
    read_until(&stream, "kept\n")?;
    shell.run_until("cat /tmp/written", "done")?;
    Ok(())
}

/// One call of the guest's agent.
fn ask(stream: &UnixStream, call: &str) -> Result<String> {
    let mut writer = stream;
    writer.write_all(format!("{{\"execute\": \"{call}\"}}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

#[test]
fn guest_agent_of_qemu_answers_one_client_after_the_other() -> Result<()> {
    const NAME: &str = "org.qemu.guest_agent.0";
    let (mut shell, dir) = with_ports(&[NAME])?;
    let port = device(&mut shell, NAME)?;
    let socket: PathBuf = dir.path().join(NAME);
    shell.run(&format!(
        "tools qemu-ga -m virtio-serial -p {port} -t /tmp -f /tmp/qemu-ga.pid >/tmp/qemu-ga 2>&1 &"
    ))?;
    let first = connect(&socket)?;
    assert_eq!(ask(&first, "guest-ping")?, "{\"return\": {}}\n");
    let info = ask(&first, "guest-info")?;
    ensure!(info.contains("guest-fsfreeze-freeze"), "{info}");
    drop(first);
    // The agent looks for the next client once in a while.
    eventually("the agent answers again", || {
        let second = connect(&socket)?;
        second.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(ask(&second, "guest-ping").is_ok_and(|answer| answer == "{\"return\": {}}\n"))
    })?;
    Ok(())
}
