//! Interrupts: eventfds that KVM listens to, and the routes from their numbers to interrupt controllers or messages.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::x86_64::layout::MSI_GSI_BASE;
use devices::interrupt::InterruptLine;
use devices::pci::{Msi, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vm::Vm;
use super::{KvmError, io_error};

/// Routes that KVM takes in one table (KVM_MAX_IRQ_ROUTES), less those of the interrupt controllers' pins.
const MAX_MSI_ROUTES: usize = 4096 - PIC_PINS as usize - MSI_GSI_BASE as usize;
const PIC_PINS: u32 = 16;

/// The interrupts of a machine.
pub struct Interrupts {
    vm: Arc<VmFd>,
    /// Every allocated MSI number, and its message once there was one.
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl Interrupts {
    /// Those of `vm`, with the pins of its interrupt controllers routed.
    ///
    /// # Errors
    ///
    /// KVM refused the routes.
    pub fn new(vm: &Vm) -> Result<Arc<Self>, KvmError> {
        let interrupts = Self {
            vm: Arc::clone(vm.fd()),
            messages: Mutex::default(),
        };
        interrupts
            .route(&BTreeMap::new())
            .map_err(KvmError::of("KVM_SET_GSI_ROUTING"))?;
        Ok(Arc::new(interrupts))
    }

    /// The edge-triggered line `gsi` of the I/O APIC.
    ///
    /// # Errors
    ///
    /// No eventfd could be had, or KVM refused it.
    pub fn line(&self, gsi: u32) -> io::Result<InterruptLine> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.vm.register_irqfd(&eventfd, gsi).map_err(io_error)?;
        Ok(InterruptLine::new(eventfd))
    }

    /// `count` vectors for one function.
    ///
    /// # Errors
    ///
    /// No eventfd could be had, or the machine has no more room for routes.
    pub fn vectors(self: &Arc<Self>, count: u16) -> io::Result<Arc<dyn Msi>> {
        let mut vectors = Vectors {
            interrupts: Arc::clone(self),
            vectors: Vec::with_capacity(count.into()),
        };
        for _ in 0..count {
            let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            vectors.vectors.push(Vector {
                gsi: self.allocate()?,
                eventfd,
                connected: Mutex::new(false),
            });
        }
        Ok(Arc::new(vectors))
    }

    fn messages(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self) -> io::Result<u32> {
        let mut messages = self.messages();
        if messages.len() >= MAX_MSI_ROUTES {
            return Err(io::Error::other("all MSI routes of the machine are taken"));
        }
        let gsi = (MSI_GSI_BASE..)
            .find(|gsi| !messages.contains_key(gsi))
            .expect("fewer numbers are taken than there are");
        messages.insert(gsi, None);
        Ok(gsi)
    }

    fn set_message(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.messages();
        let before = messages.insert(gsi, Some(message)).flatten();
        if before == Some(message) {
            return Ok(());
        }
        self.route(&messages).map_err(|error| {
            messages.insert(gsi, before);
            io_error(error)
        })
    }

    /// Gives KVM the whole table: it knows no smaller change.
    fn route(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> Result<(), kvm_ioctls::Error> {
        let pic = (0..PIC_PINS).map(|pin| match pin {
            0..8 => pin_route(pin, KVM_IRQCHIP_PIC_MASTER, pin),
            _ => pin_route(pin, KVM_IRQCHIP_PIC_SLAVE, pin - 8),
        });
        let ioapic = (0..MSI_GSI_BASE).map(|pin| pin_route(pin, KVM_IRQCHIP_IOAPIC, pin));
        let msi = messages
            .iter()
            .filter_map(|(gsi, message)| message.map(|message| message_route(*gsi, message)));
        let entries: Vec<_> = pic.chain(ioapic).chain(msi).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table)
    }
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// One MSI-X vector.
struct Vector {
    gsi: u32,
    eventfd: EventFd,
    connected: Mutex<bool>,
}

/// The vectors of one function. Their numbers go back when the function goes.
struct Vectors {
    interrupts: Arc<Interrupts>,
    vectors: Vec<Vector>,
}

impl Vectors {
    fn vector(&self, vector: u16) -> io::Result<&Vector> {
        self.vectors
            .get(usize::from(vector))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }
}

impl Msi for Vectors {
    fn vectors(&self) -> u16 {
        // Made from a u16 count.
        self.vectors.len() as u16
    }

    fn eventfd(&self, vector: u16) -> &EventFd {
        &self.vectors[usize::from(vector)].eventfd
    }

    fn connect(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        let vector = self.vector(vector)?;
        let mut connected = vector
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.interrupts.set_message(vector.gsi, message)?;
        if !*connected {
            self.interrupts
                .vm
                .register_irqfd(&vector.eventfd, vector.gsi)
                .map_err(io_error)?;
            *connected = true;
        }
        Ok(())
    }

    fn disconnect(&self, vector: u16) -> io::Result<()> {
        let vector = self.vector(vector)?;
        let mut connected = vector
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *connected {
            self.interrupts
                .vm
                .unregister_irqfd(&vector.eventfd, vector.gsi)
                .map_err(io_error)?;
            *connected = false;
        }
        Ok(())
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        for vector in 0..self.vectors() {
            // Nothing is left to do about a vector that KVM does not give back: its number stays taken below.
            if self.disconnect(vector).is_ok() {
                let gsi = self.vectors[usize::from(vector)].gsi;
                self.interrupts.messages().remove(&gsi);
            }
        }
    }
}
