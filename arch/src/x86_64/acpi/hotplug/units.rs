//! The methods of numbered things behind one select register.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Arg, Equal, If, LessThan, Local, MethodCall, Mutex, Notify, ONE, Path, Release,
    Return, Store, While, ZERO,
};

use super::registers::{
    NEXT, SELECT, STATUS, STATUS_EJECT, STATUS_ENABLED, STATUS_INSERTING, STATUS_REMOVING,
};
use super::{Bits, DEVICE_CHECK, EJECT_REQUEST};
use crate::x86_64::acpi::STATUS_WORKING;
use crate::x86_64::acpi::aml::{Raw, method, serialized, to_bytes};

/// Waits as long as it takes.
const FOREVER: u16 = 0xffff;
const SELECTED: Local = Local(0);
const RESULT: Local = Local(1);

/// Things of one kind, whose AML objects have names that start with one letter.
pub(super) struct Units {
    pub(super) letter: char,
    pub(super) count: u32,
}

impl Units {
    /// Name of an object: the letter and three others.
    pub(super) fn object(&self, rest: &str) -> String {
        format!("{}{rest}", self.letter)
    }

    fn path(&self, rest: &str) -> Path {
        Path::new(&self.object(rest))
    }

    /// Name of the device of thing number `index`.
    pub(super) fn device(&self, index: u32) -> String {
        format!("{}{index:03X}", self.letter)
    }

    pub(super) fn bits(&self) -> Vec<Bits> {
        let status = |rest, bit| Bits::new(self.object(rest), STATUS, bit, 1);
        vec![
            Bits::new(self.object("SEL"), SELECT, 0, 32),
            status("ENA", STATUS_ENABLED),
            status("INS", STATUS_INSERTING),
            status("RMV", STATUS_REMOVING),
            status("EJT", STATUS_EJECT),
            Bits::new(self.object("NXT"), NEXT, 0, 32),
        ]
    }

    /// `body` while nobody else selects. Every method that uses the registers has to hold this lock.
    pub(super) fn locked(&self, body: &[&dyn Aml]) -> Raw {
        let mut aml = to_bytes(&Acquire::new(self.path("LCK"), FOREVER));
        for term in body {
            term.to_aml_bytes(&mut aml);
        }
        Release::new(self.path("LCK")).to_aml_bytes(&mut aml);
        Raw(aml)
    }

    /// `select = what`.
    pub(super) fn select(&self, what: &dyn Aml) -> Raw {
        Raw(to_bytes(&Store::new(&self.path("SEL"), what)))
    }

    /// The lock, and the methods for `_STA` and `_EJ0` of all devices, for notifications and for the event.
    pub(super) fn methods(&self) -> Vec<u8> {
        let mut aml = to_bytes(&Mutex::new(self.path("LCK"), 0));
        for method in [self.status(), self.eject(), self.notify(), self.scan()] {
            aml.extend(method.0);
        }
        aml
    }

    /// A call of the method `rest` for thing number `index`.
    pub(super) fn call(&self, rest: &str, index: u32) -> Raw {
        Raw(to_bytes(&MethodCall::new(self.path(rest), vec![&index])))
    }

    fn status(&self) -> Raw {
        let body = self.locked(&[
            &self.select(&Arg(0)),
            &Store::new(&RESULT, &ZERO),
            &If::new(
                &self.path("ENA"),
                vec![&Store::new(&RESULT, &STATUS_WORKING)],
            ),
        ]);
        method(&self.object("STA"), 1, &[&body, &Return::new(&RESULT)])
    }

    fn eject(&self) -> Raw {
        let body = self.locked(&[&self.select(&Arg(0)), &Store::new(&self.path("EJT"), &ONE)]);
        method(&self.object("EJ0"), 1, &[&body])
    }

    /// `xNTF(index, value)`: a notification with `value` for thing number `index`.
    fn notify(&self) -> Raw {
        let branches = (0..self.count).flat_map(|index| {
            to_bytes(&If::new(
                &Equal::new(&Arg(0), &index),
                vec![&Notify::new(&Path::new(&self.device(index)), &Arg(1))],
            ))
        });
        method(&self.object("NTF"), 2, &[&Raw(branches.collect())])
    }

    /// As long as there is news: takes it and passes it on.
    fn scan(&self) -> Raw {
        let next = Raw(to_bytes(&Store::new(&SELECTED, &self.path("NXT"))));
        let news = |rest, value: &u8| {
            let bit = self.path(rest);
            let take = Store::new(&bit, &ONE);
            let notify = MethodCall::new(self.path("NTF"), vec![&SELECTED, value]);
            Raw(to_bytes(&If::new(&bit, vec![&take, &notify])))
        };
        let body = self.locked(&[
            &next,
            &While::new(
                &LessThan::new(&SELECTED, &self.count),
                vec![
                    &self.select(&SELECTED),
                    &news("INS", &DEVICE_CHECK),
                    &news("RMV", &EJECT_REQUEST),
                    &next,
                ],
            ),
        ]);
        serialized(&self.object("SCN"), 0, &[&body])
    }
}
