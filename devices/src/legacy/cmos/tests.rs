use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// 2026-11-25 16:34:35 UTC, a Wednesday.
const NOW: u64 = 1_795_624_475;

/// A clock, and the host's time in nanoseconds.
fn cmos() -> (Cmos, Arc<AtomicU64>) {
    let time = Arc::new(AtomicU64::new(NOW * 1_000_000_000));
    let read = Arc::clone(&time);
    let clock = Box::new(move || UNIX_EPOCH + Duration::from_nanos(read.load(Ordering::Relaxed)));
    let cmos = Cmos::with_clock(3 << 30, 5 << 30, clock);
    (cmos, time)
}

fn read(cmos: &mut Cmos, register: u8) -> u8 {
    cmos.write(INDEX, &[register]);
    let mut data = [0xff];
    cmos.read(DATA, &mut data);
    data[0]
}

fn write(cmos: &mut Cmos, register: u8, value: u8) {
    cmos.write(INDEX, &[register]);
    cmos.write(DATA, &[value]);
}

fn date(cmos: &mut Cmos) -> [u8; 8] {
    read(cmos, STATUS_A);
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| read(cmos, index))
}

#[test]
fn time_is_that_of_the_host_in_bcd_and_utc() {
    let (mut cmos, _) = cmos();
    assert_eq!(
        date(&mut cmos),
        [0x20, 0x26, 0x11, 0x25, 4, 0x16, 0x34, 0x35]
    );
    assert_eq!(read(&mut cmos, STATUS_B), HOURS_24);
    assert_eq!(read(&mut cmos, STATUS_D), VALID);
    assert_eq!(read(&mut cmos, 0x80 | MINUTES), 0x34, "with NMIs masked");
}

#[test]
fn numbers_are_binary_for_those_who_ask_for_it() {
    let (mut cmos, _) = cmos();
    write(&mut cmos, STATUS_B, BINARY | 0x70);
    assert_eq!(read(&mut cmos, STATUS_B), BINARY | HOURS_24);
    assert_eq!(date(&mut cmos), [20, 26, 11, 25, 4, 16, 34, 35]);
}

#[test]
fn update_is_announced_at_the_end_of_a_second() {
    let (mut cmos, time) = cmos();
    assert_eq!(read(&mut cmos, STATUS_A), DIVIDER);
    time.fetch_add(999_700_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, STATUS_A), DIVIDER);
    time.fetch_add(100_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, STATUS_A), DIVIDER | UPDATE_IN_PROGRESS);
    time.fetch_add(200_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, STATUS_A), DIVIDER);
    assert_eq!(read(&mut cmos, SECONDS), 0x36);
}

#[test]
fn registers_that_are_read_together_are_of_one_instant() {
    let (mut cmos, time) = cmos();
    // To the last second of the year.
    time.store(1_798_761_599 * 1_000_000_000, Ordering::Relaxed);
    read(&mut cmos, STATUS_A);
    assert_eq!(read(&mut cmos, SECONDS), 0x59);
    time.fetch_add(1_000_000_000, Ordering::Relaxed);
    time.fetch_sub(960_000_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, YEAR), 0x26);
    time.fetch_add(1_000_000_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, YEAR), 0x27, "a snapshot does not last");
    assert_eq!(read(&mut cmos, SECONDS), 0x00);
}

#[test]
fn guest_can_set_its_time() {
    let (mut cmos, time) = cmos();
    write(&mut cmos, STATUS_B, SET);
    for (register, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x58),
    ] {
        write(&mut cmos, register, value);
    }
    time.fetch_add(5_000_000_000, Ordering::Relaxed);
    assert_eq!(read(&mut cmos, SECONDS), 0x58, "it stands still");
    write(&mut cmos, STATUS_B, 0);
    assert_eq!(
        date(&mut cmos),
        [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]
    );
    time.fetch_add(2_000_000_000, Ordering::Relaxed);
    assert_eq!(date(&mut cmos), [0x20, 0, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn memory_is_told_where_firmware_reads_it() {
    let (mut cmos, _) = cmos();
    let extended = u16::from_le_bytes([read(&mut cmos, 0x34), read(&mut cmos, 0x35)]);
    assert_eq!(u64::from(extended) << 16, (3 << 30) - (16 << 20));
    let high = [0x5b, 0x5c, 0x5d].map(|index| read(&mut cmos, index));
    assert_eq!(high, [0, 0x40, 1]);
    let mut small = Cmos::new(8 << 20, 0);
    assert_eq!(read(&mut small, 0x34), 0);
}

#[test]
fn other_registers_are_memory() {
    let (mut cmos, _) = cmos();
    write(&mut cmos, 0x7f, 0xa5);
    write(&mut cmos, 0x0e, 0x5a);
    assert_eq!(read(&mut cmos, 0x7f), 0xa5);
    assert_eq!(read(&mut cmos, 0x0e), 0x5a);
    write(&mut cmos, STATUS_D, 0);
    assert_eq!(read(&mut cmos, STATUS_D), VALID);
}

#[test]
fn accesses_of_other_lengths_mean_nothing() {
    let (mut cmos, _) = cmos();
    cmos.write(INDEX, &[0x7f, 0x12]);
    let mut data = [1, 2];
    cmos.read(DATA, &mut data);
    assert_eq!(data, [1, 2]);
    let mut data = [9];
    cmos.read(INDEX, &mut data);
    assert_eq!(data, [9]);
}

#[test]
fn saved_clock_goes_on() {
    let (mut before, _) = cmos();
    write(&mut before, 0x40, 7);
    write(&mut before, YEAR, 0x30);
    let section = before.save();
    let (mut after, time) = cmos();
    time.fetch_add(1_000_000_000, Ordering::Relaxed);
    after.restore(&section).unwrap();
    assert_eq!(after.save(), section);
    assert_eq!(read(&mut after, YEAR), 0x30);
    assert_eq!(read(&mut after, SECONDS), 0x36);
    assert_eq!(read(&mut after, 0x40), 7);
}

#[test]
fn days_around_those_that_only_some_years_have_are_right() {
    for (seconds, century, year, month, day) in [
        (0, 19, 70, 1, 1),
        (951_782_400, 20, 0, 2, 29),
        (951_868_800, 20, 0, 3, 1),
        (4_107_456_000, 21, 0, 2, 28),
        (4_107_542_400, 21, 0, 3, 1),
        (-2_203_977_600, 19, 0, 2, 28),
        (-2_203_891_200, 19, 0, 3, 1),
        (i64::MIN, 0, 0, 1, 1),
        (i64::MAX, 99, 99, 12, 31),
    ] {
        let time = Calendar::at(seconds);
        assert_eq!(
            (time.century, time.year, time.month, time.day),
            (century, year, month, day),
            "{seconds}"
        );
    }
}

proptest! {
    #[test]
    fn seconds_survive_the_calendar(seconds in -62_167_219_200i64..=253_402_300_799) {
        let time = Calendar::at(seconds);
        prop_assert_eq!(time.seconds(), seconds);
        prop_assert!((1..=12).contains(&time.month) && (1..=31).contains(&time.day));
        prop_assert!(time.hour < 24 && time.minute < 60 && time.second < 60);
    }

    #[test]
    fn nothing_that_a_driver_writes_panics(writes in prop::collection::vec(any::<(u8, u8)>(), 0..64)) {
        let (mut cmos, time) = cmos();
        for (register, value) in writes {
            write(&mut cmos, register, value);
            time.fetch_add(70_000_000, Ordering::Relaxed);
            date(&mut cmos);
        }
        let section = cmos.save();
        cmos.restore(&section).unwrap();
    }
}
