//! The registers.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::countdown::{Count, Countdown, Mode, SharedCountdown, Waiter, lock};
use crate::pci::{BarChange, BarKind, ConfigSpace, ConfigSpaceState, Identity, PciFunction};
use crate::platform::Platform;
use crate::state::{Persist, Section, StateError};
use crate::virtio::Worker;
use crate::virtio::read_fields;

const KIND: &str = "i6300esb";
const VERSION: u16 = 1;

/// Configuration register WDT_CONFIG, and its bits: the interrupt, which is not made, the tick, and whether the
/// output is off.
const CONFIG: u16 = 0x60;
const CONFIG_WRITABLE: u16 = CONFIG_INT_TYPE | CONFIG_FAST | CONFIG_NO_OUTPUT;
const CONFIG_INT_TYPE: u16 = 0b11;
const CONFIG_FAST: u16 = 1 << 2;
const CONFIG_NO_OUTPUT: u16 = 1 << 5;

/// Lock register WDT_LOCK, and its bits. What is locked stays so until the machine is reset.
const LOCK: u16 = 0x68;
const LOCK_LOCKED: u8 = 1 << 0;
const LOCK_ENABLE: u8 = 1 << 1;
const LOCK_FREE_RUNNING: u8 = 1 << 2;
const LOCK_WRITABLE: u8 = LOCK_LOCKED | LOCK_ENABLE | LOCK_FREE_RUNNING;

/// The memory-mapped registers: two counts, an interrupt status that is always 0, and the reload register.
const BAR: u8 = 0;
const BAR_LEN: u64 = 16;
const PRELOAD_1: u64 = 0x0;
const PRELOAD_2: u64 = 0x4;
const RELOAD: u64 = 0xc;
/// Bits of a count, all of which are set after a reset.
const PRELOAD_MASK: u32 = 0xf_ffff;

/// What is written to the reload register, one after the other, before any register takes a write.
const UNLOCK_1: u16 = 0x80;
const UNLOCK_2: u16 = 0x86;
/// Bits of the reload register.
const RELOAD_TIMER: u16 = 1 << 8;
const RELOAD_TIMEOUT: u16 = 1 << 9;

/// How far the unlocking sequence went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Sequence {
    #[default]
    Locked,
    Begun,
    /// The next write is taken.
    Unlocked,
}

/// The watchdog.
pub struct I6300Esb {
    config: ConfigSpace,
    sequence: Sequence,
    countdown: SharedCountdown,
    /// Waits for the timer for as long as the device is there.
    worker: Option<Worker<Waiter>>,
}

/// What is saved.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    config: ConfigSpaceState,
    sequence: Sequence,
    preload: [u32; 2],
    count: Option<Count>,
    expired: bool,
}

impl I6300Esb {
    /// A watchdog after a reset, which does not count. `expired` tells the guest whether it came to its end before that.
    ///
    /// # Errors
    ///
    /// The host gives no timer or no thread.
    pub fn new(platform: Arc<dyn Platform>, expired: Arc<AtomicBool>) -> io::Result<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x25ab,
            revision: 0,
            // A system peripheral without a class of its own.
            class: 0x08_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(BAR, BarKind::Memory32, BAR_LEN);
        config.add_register(CONFIG, &CONFIG_WRITABLE.to_le_bytes());
        config.add_register(LOCK, &[LOCK_WRITABLE]);
        let countdown = Countdown::new(PRELOAD_MASK, expired, platform)?;
        let countdown = Arc::new(Mutex::new(countdown));
        let worker = Worker::spawn("watchdog", Waiter(Arc::clone(&countdown)))?;
        Ok(Self {
            config,
            sequence: Sequence::Locked,
            countdown,
            worker: Some(worker),
        })
    }

    fn lock_register(&self) -> u8 {
        let mut data = [0];
        self.config.read(LOCK, &mut data);
        data[0]
    }

    /// How the registers say that it shall count.
    fn mode(&self) -> Mode {
        let config = self.config.word(CONFIG);
        Mode {
            fast: config & CONFIG_FAST != 0,
            free_running: self.lock_register() & LOCK_FREE_RUNNING != 0,
            silent: config & CONFIG_NO_OUTPUT != 0,
        }
    }

    /// A write to the reload register that is not part of the unlocking sequence, which came before.
    fn reload(&self, value: u16) {
        let mut countdown = lock(&self.countdown);
        if value & RELOAD_TIMEOUT != 0 {
            countdown.set_expired(false);
        }
        if value & RELOAD_TIMER != 0 && self.lock_register() & LOCK_ENABLE != 0 {
            countdown.start();
        }
    }
}

impl PciFunction for I6300Esb {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let before = self.lock_register();
        let changes = if before & LOCK_LOCKED != 0 {
            // What the others are written with is written over what stands there.
            let mut kept = [0; 4];
            let kept = &mut kept[..data.len().min(4)];
            for ((at, kept), new) in (offset..).zip(kept.iter_mut()).zip(data) {
                *kept = if at == LOCK { before } else { *new };
            }
            self.config.write(offset, kept)
        } else {
            self.config.write(offset, data)
        };
        let mode = self.mode();
        let after = self.lock_register();
        let mut countdown = lock(&self.countdown);
        countdown.mode = mode;
        match (before & LOCK_ENABLE != 0, after & LOCK_ENABLE != 0) {
            (false, true) => countdown.start(),
            (true, false) => countdown.stop(),
            _ => {}
        }
        changes
    }

    fn bar_mapped(&mut self, _bar: u8, _address: Option<u64>) {}

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != BAR {
            return;
        }
        let countdown = lock(&self.countdown);
        let [first, second] = countdown.preload;
        let reload = if countdown.expired() {
            u32::from(RELOAD_TIMEOUT)
        } else {
            0
        };
        let mut registers = [0; BAR_LEN as usize];
        for (register, value) in registers
            .chunks_exact_mut(4)
            .zip([first, second, 0, reload])
        {
            register.copy_from_slice(&value.to_le_bytes());
        }
        read_fields(&registers, offset, data);
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        // Registers are written whole; the reload register has 16 bits.
        let value = match *data {
            [a] => u32::from(a),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return,
        };
        let reload = (offset == RELOAD).then_some(value as u16);
        let sequence = std::mem::take(&mut self.sequence);
        match (reload, sequence) {
            (Some(UNLOCK_1), _) => self.sequence = Sequence::Begun,
            (Some(UNLOCK_2), Sequence::Begun) => self.sequence = Sequence::Unlocked,
            (Some(value), Sequence::Unlocked) => self.reload(value),
            (None, Sequence::Unlocked) if data.len() == 4 => {
                let mut countdown = lock(&self.countdown);
                match offset {
                    PRELOAD_1 => countdown.preload[0] = value & PRELOAD_MASK,
                    PRELOAD_2 => countdown.preload[1] = value & PRELOAD_MASK,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn pause(&mut self) {
        lock(&self.countdown).pause();
    }

    fn resume(&mut self) {
        lock(&self.countdown).resume();
    }
}

impl Drop for I6300Esb {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

impl Persist for I6300Esb {
    fn save(&self) -> Section {
        let Self {
            config,
            sequence,
            countdown,
            worker: _,
        } = self;
        let countdown = lock(countdown);
        let state = State {
            config: config.save(),
            sequence: *sequence,
            preload: countdown.preload,
            count: countdown.count(),
            expired: countdown.expired(),
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        const PRELOADS: Range<u32> = 0..PRELOAD_MASK + 1;
        let State {
            config,
            sequence,
            preload,
            count,
            expired,
        } = section.decode(KIND, VERSION)?;
        if let Some(value) = preload.iter().find(|value| !PRELOADS.contains(value)) {
            return Err(StateError::Field {
                kind: KIND,
                field: "preload",
                value: format!("{value:#x}"),
                expected: format!("at most {PRELOAD_MASK:#x}"),
            });
        }
        self.config.restore(KIND, &config)?;
        self.sequence = sequence;
        let mode = self.mode();
        let mut countdown = lock(&self.countdown);
        countdown.preload = preload;
        countdown.mode = mode;
        countdown.set_count(count);
        countdown.set_expired(expired);
        Ok(())
    }
}
