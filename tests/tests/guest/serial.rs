//! The serial port and what it is connected to.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result};
use tests::{Disk, Guest};

const ECHO: &str = "echo ready; read line; echo \"got <$line>\"";

#[test]
fn typed_text_reaches_the_guest() -> Result<()> {
    let mut guest = Guest::new().script(ECHO).start()?;
    guest.wait_for("ready\n")?;
    guest.send("hello\n")?;
    let output = guest.wait()?.output()?;
    assert!(output.contains("got <hello>"), "{output}");
    Ok(())
}

#[test]
fn long_input_arrives_whole() -> Result<()> {
    let mut guest = Guest::new()
        .script("stty -echo; echo ready; head -n 40 | sha256sum")
        .start()?;
    guest.wait_for("ready\n")?;
    let lines: String = (0..40)
        .map(|number| format!("line {number:060}\n"))
        .collect();
    guest.send(&lines)?;
    let output = guest.wait()?.output()?;
    let dir = Disk::new(0)?;
    fs::write(dir.path(), lines)?;
    let sum = Command::new("sha256sum")
        .stdin(fs::File::open(dir.path())?)
        .output()?;
    assert!(
        output.contains(String::from_utf8(sum.stdout)?.trim_end()),
        "{output}"
    );
    Ok(())
}

#[test]
fn no_output_is_lost_at_the_end() -> Result<()> {
    let output = Guest::new().script("seq 1 2000; echo last").output()?;
    let expected: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    assert_eq!(output, expected + "last");
    Ok(())
}

#[test]
fn output_goes_to_a_file() -> Result<()> {
    let files = Disk::new(0)?;
    let file = files.dir().join("serial.log");
    let finished = Guest::new()
        .serial(&format!("file={}", file.display()))
        .script("echo into the file")
        .run()?
        .expect_status(0)?;
    assert_eq!(finished.console, "");
    let text = fs::read_to_string(file)?;
    assert!(text.contains("into the file"), "{text}");
    Ok(())
}

#[test]
fn null_serial_prints_nothing() -> Result<()> {
    let finished = Guest::new()
        .serial("null")
        .script("echo unseen")
        .run()?
        .expect_status(0)?;
    assert_eq!(finished.console, "");
    Ok(())
}

#[test]
fn serial_off_gives_no_port() -> Result<()> {
    // With no port to print on, the guest leaves its findings on a disk.
    let disk = Disk::new(1 << 20)?;
    Guest::new()
        .serial("off")
        .disk(&disk, "")
        .script("grep -c 16550 /proc/tty/driver/serial | dd of=/dev/vda conv=fsync")
        .run()?
        .expect_status(0)?;
    assert_eq!(disk.read(0, 2)?, b"0\n");
    Ok(())
}

#[test]
fn socket_carries_both_ways() -> Result<()> {
    let files = Disk::new(0)?;
    let path = files.dir().join("serial.sock");
    let guest = Guest::new()
        .serial(&format!("socket={}", path.display()))
        .script(ECHO)
        .start()?;
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) if guest.count("task").is_ok() => {
                std::thread::sleep(std::time::Duration::from_millis(20))
            }
            Err(error) => return Err(error).context("the serial socket"),
        }
    };
    talk(stream)?;
    guest.wait()?.expect_status(0)?;
    Ok(())
}

#[test]
fn pty_carries_both_ways() -> Result<()> {
    let guest = Guest::new().serial("pty").arg("-v").script(ECHO).start()?;
    guest.wait_for_message("/dev/pts/")?;
    let messages = guest.messages();
    let name: String = messages
        .split_once("/dev/pts/")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect())
        .context("the pty's name")?;
    let pty = fs::File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/pts/{name}"))?;
    talk(pty)?;
    guest.wait()?.expect_status(0)?;
    Ok(())
}

/// Plays the other side of [`ECHO`].
fn talk<S: std::io::Read + Write>(stream: S) -> Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        anyhow::ensure!(lines.read_line(&mut line)? > 0, "the other side was closed");
    }
    lines.get_mut().write_all(b"over there\n")?;
    while !line.contains("got <over there>") {
        line.clear();
        anyhow::ensure!(lines.read_line(&mut line)? > 0, "the other side was closed");
    }
    Ok(())
}

#[test]
fn terminal_is_as_before_when_the_machine_has_ended() -> Result<()> {
    // script(1) gives its command a terminal of its own.
    let files = Disk::new(0)?;
    let [before, after] =
        ["before", "after"].map(|name| files.dir().join(name).display().to_string());
    let mut shell = Command::new("script");
    shell.args(["--quiet", "--return", "--command"]);
    let (podvisor, _files) = Guest::new().script("echo done").command_line()?;
    shell.arg(format!(
        "stty -a >{before}; {podvisor}; status=$?; stty -a >{after}; exit $status"
    ));
    let output = shell
        .arg("/dev/null")
        .output()
        .context("this test needs: apt-get install bsdutils")?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let (before, after) = (fs::read_to_string(before)?, fs::read_to_string(after)?);
    assert!(before.contains("icanon"), "{before}");
    assert_eq!(before, after);
    Ok(())
}
