//! Real gdb at Debian's kernel.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use tests::{Guest, Shell, assets, eventually};

/// Starts gdb with `commands`.
fn gdb(socket: &Path, commands: &[&str]) -> Result<Child> {
    let mut gdb = Command::new("sh");
    gdb.args(["-c", "exec gdb \"$@\" 2>&1", "gdb", "-nx", "-nh", "-batch"])
        .args([
            "-ex",
            "set architecture i386:x86-64",
            "-ex",
            "set confirm off",
        ])
        .args(["-ex", &format!("target remote {}", socket.display())]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("there is no shell")
}

fn finish(gdb: Child) -> Result<String> {
    let output = gdb.wait_with_output()?;
    ensure!(
        output.status.code() != Some(127),
        "this test needs: apt-get install gdb"
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn in_order(text: &str, parts: &[&str]) -> Result<()> {
    let mut rest = text;
    for part in parts {
        let at = rest
            .find(part)
            .with_context(|| format!("{part:?} is missing:\n{text}"))?;
        rest = &rest[at + part.len()..];
    }
    Ok(())
}

#[test]
fn breakpoint_in_debians_kernel_is_hit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("gdb");
    let guest = Guest::new()
        .kernel(assets::vmlinux()?)
        .cpus("boot=2")
        .api()
        .arg("--gdb")
        .arg(format!("path={}", socket.display()));
    // The guest waits for this one at its first instruction.
    let waiting = {
        let socket = socket.clone();
        thread::spawn(move || -> Result<String> {
            eventually("the VMM listens", || Ok(socket.exists()))?;
            finish(gdb(&socket, &["info registers rip", "detach"])?)
        })
    };
    let mut shell = Shell::start(guest)?;
    in_order(&waiting.join().expect("no panic")?, &["rip", "detached"])?;
    let api = shell.vmm().api()?;
    assert_eq!(api.state()?, "Running");

    let mut address = |symbol: &str| -> Result<String> {
        let line = shell.run(&format!("grep -w {symbol} /proc/kallsyms"))?;
        let address = line.split_whitespace().next().context("an address")?;
        Ok(format!("0x{address}"))
    };
    let uname = address("__x64_sys_newuname")?;

    // A system call, by a debug register. An instruction in memory is left out: emulated processors with virtualization
    // do not stop at it.
    let commands = [
        &format!("hbreak *{uname}"),
        "continue",
        "printf \"hardware at %#lx\\n\", $rip",
        "x/4gx $rsp",
        "stepi",
        "delete",
        "info threads",
        "detach",
    ];
    shell.run("(while :; do uname -r; sleep 0.2; done) >/dev/null 2>&1 &")?;
    let text = finish(gdb(&socket, &commands)?)?;
    let parts = [
        &format!("hardware at {uname}"),
        "0x",
        "Thread 1.1",
        "Thread 1.2",
        "detached",
    ];
    in_order(&text, &parts)?;
    assert_eq!(shell.run("echo alive")?, "alive");
    api.done("vmm.shutdown", None)?;
    Ok(())
}
