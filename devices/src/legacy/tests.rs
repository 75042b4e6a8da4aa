use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::log_lines::lines_of;
use crate::platform::{Platform, PlatformEvent};
use crate::state::{Persist, Section, StateError};

#[derive(Default)]
struct Events(Mutex<Vec<PlatformEvent>>);

impl Platform for Events {
    fn raise(&self, event: PlatformEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    fn take(&self) -> Vec<PlatformEvent> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<u8>>,
    waits: AtomicUsize,
    ready: AtomicUsize,
}

impl SerialLine for Wire {
    fn wait_for_room(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
    fn transmit(&self, byte: u8) {
        self.sent.lock().unwrap().push(byte);
    }
    fn receiver_ready(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    port: SerialPort,
    wire: Arc<Wire>,
    interrupt: EventFd,
}

impl Bench {
    fn new() -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let wire = Arc::new(Wire::default());
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        Self {
            port: SerialPort::new(line, wire.clone()),
            wire,
            interrupt,
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        read(&mut self.port, offset)
    }

    fn interrupts(&self) -> u64 {
        self.interrupt.read().unwrap_or(0)
    }
}

fn read(device: &mut impl BusDevice, offset: u64) -> u8 {
    let mut data = [0xff];
    device.read(offset, &mut data);
    data[0]
}

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const SCRATCH: u64 = 7;
const DATA_READY: u8 = 1;
const LOOPBACK: u8 = 0x10;

#[test]
fn written_bytes_reach_the_line_in_order() {
    let mut bench = Bench::new();
    for byte in b"hello" {
        bench.port.write(DATA, &[*byte]);
    }
    assert_eq!(*bench.wire.sent.lock().unwrap(), b"hello");
    assert_eq!(bench.wire.waits.load(Ordering::Relaxed), 5);
}

#[test]
fn received_bytes_interrupt_and_are_read_in_order() {
    let mut bench = Bench::new();
    bench.port.write(INTERRUPT_ENABLE, &[1]);
    assert_eq!(bench.interrupts(), 0);
    assert_eq!(bench.port.input().receive(b"ab"), 2);
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(bench.read(INTERRUPT_ID) & 0xf, 0x4);
    assert_eq!(bench.read(LINE_STATUS) & DATA_READY, DATA_READY);
    assert_eq!([bench.read(DATA), bench.read(DATA)], *b"ab");
    assert_eq!(bench.read(LINE_STATUS) & DATA_READY, 0);
}

#[test]
fn full_fifo_takes_no_more_and_tells_when_it_is_empty() {
    let mut bench = Bench::new();
    let input = bench.port.input();
    assert_eq!(input.receive(&[b'x'; 100]), RECEIVE_FIFO_SIZE);
    assert_eq!(input.receive(b"y"), 0);
    for _ in 1..RECEIVE_FIFO_SIZE {
        bench.read(DATA);
    }
    assert_eq!(bench.wire.ready.load(Ordering::Relaxed), 0);
    bench.read(DATA);
    assert_eq!(bench.wire.ready.load(Ordering::Relaxed), 1);
    assert_eq!(input.receive(b"y"), 1);
}

#[test]
fn loopback_refuses_input_and_its_end_tells_to_try_again() {
    let mut bench = Bench::new();
    let input = bench.port.input();
    bench.port.write(MODEM_CONTROL, &[LOOPBACK]);
    assert_eq!(input.receive(b"x"), 0);
    bench.port.write(DATA, b"l");
    assert_eq!(bench.read(DATA), b'l');
    assert!(bench.wire.sent.lock().unwrap().is_empty());
    let before = bench.wire.ready.load(Ordering::Relaxed);
    bench.port.write(MODEM_CONTROL, &[0]);
    assert!(bench.wire.ready.load(Ordering::Relaxed) > before);
    assert_eq!(input.receive(b"x"), 1);
}

#[test]
fn input_to_a_port_that_is_gone_is_not_taken() {
    let bench = Bench::new();
    let input = bench.port.input();
    drop(bench);
    assert_eq!(input.receive(b"x"), 0);
}

#[test]
fn accesses_of_more_than_a_byte_do_nothing() {
    let mut bench = Bench::new();
    bench.port.write(DATA, b"ab");
    assert!(bench.wire.sent.lock().unwrap().is_empty());
    let mut data = [0xff; 2];
    bench.port.read(LINE_STATUS, &mut data);
    assert_eq!(data, [0xff; 2]);
}

#[test]
fn serial_state_of_another_kind_is_refused() {
    let error = Bench::new()
        .port
        .restore(&Section::new("pump", 1, &()))
        .unwrap_err();
    assert!(matches!(error, StateError::Kind { .. }), "{error}");
}

#[test]
fn serial_state_with_an_overfull_fifo_is_refused() {
    #[derive(serde::Serialize)]
    struct State {
        baud_divisor_low: u8,
        baud_divisor_high: u8,
        interrupt_enable: u8,
        interrupt_identification: u8,
        line_control: u8,
        line_status: u8,
        modem_control: u8,
        modem_status: u8,
        scratch: u8,
        receive_fifo: Vec<u8>,
    }
    let state = |held| State {
        baud_divisor_low: 0,
        baud_divisor_high: 0,
        interrupt_enable: 0,
        interrupt_identification: 1,
        line_control: 0,
        line_status: 0x60,
        modem_control: 0,
        modem_status: 0,
        scratch: 9,
        receive_fifo: vec![0; held],
    };
    let mut bench = Bench::new();
    let overfull = Section::new("serial", 1, &state(RECEIVE_FIFO_SIZE + 1));
    let error = bench.port.restore(&overfull).unwrap_err();
    assert!(
        matches!(
            error,
            StateError::Field {
                field: "receive_fifo",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(bench.read(SCRATCH), 0);
    let full = Section::new("serial", 1, &state(RECEIVE_FIFO_SIZE));
    bench.port.restore(&full).unwrap();
    assert_eq!(bench.read(SCRATCH), 9);
}

#[test]
fn restored_port_interrupts_again_for_input_it_holds() {
    let mut bench = Bench::new();
    bench.port.write(INTERRUPT_ENABLE, &[1]);
    bench.port.input().receive(b"q");
    let mut restored = Bench::new();
    restored.port.restore(&bench.port.save()).unwrap();
    assert_eq!(restored.interrupts(), 1);
    assert_eq!(restored.read(DATA), b'q');
}

#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Input(Vec<u8>),
}

fn accesses(len: u64) -> impl Strategy<Value = Vec<Access>> {
    let one = prop_oneof![
        // One-byte accesses do something, so most are that.
        3 => (0..len, any::<u8>()).prop_map(|(offset, byte)| Access::Write(offset, vec![byte])),
        3 => (0..len).prop_map(|offset| Access::Read(offset, 1)),
        1 => (0..len, prop::collection::vec(any::<u8>(), 1..=8)).prop_map(|(o, d)| Access::Write(o, d)),
        1 => (0..len, 1..=8_usize).prop_map(|(offset, len)| Access::Read(offset, len)),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Access::Input),
    ];
    prop::collection::vec(one, 0..200)
}

/// Runs `accesses` and gives every byte that was read.
fn run(device: &mut impl BusDevice, accesses: &[Access], receive: impl Fn(&[u8])) -> Vec<u8> {
    let mut seen = Vec::new();
    for access in accesses {
        match access {
            Access::Read(offset, len) => {
                let mut data = [0xff; 8];
                device.read(*offset, &mut data[..*len]);
                assert!(data[*len..].iter().all(|byte| *byte == 0xff));
                seen.extend_from_slice(&data[..*len]);
            }
            Access::Write(offset, data) => device.write(*offset, data),
            Access::Input(data) => receive(data),
        }
    }
    seen
}

proptest! {
    #[test]
    fn restored_serial_port_behaves_as_the_saved_one(before in accesses(8), after in accesses(8)) {
        let mut saved = Bench::new();
        let input = saved.port.input();
        run(&mut saved.port, &before, |bytes| { input.receive(bytes); });
        let section = saved.port.save();
        let mut restored = Bench::new();
        restored.port.restore(&section).unwrap();
        prop_assert_eq!(&restored.port.save(), &section);
        saved.wire.sent.lock().unwrap().clear();
        let other = restored.port.input();
        let left = run(&mut saved.port, &after, |bytes| { input.receive(bytes); });
        let right = run(&mut restored.port, &after, |bytes| { other.receive(bytes); });
        prop_assert_eq!(left, right);
        prop_assert_eq!(&*saved.wire.sent.lock().unwrap(), &*restored.wire.sent.lock().unwrap());
        prop_assert_eq!(saved.port.save(), restored.port.save());
    }

    #[test]
    fn serial_port_holds_at_most_its_fifo(accesses in accesses(8)) {
        let mut bench = Bench::new();
        let input = bench.port.input();
        run(&mut bench.port, &accesses, |bytes| { input.receive(bytes); });
        bench.port.write(3, &[0]);
        let held = (0..RECEIVE_FIFO_SIZE + 1)
            .take_while(|_| bench.read(LINE_STATUS) & DATA_READY != 0 && { bench.read(DATA); true })
            .count();
        prop_assert!(held <= RECEIVE_FIFO_SIZE);
    }

    #[test]
    fn i8042_resets_only_by_its_pulse_command(accesses in accesses(5)) {
        let events = Arc::new(Events::default());
        run(&mut I8042::new(events.clone()), &accesses, |_| ());
        let resets = accesses.iter().filter(|access| {
            matches!(access, Access::Write(4, data) if data.len() == 1 && data[0] >= 0xf0 && data[0] % 2 == 0)
        });
        prop_assert_eq!(events.take(), vec![PlatformEvent::Reset; resets.count()]);
    }

    #[test]
    fn pvpanic_tells_one_event_for_each_write_that_names_one(accesses in accesses(1)) {
        let events = Arc::new(Events::default());
        run(&mut PvPanic::new(events.clone()), &accesses, |_| ());
        let told = accesses.iter().filter(|access| {
            matches!(access, Access::Write(0, data) if data.len() == 1 && data[0] & 3 != 0)
        });
        prop_assert_eq!(events.take().len(), told.count());
    }

    #[test]
    fn boot_mark_devices_take_any_access_and_read_as_nothing(accesses in accesses(4096)) {
        let start = Instant::now();
        let ports = run(&mut DebugPort::new(start), &accesses, |_| ());
        let page = run(&mut BootMark::new(start), &accesses, |_| ());
        prop_assert!(ports.iter().chain(&page).all(|byte| *byte == 0xff));
    }
}

#[test]
fn i8042_status_is_ready_for_commands() {
    let mut device = I8042::new(Arc::new(Events::default()));
    assert_eq!(read(&mut device, 4), 0);
    assert_eq!(read(&mut device, 0), 0);
    assert_eq!(read(&mut device, 1), 0xff);
}

#[test]
fn i8042_reset_command_resets() {
    let events = Arc::new(Events::default());
    let mut device = I8042::new(events.clone());
    device.write(0, &[0xfe]);
    assert!(events.take().is_empty());
    device.write(4, &[0xfe]);
    assert_eq!(events.take(), [PlatformEvent::Reset]);
}

#[test]
fn pvpanic_reads_the_events_it_takes() {
    assert_eq!(read(&mut PvPanic::new(Arc::new(Events::default())), 0), 3);
}

#[test]
fn pvpanic_tells_panic_apart_from_crash_kernel() {
    let events = Arc::new(Events::default());
    let mut device = PvPanic::new(events.clone());
    for value in [1, 2, 3, 0, 4] {
        device.write(0, &[value]);
    }
    use PlatformEvent::{CrashLoaded, Panicked};
    assert_eq!(events.take(), [Panicked, CrashLoaded, Panicked]);
}

#[test]
fn pvpanic_flood_logs_nothing() {
    let mut device = PvPanic::new(Arc::new(Events::default()));
    let lines = lines_of(|| (0..1000).for_each(|_| device.write(0, &[1])));
    assert_eq!(lines, 0);
}

#[test]
fn boot_mark_floods_log_a_bounded_number_of_lines() {
    let mut port = DebugPort::new(Instant::now());
    let mut page = BootMark::new(Instant::now());
    let of_port = lines_of(|| (0..100_000).for_each(|value| port.write(0, &[value as u8])));
    let of_page = lines_of(|| (0..100_000).for_each(|_| page.write(0, &[BOOT_MARK_VALUE])));
    assert_eq!(of_port, MAX_MARKS as usize + 1);
    assert_eq!(of_page, MAX_MARKS as usize + 1);
}

#[test]
fn boot_mark_page_ignores_other_bytes() {
    let mut page = BootMark::new(Instant::now());
    let lines = lines_of(|| {
        page.write(0, &[BOOT_MARK_VALUE - 1]);
        page.write(1, &[BOOT_MARK_VALUE]);
        page.write(0, &[BOOT_MARK_VALUE, 0]);
    });
    assert_eq!(lines, 0);
    assert_eq!(lines_of(|| page.write(0, &[BOOT_MARK_VALUE])), 1);
}
