use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::I6300Esb;
use super::countdown::{Count, Stage};
use crate::pci::PciFunction;
use crate::platform::{Platform, PlatformEvent};
use crate::state::{Persist, Section, StateError};

const TIMEOUT: Duration = Duration::from_secs(10);
const CONFIG: u16 = 0x60;
const LOCK: u16 = 0x68;
/// Ticks of a microsecond, and no output.
const FAST: u8 = 1 << 2;
const NO_OUTPUT: u8 = 1 << 5;
const LOCKED: u8 = 1;
const ENABLE: u8 = 2;
const FREE_RUNNING: u8 = 4;
/// The most ticks, which are a quarter of an hour if they are of a millisecond: longer than any test takes.
const LONG: u32 = 0xf_ffff;

struct Owner(Mutex<Sender<PlatformEvent>>);

impl Platform for Owner {
    fn raise(&self, event: PlatformEvent) {
        // A test may have ended.
        let _ = self.0.lock().unwrap().send(event);
    }
}

struct Rig {
    device: I6300Esb,
    expired: Arc<AtomicBool>,
    events: Receiver<PlatformEvent>,
}

impl Rig {
    fn new() -> Self {
        Self::after(false)
    }

    /// A device after a reset, which came because of the watchdog or not.
    fn after(expired: bool) -> Self {
        let (sender, events) = mpsc::channel();
        let expired = Arc::new(AtomicBool::new(expired));
        let owner = Arc::new(Owner(Mutex::new(sender)));
        let mut device = I6300Esb::new(owner, Arc::clone(&expired)).unwrap();
        device.resume();
        Self {
            device,
            expired,
            events,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read_bar(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn reload(&mut self, value: u16) {
        self.device.write_bar(0, 0xc, &value.to_le_bytes());
    }

    fn unlock(&mut self) {
        self.reload(0x80);
        self.reload(0x86);
    }

    fn preload(&mut self, ticks: [u32; 2]) {
        for (offset, ticks) in [0, 4].into_iter().zip(ticks) {
            self.unlock();
            self.device.write_bar(0, offset, &ticks.to_le_bytes());
        }
    }

    /// Counts so many ticks of a microsecond in each stage.
    fn start(&mut self, ticks: [u32; 2]) {
        self.device.write_config(CONFIG, &[FAST, 0]);
        self.preload(ticks);
        self.device.write_config(LOCK, &[ENABLE]);
    }

    /// What is counted, of a device that is paused for it.
    fn count(&mut self) -> Option<Count> {
        #[derive(serde::Deserialize)]
        struct Part {
            count: Option<Count>,
        }
        self.device.pause();
        let part: Part = self.device.save().decode("i6300esb", 1).unwrap();
        part.count
    }

    fn expires(&self) -> bool {
        self.events.recv_timeout(TIMEOUT) == Ok(PlatformEvent::WatchdogExpired)
    }

    fn is_quiet_for(&self, time: Duration) -> bool {
        self.events.recv_timeout(time).is_err()
    }

    fn lock_register(&self) -> u8 {
        let mut data = [0];
        self.device.read_config(LOCK, &mut data);
        data[0]
    }
}

#[test]
fn identity_is_that_of_the_hardware() {
    let rig = Rig::new();
    let mut id = [0; 4];
    rig.device.read_config(0, &mut id);
    assert_eq!(id, [0x86, 0x80, 0xab, 0x25]);
    let mut class = [0; 4];
    rig.device.read_config(8, &mut class);
    assert_eq!(class, [0, 0, 0x80, 0x08]);
}

#[test]
fn watchdog_expires_after_both_stages() {
    let mut rig = Rig::new();
    let begun = Instant::now();
    rig.start([20_000, 20_000]);
    assert!(rig.expires());
    assert!(begun.elapsed() >= Duration::from_millis(38));
    assert!(rig.expired.load(Ordering::Relaxed));
    assert_eq!(rig.read(0xc), 0x200);
    // Once.
    assert!(rig.is_quiet_for(Duration::from_millis(60)));
    // A driver that goes on has it counted anew.
    rig.unlock();
    rig.reload(0x100);
    assert!(rig.expires());
}

#[test]
fn slow_tick_is_a_millisecond() {
    let mut rig = Rig::new();
    let begun = Instant::now();
    rig.preload([10, 10]);
    rig.device.write_config(LOCK, &[ENABLE]);
    assert!(rig.expires());
    assert!(begun.elapsed() >= Duration::from_millis(19));
}

#[test]
fn reloaded_watchdog_counts_from_the_beginning() {
    let mut rig = Rig::new();
    rig.preload([LONG, LONG]);
    rig.device.write_config(LOCK, &[ENABLE]);
    thread::sleep(Duration::from_millis(20));
    let before = rig.count().unwrap();
    assert_eq!(before.stage, Stage::First);
    rig.unlock();
    rig.reload(0x100);
    let after = rig.count().unwrap();
    assert!(after.left > before.left, "{before:?} {after:?}");
}

#[test]
fn registers_take_no_write_without_the_unlocking_sequence() {
    let mut rig = Rig::new();
    let write = |rig: &mut Rig| rig.device.write_bar(0, 0, &7_u32.to_le_bytes());
    write(&mut rig);
    rig.reload(0x86);
    write(&mut rig);
    rig.reload(0x80);
    write(&mut rig);
    rig.reload(0x86);
    write(&mut rig);
    assert_eq!(rig.read(0), 0xf_ffff);
    rig.unlock();
    write(&mut rig);
    assert_eq!(rig.read(0), 7);
    // One write for each sequence.
    rig.device.write_bar(0, 4, &7_u32.to_le_bytes());
    assert_eq!(rig.read(4), 0xf_ffff);
    rig.unlock();
    rig.device.write_bar(0, 4, &u32::MAX.to_le_bytes());
    assert_eq!(rig.read(4), 0xf_ffff);
    // A reload that is not unlocked counts nothing anew.
    rig.start([20_000, 20_000]);
    rig.reload(0x100);
    assert!(rig.expires());
}

#[test]
fn watchdog_that_is_switched_off_counts_nothing() {
    let mut rig = Rig::new();
    rig.preload([LONG, LONG]);
    rig.device.write_config(LOCK, &[ENABLE]);
    rig.device.write_config(LOCK, &[0]);
    assert_eq!(rig.count(), None);
    rig.unlock();
    rig.reload(0x100);
    assert_eq!(rig.count(), None);
}

#[test]
fn locked_watchdog_cannot_be_switched_off() {
    let mut rig = Rig::new();
    rig.start([50_000, 50_000]);
    rig.device.write_config(LOCK, &[ENABLE | LOCKED]);
    rig.device.write_config(LOCK, &[0]);
    rig.device.write_config(LOCK, &[0; 4]);
    assert_eq!(rig.lock_register(), ENABLE | LOCKED);
    // Others are written as before.
    rig.device.write_config(0x3c, &[5]);
    let mut line = [0];
    rig.device.read_config(0x3c, &mut line);
    assert_eq!(line, [5]);
    assert!(rig.expires());
}

#[test]
fn without_output_the_end_can_only_be_read() {
    let mut rig = Rig::new();
    rig.device.write_config(CONFIG, &[FAST | NO_OUTPUT, 0]);
    rig.preload([10, 10]);
    rig.device.write_config(LOCK, &[ENABLE]);
    let until = Instant::now() + TIMEOUT;
    while rig.read(0xc) != 0x200 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(1));
    }
    assert!(rig.is_quiet_for(Duration::from_millis(5)));
    rig.unlock();
    rig.reload(0x200);
    assert_eq!(rig.read(0xc), 0);
}

#[test]
fn free_running_watchdog_has_no_first_stage() {
    let mut rig = Rig::new();
    rig.preload([LONG, 10]);
    rig.device.write_config(LOCK, &[ENABLE | FREE_RUNNING]);
    assert!(rig.expires());
}

#[test]
fn paused_watchdog_counts_no_further() {
    let mut rig = Rig::new();
    rig.preload([LONG, LONG]);
    rig.device.write_config(LOCK, &[ENABLE]);
    let first = rig.count().unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.count(), Some(first));
    rig.device.resume();
    thread::sleep(Duration::from_millis(20));
    assert!(rig.count().unwrap().left < first.left);
}

#[test]
fn reset_by_the_watchdog_is_told_after_it() {
    let mut rig = Rig::after(true);
    assert_eq!(rig.read(0xc), 0x200);
    rig.unlock();
    rig.reload(0x200);
    assert_eq!(rig.read(0xc), 0);
    assert!(!rig.expired.load(Ordering::Relaxed));
}

#[test]
fn state_restored_into_a_fresh_device_is_equal_and_counts_on() {
    let mut rig = Rig::new();
    rig.start([20_000, 30_000]);
    rig.device.write_config(LOCK, &[ENABLE | LOCKED]);
    rig.reload(0x80);
    rig.device.pause();
    let section = rig.device.save();
    let mut other = Rig::new();
    other.device.pause();
    other.device.restore(&section).unwrap();
    assert_eq!(other.device.save(), section);
    assert_eq!((other.read(0), other.read(4)), (20_000, 30_000));
    // The second half of the sequence.
    other.reload(0x86);
    other.device.write_bar(0, 0, &5_u32.to_le_bytes());
    assert_eq!(other.read(0), 5);
    other.device.resume();
    assert!(other.expires());
    assert!(rig.is_quiet_for(Duration::ZERO));
}

#[test]
fn state_that_no_device_can_have_is_refused() {
    let mut rig = Rig::new();
    rig.device.pause();
    let before = rig.device.save();
    let other = Section::new("virtio-rng", 1, &());
    assert!(matches!(
        rig.device.restore(&other),
        Err(StateError::Kind { .. })
    ));
    let newer = Section::new("i6300esb", 2, &());
    assert!(matches!(
        rig.device.restore(&newer),
        Err(StateError::Version { .. })
    ));
    let mut bytes = vec![0_u8; 256];
    rig.device.read_config(0, &mut bytes);
    #[derive(serde::Serialize)]
    struct Config {
        bytes: Vec<u8>,
    }
    #[derive(serde::Serialize)]
    struct Raw {
        config: Config,
        sequence: &'static str,
        preload: [u32; 2],
        count: Option<()>,
        expired: bool,
    }
    let mut raw = Raw {
        config: Config { bytes },
        sequence: "Locked",
        preload: [1 << 20, 0],
        count: None,
        expired: false,
    };
    let refused = rig.device.restore(&Section::new("i6300esb", 1, &raw));
    assert!(
        matches!(refused, Err(StateError::Field { field, .. }) if field == "preload"),
        "{refused:?}"
    );
    raw.preload = [0, 0];
    raw.config.bytes[0] ^= 1;
    let refused = rig.device.restore(&Section::new("i6300esb", 1, &raw));
    assert!(
        matches!(refused, Err(StateError::Field { field, .. }) if field == "config_space"),
        "{refused:?}"
    );
    assert_eq!(rig.device.save(), before);
    raw.config.bytes[0] ^= 1;
    rig.device
        .restore(&Section::new("i6300esb", 1, &raw))
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_accesses_are_taken(
        accesses in prop::collection::vec((any::<bool>(), any::<bool>(), 0..0x100_u16, prop::collection::vec(any::<u8>(), 1..=4)), 0..64),
    ) {
        let mut rig = Rig::new();
        for (bar, write, offset, mut data) in accesses {
            match (bar, write) {
                (true, true) => rig.device.write_bar(0, (offset & 0xf).into(), &data),
                (true, false) => rig.device.read_bar(0, (offset & 0xf).into(), &mut data),
                (false, true) => { rig.device.write_config(offset, &data); }
                (false, false) => rig.device.read_config(offset, &mut data),
            }
        }
        rig.device.pause();
        let section = rig.device.save();
        let mut other = Rig::new();
        other.device.pause();
        other.device.restore(&section).unwrap();
        prop_assert_eq!(other.device.save(), section);
    }
}
