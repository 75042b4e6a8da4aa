//! Dates of the Gregorian calendar in UTC.

const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 1 March of the year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// First and last second that the clock can show: those of the years 0 and 9999.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

/// A date and a time in the numbers that the clock has. A driver can set any of them to anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    /// The year without its last two digits.
    pub(super) century: u8,
    /// The last two digits of the year.
    pub(super) year: u8,
    /// From 1 on.
    pub(super) month: u8,
    /// From 1 on.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Calendar {
    /// The date so many seconds after the beginning of 1970, from the year 0 to 9999.
    ///
    /// Years begin in March here, so that the day that only some have is the last one.
    pub(super) fn at(seconds: i64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let days = seconds.div_euclid(SECONDS_PER_DAY) + EPOCH;
        let second = seconds.rem_euclid(SECONDS_PER_DAY);
        let (era, day) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // Five months from March on, or from August on, have 153 days.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (year, month) = if month < 10 {
            (era * 400 + year, month + 3)
        } else {
            (era * 400 + year + 1, month - 9)
        };
        // All of it fits: the year has four digits.
        Self {
            century: (year / 100) as u8,
            year: (year % 100) as u8,
            month: month as u8,
            day: day as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// The mirror of [`Calendar::at`]. What is beyond the end of a minute, day or month is in the next one.
    pub(super) fn seconds(&self) -> i64 {
        self.days() * SECONDS_PER_DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// Days since 1 January 1970.
    fn days(&self) -> i64 {
        let months =
            i64::from(self.century) * 1200 + i64::from(self.year) * 12 + i64::from(self.month) - 3;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let day = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * DAYS_PER_ERA + 365 * year + year / 4 - year / 100 + day - EPOCH
    }

    /// The day of the week, 1 for Sunday.
    pub(super) fn weekday(&self) -> u8 {
        // 1 January 1970 was a Thursday.
        ((self.days() + 4).rem_euclid(7) + 1) as u8
    }
}
