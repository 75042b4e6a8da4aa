//! The slots of PCI bus 0.

use acpi_tables::aml::{And, Arg, If, Local, MethodCall, Notify, Path, Return, Scope, Store, ZERO};

use super::registers::{PCI_EJECT, PCI_INSERTED, PCI_LEN, PCI_PRESENT, PCI_REMOVING};
use super::{Bits, DEVICE_CHECK, EJECT_REQUEST, register_window};
use crate::x86_64::acpi::STATUS_WORKING;
use crate::x86_64::acpi::aml::{Raw, device, method, name, serialized, to_bytes};
use crate::x86_64::layout::ACPI_PCI_HOTPLUG;

/// The method for [`EVENT_PCI_HOTPLUG`](crate::x86_64::layout::EVENT_PCI_HOTPLUG).
pub(in crate::x86_64::acpi) const SCAN: &str = "\\_SB_.PCI0.PSCN";

const INSERTED: Local = Local(0);
const REMOVING: Local = Local(1);

/// Slots 1 to 31; the host bridge in slot 0 stays.
const SLOTS: std::ops::RangeInclusive<u32> = 1..=31;

/// A device for each slot, whether a function is in it or not, and what they need, in the scope of the host bridge.
///
/// The registers hold bitmaps and none of them selects another, so that methods on two threads do not disturb each
/// other.
pub(in crate::x86_64::acpi) fn slots() -> Vec<u8> {
    let mut aml = register_window(
        "PREG",
        ACPI_PCI_HOTPLUG,
        PCI_LEN,
        &[
            Bits::new("PINS", PCI_INSERTED, 0, 32),
            Bits::new("PRMV", PCI_REMOVING, 0, 32),
            Bits::new("PEJT", PCI_EJECT, 0, 32),
            Bits::new("PPRS", PCI_PRESENT, 0, 32),
        ],
    );
    let present = Path::new("PPRS");
    let status = method(
        "PSTA",
        1,
        &[
            &If::new(
                &And::new(&ZERO, &present, &Arg(0)),
                vec![&Return::new(&STATUS_WORKING)],
            ),
            &Return::new(&ZERO),
        ],
    );
    let eject = method("PEJ0", 1, &[&Store::new(&Path::new("PEJT"), &Arg(0))]);
    for aml_object in [status, eject] {
        aml.extend(aml_object.0);
    }
    for slot in SLOTS {
        aml.extend(slot_device(slot));
    }
    aml.extend(notify().0);
    aml.extend(scan().0);
    Scope::raw(Path::new("\\_SB_.PCI0"), aml)
}

fn slot_name(slot: u32) -> String {
    format!("SL{slot:02}")
}

fn slot_device(slot: u32) -> Vec<u8> {
    let bit = 1u32 << slot;
    // Function 0 of the device; no device has more functions.
    let address = slot << 16;
    let status = MethodCall::new(Path::new("PSTA"), vec![&bit]);
    device(
        &slot_name(slot),
        &[
            &name("_SUN", &slot),
            &name("_ADR", &address),
            &method("_STA", 0, &[&Return::new(&status)]),
            &method(
                "_EJ0",
                1,
                &[&MethodCall::new(Path::new("PEJ0"), vec![&bit])],
            ),
        ],
    )
}

/// `PNTF(slots, value)`: a notification with `value` for each of `slots`.
fn notify() -> Raw {
    let branches = SLOTS.flat_map(|slot| {
        let bit = 1u32 << slot;
        to_bytes(&If::new(
            &And::new(&ZERO, &Arg(0), &bit),
            vec![&Notify::new(&Path::new(&slot_name(slot)), &Arg(1))],
        ))
    });
    method("PNTF", 2, &[&Raw(branches.collect())])
}

/// Takes what is new, and passes it on. What comes in between stays for the next event.
fn scan() -> Raw {
    let call = |slots, value| MethodCall::new(Path::new("PNTF"), vec![slots, value]);
    let (inserted, removing) = (Path::new("PINS"), Path::new("PRMV"));
    serialized(
        "PSCN",
        0,
        &[
            &Store::new(&INSERTED, &inserted),
            &Store::new(&inserted, &INSERTED),
            &call(&INSERTED, &DEVICE_CHECK),
            &Store::new(&REMOVING, &removing),
            &Store::new(&removing, &REMOVING),
            &call(&REMOVING, &EJECT_REQUEST),
        ],
    )
}
