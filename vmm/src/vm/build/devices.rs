//! Devices, each on its bus and its interrupt.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use api::config::{self, BalloonConfig, CpusConfig, HotplugMethod, MemoryConfig};
use arch::x86_64::acpi::AcpiPci;
use arch::x86_64::layout::LayoutError;
use arch::x86_64::{cpuid, layout};
use devices::acpi::hotplug::{CpuSlots, MemorySlots, PciSlots};
use devices::acpi::{EventDevice, PM_TIMER_LEN, POWER_REGISTERS_LEN, PmTimer, Power};
use devices::bus::{BusDevice, BusError, SharedDevice};
use devices::legacy::{BootMark, Cmos, DebugPort, I8042, PvPanic};
use devices::pci;
use devices::platform::Platform;
use devices::virtio::transport::mmio::Slots;

use super::BuildError;
use crate::kvm::capabilities::Host;
use crate::kvm::irq::Interrupts;
use crate::vcpu::Buses;
use crate::vm::attached::Kind;
use crate::vm::machine::Machine;
use crate::vm::notices::Notices;
use crate::vm::ram::{self, Growth, MEMORY_SLOTS};
use crate::vm::transport::{PciPlaces, Transport};
use crate::wire::balloon;
use crate::wire::line::HostLine;

/// Widest guest physical address that a machine uses, however wide the host's are.
const MAX_PHYS_BITS: u8 = 46;

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

/// Adds what a PC has beside PCI, but for the serial port.
pub(super) fn add_legacy(
    buses: &Buses,
    notices: &Arc<Notices>,
    pvpanic: bool,
    started: Instant,
) -> Result<(), BusError> {
    let platform: Arc<dyn Platform> = notices.clone();
    let keyboard = u64::from(layout::I8042_DATA_PORT);
    let keyboard_len = u64::from(layout::I8042_COMMAND_PORT) + 1 - keyboard;
    let i8042 = I8042::new(platform.clone());
    buses.pio.insert(keyboard, keyboard_len, shared(i8042))?;
    let debug_port = DebugPort::new(started);
    buses
        .pio
        .insert(layout::DEBUG_PORT.into(), 1, shared(debug_port))?;
    if pvpanic {
        let port = PvPanic::new(platform);
        buses
            .pio
            .insert(layout::PVPANIC_PORT.into(), 1, shared(port))?;
    }
    let timer = PmTimer::new(started);
    let timer_port = layout::PM_TIMER_PORT.into();
    buses.pio.insert(timer_port, PM_TIMER_LEN, shared(timer))?;
    let marks = layout::BOOT_MARK;
    buses
        .mmio
        .insert(marks.start, marks.len, shared(BootMark::new(started)))
}

/// Adds the CMOS clock of a guest with `ram_size` bytes of memory.
pub(super) fn add_clock(buses: &Buses, ram_size: u64) -> Result<(), BusError> {
    let low = ram_size.min(layout::LOW_RAM_END);
    let clock = Cmos::new(low, ram_size - low);
    let (port, len) = (layout::CMOS_PORT.into(), layout::CMOS_PORT_COUNT.into());
    buses.pio.insert(port, len, shared(clock))
}

/// Adds the serial port, and tells its interrupt.
pub(super) fn add_serial(
    buses: &Buses,
    interrupts: &Interrupts,
    serial: Option<&HostLine>,
) -> Result<Option<u32>, BuildError> {
    let Some(serial) = serial else {
        return Ok(None);
    };
    let line = interrupts
        .line(layout::COM1_GSI)
        .map_err(BuildError::host("the interrupt of the serial port"))?;
    buses.pio.insert(
        layout::COM1_PORT.into(),
        layout::COM_PORT_COUNT.into(),
        shared(serial.serial_port(line)),
    )?;
    Ok(Some(layout::COM1_GSI))
}

/// Adds the registers of ACPI, and gives the device that tells the guest of events.
pub(super) fn add_acpi(
    buses: &Buses,
    interrupts: &Interrupts,
    notices: &Arc<Notices>,
) -> Result<EventDevice, BuildError> {
    let power = Power::new(notices.clone());
    buses.pio.insert(
        layout::SLEEP_CONTROL_PORT.into(),
        POWER_REGISTERS_LEN,
        shared(power),
    )?;
    let line = interrupts
        .line(layout::GED_GSI)
        .map_err(BuildError::host("the interrupt of the ACPI event device"))?;
    let events = EventDevice::new(line);
    let page = layout::ACPI_EVENT;
    buses
        .mmio
        .insert(page.start, page.len, shared(events.clone()))?;
    Ok(events)
}

/// Adds the places of virtio devices, all empty, and tells where the PCI bus is found if there is one.
pub(super) fn add_transport(
    buses: &Buses,
    host: &Host,
    memory_end: u64,
    asked: config::Transport,
    events: &EventDevice,
    notices: &Arc<Notices>,
) -> Result<(Transport, Option<AcpiPci>), BuildError> {
    match asked {
        config::Transport::Pci => {
            let (root, bridge) = add_pci(buses, host, memory_end)?;
            let slots = add_pci_slots(buses, events, notices, &root)?;
            Ok((Transport::Pci(PciPlaces { root, slots }), Some(bridge)))
        }
        config::Transport::Mmio => {
            // Memory has to end within the address space all the same.
            pci_window(host, memory_end)?;
            let window = layout::VIRTIO_MMIO;
            let slots = Slots::new(Arc::clone(&buses.mmio), window.start..window.end());
            Ok((Transport::Mmio(slots), None))
        }
    }
}

/// The window for 64-bit BARs, from after `memory_end` to the end of the guest's address space.
fn pci_window(host: &Host, memory_end: u64) -> Result<layout::AddressRange, LayoutError> {
    let phys_bits = cpuid::physical_address_bits(host.cpuid()).min(MAX_PHYS_BITS);
    layout::pci_mmio64(memory_end, phys_bits)
}

/// Adds an empty PCI bus, whose upper window begins after `memory_end`, the first address after all memory that there can
/// be, and tells where it is found.
fn add_pci(
    buses: &Buses,
    host: &Host,
    memory_end: u64,
) -> Result<(pci::Root, AcpiPci), BuildError> {
    let low = layout::PCI_MMIO32;
    let high = pci_window(host, memory_end)?;
    let windows = pci::Windows {
        low: low.start..low.end(),
        high: high.start..high.end(),
    };
    let root = pci::Root::new(Arc::clone(&buses.mmio), windows);
    let ecam = layout::PCI_ECAM;
    buses.mmio.insert(ecam.start, ecam.len, root.ecam())?;
    buses.pio.insert(
        layout::PCI_CONFIG_PORT.into(),
        layout::PCI_CONFIG_PORT_COUNT.into(),
        root.config_ports(),
    )?;
    let bridge = AcpiPci {
        ecam,
        ecam_reserved: layout::PCI_ECAM_RESERVED,
        mmio32: low,
        mmio64: high,
    };
    Ok((root, bridge))
}

/// Adds the registers by which functions on the PCI bus come and go. All that are on the bus from the start are told of
/// by [`Machine::attach`].
fn add_pci_slots(
    buses: &Buses,
    events: &EventDevice,
    notices: &Arc<Notices>,
    pci: &pci::Root,
) -> Result<PciSlots, BusError> {
    let slots = PciSlots::new(events.clone(), notices.clone(), pci.gate());
    let page = layout::ACPI_PCI_HOTPLUG;
    buses
        .mmio
        .insert(page.start, page.len, shared(slots.clone()))?;
    Ok(slots)
}

/// Adds the registers by which vCPUs come and go.
pub(super) fn add_cpu_slots(
    buses: &Buses,
    events: &EventDevice,
    notices: &Arc<Notices>,
    cpus: &CpusConfig,
) -> Result<CpuSlots, BusError> {
    let (boot, max) = (cpus.boot_vcpus, cpus.max_vcpus);
    let slots = CpuSlots::new(boot, max, events.clone(), notices.clone());
    let page = layout::ACPI_CPU_HOTPLUG;
    buses
        .mmio
        .insert(page.start, page.len, shared(slots.clone()))?;
    Ok(slots)
}

/// Adds what memory is added by, where there is room for any.
pub(super) fn add_memory_growth(
    machine: &mut Machine,
    config: &MemoryConfig,
    notices: &Arc<Notices>,
) -> Result<(), BuildError> {
    let (_, room) = ram::plan(config);
    if room.len == 0 {
        return Ok(());
    }
    match config.hotplug_method {
        HotplugMethod::Acpi => {
            let slots = MemorySlots::new(MEMORY_SLOTS, machine.events.clone(), notices.clone());
            let page = layout::ACPI_MEMORY_HOTPLUG;
            machine
                .buses
                .mmio
                .insert(page.start, page.len, shared(slots.clone()))?;
            machine.memory.grow_by(Growth::Acpi(slots));
        }
        HotplugMethod::VirtioMem => {
            let requested = config.hotplugged_size.map_or(0, |size| size.bytes());
            let device = machine.memory.add_device_region(&machine.vm, requested)?;
            machine.memory.grow_by(Growth::VirtioMem(device.handle()));
            machine.attach("__mem", device, Kind::Fixed)?;
        }
    }
    Ok(())
}

/// Adds the balloon, after all that memory is added by.
pub(super) fn add_balloon(
    machine: &mut Machine,
    config: Option<&BalloonConfig>,
) -> Result<(), BuildError> {
    let Some(config) = config else {
        return Ok(());
    };
    let memory = &machine.memory;
    let device = balloon::device(config, memory.page_size(), memory.device())?;
    let kind = Kind::balloon(&device);
    machine.attach(config.id.as_deref().unwrap_or("balloon"), device, kind)
}

#[cfg(test)]
mod tests {
    use arch::x86_64::acpi::hotplug::registers;
    use devices::acpi::hotplug::units::Status;
    use devices::acpi::hotplug::{cpu, memory, pci, units};
    use devices::acpi::{Event, RESET_VALUE, SLEEP_TYPE_S5};
    use devices::virtio::transport::mmio::SLOT_LEN;

    use super::*;

    #[test]
    fn virtio_mmio_slots_are_where_the_tables_tell_the_guest() {
        assert_eq!(SLOT_LEN, layout::VIRTIO_MMIO_SLOT_LEN);
        let window = layout::VIRTIO_MMIO;
        let slots = Slots::new(Arc::default(), window.start..window.end());
        for index in (0..).take_while(|index| layout::virtio_mmio_slot(*index).is_some()) {
            let told = layout::virtio_mmio_slot(index).map(|(registers, _)| registers.start);
            assert_eq!(slots.address(index), told);
        }
    }

    #[test]
    fn devices_answer_to_what_the_tables_tell_the_guest() {
        assert_eq!(SLEEP_TYPE_S5, layout::SLEEP_TYPE_S5);
        assert_eq!(RESET_VALUE, layout::RESET_VALUE);
        assert_eq!(Event::PowerButton.bit(), layout::EVENT_POWER_BUTTON);
        assert_eq!(devices::legacy::CENTURY, layout::CMOS_CENTURY);
        let status = layout::SLEEP_CONTROL_PORT + 1;
        let reset = layout::SLEEP_CONTROL_PORT + 2;
        assert_eq!(layout::SLEEP_STATUS_PORT, status);
        assert_eq!(layout::RESET_PORT, reset);
        assert_eq!(POWER_REGISTERS_LEN, 3);
    }

    #[test]
    fn hotplug_registers_are_where_the_tables_tell_the_guest() {
        assert_eq!(Event::Pci.bit(), layout::EVENT_PCI_HOTPLUG);
        assert_eq!(Event::Cpu.bit(), layout::EVENT_CPU_HOTPLUG);
        assert_eq!(Event::Memory.bit(), layout::EVENT_MEMORY_HOTPLUG);
        assert_eq!(Event::Generation.bit(), layout::EVENT_GENERATION);

        assert_eq!(pci::INSERTED, registers::PCI_INSERTED);
        assert_eq!(pci::REMOVING, registers::PCI_REMOVING);
        assert_eq!(pci::EJECT, registers::PCI_EJECT);
        assert_eq!(pci::PRESENT, registers::PCI_PRESENT);
        assert_eq!(pci::REGISTERS_LEN, registers::PCI_LEN);

        assert_eq!(units::SELECT, registers::SELECT);
        assert_eq!(units::STATUS, registers::STATUS);
        assert_eq!(units::NEXT, registers::NEXT);
        assert_eq!(Status::ENABLED.bits(), 1 << registers::STATUS_ENABLED);
        assert_eq!(Status::INSERTING.bits(), 1 << registers::STATUS_INSERTING);
        assert_eq!(Status::REMOVING.bits(), 1 << registers::STATUS_REMOVING);
        assert_eq!(Status::EJECT.bits(), 1 << registers::STATUS_EJECT);
        assert_eq!(cpu::REGISTERS_LEN, registers::CPU_LEN);

        assert_eq!(memory::BASE_LOW, registers::MEMORY_BASE);
        assert_eq!(memory::BASE_HIGH, registers::MEMORY_BASE + 4);
        assert_eq!(memory::LEN_LOW, registers::MEMORY_LENGTH);
        assert_eq!(memory::LEN_HIGH, registers::MEMORY_LENGTH + 4);
        assert_eq!(memory::REGISTERS_LEN, registers::MEMORY_LEN);
    }
}
