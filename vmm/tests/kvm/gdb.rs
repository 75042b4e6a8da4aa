//! Real gdb at a guest of a few instructions.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use api::request::{ApiError, Reply, Request, Service, VmState};
use vmm::gdb;
use vmm::vm::Outcome;

use crate::code::{BASE, Code, SCRATCH};
use crate::guest::{Run, Setup, eventually};

/// The guest counts here.
const COUNTER: u32 = SCRATCH;
/// And turns itself off when this is not zero.
const ENOUGH: u32 = SCRATCH + 4;
/// The instruction after the one that counts.
const COUNTED: u32 = BASE + 6;

/// A machine that waits for a debugger.
struct Debugged {
    setup: Setup,
    run: Run,
    socket: PathBuf,
}

impl Debugged {
    fn new(vcpus: u32) -> Self {
        let code = Code::new()
            .increment(COUNTER)
            .load_eax(ENOUGH)
            .test_eax(0xff)
            .jump_if_zero(BASE)
            .power_off();
        let mut setup = Setup::new(code);
        setup.config.cpus.boot_vcpus = vcpus;
        setup.config.cpus.max_vcpus = vcpus;
        setup.options.wait_for_debugger = true;
        let socket = setup.path("gdb");
        let listener = UnixListener::bind(&socket).unwrap();
        let run = setup.start();
        gdb::server::start(listener, run.mailbox.clone()).unwrap();
        let debugged = Self { setup, run, socket };
        eventually("the boot", || debugged.state() == VmState::BreakPoint);
        debugged
    }

    fn state(&self) -> VmState {
        match self.run.mailbox.call(Request::Info) {
            Ok(Reply::Info(info)) => info.state,
            // It is not there yet.
            _ => VmState::Created,
        }
    }

    /// Runs gdb with `commands`, and gives what it printed.
    fn gdb(&self, commands: &[&str]) -> String {
        finish(start(&self.socket, commands))
    }

    fn call(&self, request: Request) -> Result<Reply, ApiError> {
        self.run.mailbox.call(request)
    }
}

fn start(socket: &Path, commands: &[&str]) -> Child {
    // What it says goes one way, so that its order is kept.
    let mut gdb = Command::new("sh");
    gdb.args(["-c", "exec gdb \"$@\" 2>&1", "gdb", "-nx", "-nh", "-batch"])
        .args(["-ex", "set architecture i386:x86-64"])
        .args(["-ex", "set tcp auto-retry off", "-ex", "set confirm off"])
        .args(["-ex", &format!("target remote {}", socket.display())]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a shell")
}

fn finish(gdb: Child) -> String {
    let output = gdb.wait_with_output().unwrap();
    assert_ne!(
        output.status.code(),
        Some(127),
        "this test needs: apt-get install gdb"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else {
            panic!("{part:?} is missing, or out of order:\n{text}");
        };
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn guest_waits_at_its_first_instruction_and_stops_at_hardware_breakpoints() {
    let debugged = Debugged::new(1);
    let text = debugged.gdb(&[
        "printf \"at %#lx\\n\", $rip",
        &format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}"),
        &format!("hbreak *{COUNTED:#x}"),
        "continue",
        "printf \"at %#lx\\n\", $rip",
        &format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}"),
        "continue",
        &format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}"),
        "stepi",
        "printf \"at %#lx\\n\", $rip",
        "delete",
        &format!("set *(int*){ENOUGH:#x} = 1"),
        "continue",
    ]);
    let first = format!("at {BASE:#x}");
    let stopped = format!("at {COUNTED:#x}");
    let stepped = format!("at {:#x}", COUNTED + 5);
    let parts = [
        &first,
        "counted 0",
        &stopped,
        "counted 1",
        "counted 2",
        &stepped,
        "exited normally",
    ];
    assert_in_order(&text, &parts);
    assert_eq!(debugged.run.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn registers_and_memory_are_written() {
    let debugged = Debugged::new(1);
    let text = debugged.gdb(&[
        // Past the instruction that counts.
        &format!("set $rip = {COUNTED:#x}"),
        "set $r15 = 0x1122334455667788",
        "set $xmm3.v2_int64[1] = 77",
        &format!("set *(long*){ENOUGH:#x} = 1"),
        "printf \"r15 %#lx, xmm3 %ld\\n\", $r15, $xmm3.v2_int64[1]",
        "print $cs = 5",
        // Where nothing is.
        "x/wx 0x80000000",
        "continue",
    ]);
    let parts = [
        "r15 0x1122334455667788, xmm3 77",
        "Could not write registers",
        "Cannot access memory at address 0x80000000",
        "exited normally",
    ];
    assert_in_order(&text, &parts);
    assert_eq!(debugged.run.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn guest_runs_on_after_a_detach_and_another_debugger_comes() {
    let debugged = Debugged::new(1);
    let text = debugged.gdb(&[&format!("hbreak *{COUNTED:#x}"), "continue", "detach"]);
    assert_in_order(&text, &["Breakpoint 1", "detached"]);
    assert_eq!(debugged.state(), VmState::Running);

    // gdb that ends without a word leaves a guest that runs, too.
    let text = debugged.gdb(&[&format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}")]);
    assert_in_order(&text, &["counted "]);
    assert!(!text.contains("counted 1\n"), "{text}");
    eventually("gdb has gone", || debugged.state() == VmState::Running);

    let text = debugged.gdb(&[&format!("set *(int*){ENOUGH:#x} = 1"), "continue"]);
    assert_in_order(&text, &["exited normally"]);
    assert_eq!(debugged.run.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn fifth_hardware_breakpoint_is_refused() {
    let debugged = Debugged::new(1);
    let mut commands: Vec<_> = (0..5)
        .map(|at| format!("hbreak *{:#x}", 0x30_0000 + at))
        .collect();
    commands.push("continue".to_owned());
    commands.push("delete 5".to_owned());
    commands.push(format!("set *(int*){ENOUGH:#x} = 1"));
    commands.push("continue".to_owned());
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    let text = debugged.gdb(&commands);
    assert_in_order(
        &text,
        &["Could not insert hardware breakpoint", "exited normally"],
    );
}

#[test]
fn api_is_served_while_the_debugger_holds_the_guest() {
    let mut debugged = Debugged::new(2);
    // gdb waits for the guest, which is paused by the API and resumed.
    let commands = [
        "info threads",
        &format!("hbreak *{COUNTED:#x}"),
        "continue",
        "printf \"stopped\\n\"",
        "delete",
        "continue",
    ];
    for request in [Request::Pause, Request::Resume] {
        let refused = debugged.call(request);
        assert!(matches!(refused, Err(ApiError::WrongState { .. })));
    }
    assert!(debugged.call(Request::Counters).is_ok());
    let gdb = start(&debugged.socket, &commands);
    eventually("the breakpoint", || {
        let events = debugged.run.events();
        events.iter().any(|event| event == "vm breakpoint")
    });
    eventually("the last continue", || debugged.state() == VmState::Running);
    debugged.call(Request::Pause).unwrap();
    assert_eq!(debugged.state(), VmState::Paused);
    debugged.call(Request::Resume).unwrap();
    assert_eq!(debugged.state(), VmState::Running);
    debugged.call(Request::Shutdown).unwrap();
    let text = finish(gdb);
    assert_in_order(
        &text,
        &["Thread 1.1", "Thread 1.2", "stopped", "exited normally"],
    );
    // There is nothing to be debugged now.
    let text = debugged.gdb(&[]);
    assert!(!text.contains(" in ?? ()"), "{text}");
    debugged.run.mailbox.send(Request::ShutdownVmm);
    debugged.run.wait().unwrap();
    drop(debugged.setup);
}

#[test]
fn guest_is_interrupted() {
    let debugged = Debugged::new(1);
    let commands = [
        "continue",
        "printf \"interrupted\\n\"",
        &format!("set *(int*){ENOUGH:#x} = 1"),
        "continue",
    ];
    let gdb = start(&debugged.socket, &commands);
    eventually("the guest runs", || debugged.state() == VmState::Running);
    let pid = gdb.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let text = finish(gdb);
    assert_in_order(&text, &["SIGINT", "interrupted", "exited normally"]);
}

#[test]
fn debugger_stays_when_the_guest_is_started_anew() {
    let mut debugged = Debugged::new(1);
    debugged.setup.options.no_reboot = false;
    let gdb = start(
        &debugged.socket,
        &[
            &format!("hbreak *{COUNTED:#x}"),
            "continue",
            "continue",
            &format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}"),
            // The API starts it anew while it is held.
            "shell sleep 2",
            "continue",
            &format!("printf \"counted %d\\n\", *(int*){COUNTER:#x}"),
            "delete",
            &format!("set *(int*){ENOUGH:#x} = 1"),
            "continue",
        ],
    );
    eventually("the second stop", || {
        debugged.state() == VmState::BreakPoint
            && debugged
                .run
                .events()
                .iter()
                .filter(|event| *event == "vm breakpoint")
                .count()
                > 0
    });
    std::thread::sleep(std::time::Duration::from_millis(700));
    debugged.call(Request::Reboot).unwrap();
    let text = finish(gdb);
    assert_in_order(&text, &["counted 2", "counted 1", "exited normally"]);
}
