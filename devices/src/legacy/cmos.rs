//! The CMOS clock and its memory: an MC146818 as a PC has it.

mod calendar;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use self::calendar::Calendar;
use crate::bus::BusDevice;
use crate::state::{Persist, Section, StateError};

const KIND: &str = "cmos";
const VERSION: u16 = 1;

/// Offsets of the index and of the data register.
const INDEX: u64 = 0;
const DATA: u64 = 1;
/// Bit 7 of the index masks NMIs on a PC, and is none of the index.
const INDEX_MASK: u8 = 0x7f;
const LEN: usize = 128;

/// Registers of the clock.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// The register that the FADT names (ACPI 6.5, table 5.9).
pub const CENTURY: u8 = 0x32;

/// The time is being counted up: none of its registers is to be read.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// The divider of a crystal with 32768 Hz, and no periodic interrupt.
const DIVIDER: u8 = 0x20;
/// The driver sets the time, which stands still.
const SET: u8 = 1 << 7;
/// Numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Hours go from 0 to 23. There is no other way here.
const HOURS_24: u8 = 1 << 1;
/// What a driver can change of the status register B: there are no interrupts.
const STATUS_B_MASK: u8 = SET | BINARY;
/// The battery is good.
const VALID: u8 = 1 << 7;

/// Firmware reads here how much memory there is: from 16 MiB to 4 GiB, and from 4 GiB on, in pieces of 64 KiB.
const EXTENDED_MEMORY: usize = 0x34;
const HIGH_MEMORY: usize = 0x5b;
const MEMORY_UNIT: u64 = 64 << 10;
const EXTENDED_START: u64 = 16 << 20;

/// How long before a second ends its update is announced: 8 periods of the crystal.
const UPDATE_AHEAD: Duration = Duration::from_nanos(244_141);
/// How long a time that was read stays the same for the registers that are read next. A driver that looked whether an
/// update is in progress reads them all from the same instant.
const SNAPSHOT: Duration = Duration::from_millis(50);

/// Tells the time of the host.
type Clock = Box<dyn Fn() -> SystemTime + Send>;

/// A clock on two ports, at which the guest reads the host's time in UTC, and can set it for itself. It has no alarm and
/// raises no interrupts.
pub struct Cmos {
    clock: Clock,
    /// Seconds that the guest's time is ahead of the host's.
    ahead: i64,
    index: u8,
    memory: [u8; LEN],
    status_b: u8,
    snapshot: Option<Snapshot>,
}

/// The time as the registers show it.
#[derive(Clone, Copy)]
struct Snapshot {
    /// When it was taken, by the host's clock.
    taken: Duration,
    time: Calendar,
}

impl Cmos {
    /// A clock for a guest with `low` bytes of memory below 4 GiB, and `high` bytes above.
    pub fn new(low: u64, high: u64) -> Self {
        Self::with_clock(low, high, Box::new(SystemTime::now))
    }

    fn with_clock(low: u64, high: u64, clock: Clock) -> Self {
        let mut memory = [0; LEN];
        let extended = low.saturating_sub(EXTENDED_START) / MEMORY_UNIT;
        let extended = u16::try_from(extended).unwrap_or(u16::MAX);
        memory[EXTENDED_MEMORY..][..2].copy_from_slice(&extended.to_le_bytes());
        let high = (high / MEMORY_UNIT).min(0xff_ffff);
        memory[HIGH_MEMORY..][..3].copy_from_slice(&high.to_le_bytes()[..3]);
        Self {
            clock,
            ahead: 0,
            index: 0,
            memory,
            status_b: 0,
            snapshot: None,
        }
    }

    /// Time of the host since 1970. A host that is set before that stands at its beginning.
    fn host_time(&self) -> Duration {
        (self.clock)()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    /// The time that the registers show now.
    fn time(&mut self) -> Calendar {
        let now = self.host_time();
        let stands = self.status_b & SET != 0;
        if let Some(Snapshot { taken, time }) = self.snapshot
            && (stands || now.checked_sub(taken).is_some_and(|age| age < SNAPSHOT))
        {
            return time;
        }
        self.take_snapshot(now)
    }

    fn take_snapshot(&mut self, now: Duration) -> Calendar {
        let seconds = now.as_secs().cast_signed().saturating_add(self.ahead);
        let time = Calendar::at(seconds);
        self.snapshot = Some(Snapshot { taken: now, time });
        time
    }

    fn set(&mut self, change: impl FnOnce(&mut Calendar)) {
        let mut time = self.time();
        change(&mut time);
        let now = self.host_time();
        self.snapshot = Some(Snapshot { taken: now, time });
        if self.status_b & SET == 0 {
            self.adopt(time, now);
        }
    }

    /// The guest's time is `time` at `now`.
    fn adopt(&mut self, time: Calendar, now: Duration) {
        self.ahead = time.seconds() - now.as_secs().cast_signed();
    }

    fn status_a(&mut self) -> u8 {
        if self.status_b & SET != 0 {
            return DIVIDER;
        }
        let now = self.host_time();
        let left = Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into());
        if left <= UPDATE_AHEAD {
            return DIVIDER | UPDATE_IN_PROGRESS;
        }
        self.take_snapshot(now);
        DIVIDER
    }

    fn write_status_b(&mut self, value: u8) {
        if value & SET != 0 {
            self.time();
        } else if self.status_b & SET != 0
            && let Some(Snapshot { time, .. }) = self.snapshot.take()
        {
            let now = self.host_time();
            self.adopt(time, now);
        }
        self.status_b = value & STATUS_B_MASK;
    }

    /// A number as the registers have it.
    fn encode(&self, number: u8) -> u8 {
        if self.status_b & BINARY != 0 {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }

    fn decode(&self, register: u8) -> u8 {
        if self.status_b & BINARY != 0 {
            register
        } else {
            // At most 15 * 10 + 15.
            (register >> 4) * 10 + (register & 0xf)
        }
    }

    fn read_register(&mut self) -> u8 {
        let number = match self.index {
            SECONDS => self.time().second,
            MINUTES => self.time().minute,
            HOURS => self.time().hour,
            WEEKDAY => self.time().weekday(),
            DAY => self.time().day,
            MONTH => self.time().month,
            YEAR => self.time().year,
            CENTURY => self.time().century,
            STATUS_A => return self.status_a(),
            STATUS_B => return self.status_b | HOURS_24,
            STATUS_C => return 0,
            STATUS_D => return VALID,
            index => return self.memory[usize::from(index)],
        };
        self.encode(number)
    }

    fn write_register(&mut self, value: u8) {
        let number = self.decode(value);
        match self.index {
            SECONDS => self.set(|time| time.second = number),
            MINUTES => self.set(|time| time.minute = number),
            HOURS => self.set(|time| time.hour = number),
            DAY => self.set(|time| time.day = number),
            MONTH => self.set(|time| time.month = number),
            YEAR => self.set(|time| time.year = number),
            CENTURY => self.set(|time| time.century = number),
            STATUS_B => self.write_status_b(value),
            // The day of the week follows from the date, and there is no rate to choose.
            WEEKDAY | STATUS_A | STATUS_C | STATUS_D => {}
            index => self.memory[usize::from(index)] = value,
        }
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (DATA, [byte]) = (offset, data) {
            *byte = self.read_register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (INDEX, &[index]) => self.index = index & INDEX_MASK,
            (DATA, &[value]) => self.write_register(value),
            _ => {}
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    ahead: i64,
    index: u8,
    memory: Vec<u8>,
    status_b: u8,
    /// The time that the driver is about to set, in seconds since 1970.
    standing: Option<i64>,
}

impl Persist for Cmos {
    fn save(&self) -> Section {
        let Self {
            clock: _,
            ahead,
            index,
            memory,
            status_b,
            snapshot,
        } = self;
        let standing = snapshot.filter(|_| status_b & SET != 0);
        let state = State {
            ahead: *ahead,
            index: *index,
            memory: memory.to_vec(),
            status_b: *status_b,
            standing: standing.map(|snapshot| snapshot.time.seconds()),
        };
        Section::new(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let State {
            ahead,
            index,
            memory,
            status_b,
            standing,
        } = section.decode(KIND, VERSION)?;
        let len = memory.len();
        let memory = memory.try_into().map_err(|_| StateError::Field {
            kind: KIND,
            field: "memory",
            value: format!("{len} bytes"),
            expected: format!("{LEN} bytes"),
        })?;
        self.ahead = ahead;
        self.index = index & INDEX_MASK;
        self.memory = memory;
        self.status_b = status_b & STATUS_B_MASK;
        self.snapshot = standing.map(|seconds| Snapshot {
            taken: Duration::ZERO,
            time: Calendar::at(seconds),
        });
        Ok(())
    }
}
