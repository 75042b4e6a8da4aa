//! The vCPUs of a machine: how they are spread, what each is before its first instruction, and which are plugged in.

use std::sync::Arc;
use std::time::Instant;

use api::config::CpusConfig;
use api::metrics::VcpuMetrics;
use arch::x86_64::acpi::AcpiCpu;
use arch::x86_64::boot::BootEntry;
use arch::x86_64::cpuid::{self, CpuidConfig, Topology};
use devices::memory::GuestRam;
use kvm_bindings::{CpuId, kvm_guest_debug};

use super::build::BuildError;
use crate::kvm::capabilities::Host;
use crate::kvm::vcpu::{Registers, Vcpu, VcpuError};
use crate::kvm::vm::Vm;
use crate::vcpu::{Asked, Buses, VcpuThread, Watch};

/// What every vCPU of a machine is made by.
pub(super) struct VcpuPlan {
    topology: Topology,
    host: CpuId,
    cpuid: CpuidConfig,
    max: u32,
}

impl VcpuPlan {
    /// The plan for `cpus`.
    ///
    /// # Errors
    ///
    /// A topology that cannot be made, or that KVM does not take.
    pub(super) fn new(host: &Host, cpus: &CpusConfig) -> Result<Self, BuildError> {
        let limit = host.max_vcpus();
        if cpus.max_vcpus as usize > limit {
            return Err(BuildError::TooManyVcpus {
                asked: cpus.max_vcpus,
                limit,
            });
        }
        let topology = match cpus.topology {
            Some(topology) => Topology::new(
                topology.threads_per_core.into(),
                topology.cores_per_die.into(),
                topology.dies_per_package.into(),
                topology.packages.into(),
            )?,
            None => Topology::flat(cpus.max_vcpus)?,
        };
        Ok(Self {
            topology,
            host: host.cpuid().clone(),
            cpuid: CpuidConfig {
                topology,
                tsc_khz: None,
                tsc_deadline_timer: host.tsc_deadline_timer(),
                pmu: false,
                nested: true,
            },
            max: cpus.max_vcpus,
        })
    }

    /// All vCPUs that there are or can be, as the tables list them.
    pub(super) fn acpi_cpus(&self, boot_vcpus: u32) -> Vec<AcpiCpu> {
        (0..self.max)
            .map(|vcpu| AcpiCpu {
                apic_id: self.topology.apic_id(vcpu),
                enabled: vcpu < boot_vcpus,
            })
            .collect()
    }

    /// The vCPUs that there are from the start, without an instruction to begin at.
    pub(super) fn create_first(&mut self, vm: &Vm, count: u32) -> Result<Vec<Vcpu>, BuildError> {
        let vcpus = (0..count)
            .map(|index| Vcpu::create(vm, index, self.topology.apic_id(index)))
            .collect::<Result<Vec<_>, _>>()?;
        self.cpuid.tsc_khz = vcpus.first().and_then(Vcpu::tsc_khz);
        for vcpu in &vcpus {
            self.configure(vcpu)?;
        }
        Ok(vcpus)
    }

    /// One more vCPU. It waits for another one to start it.
    fn create(&self, vm: &Vm, index: u32) -> Result<Vcpu, BuildError> {
        let vcpu = Vcpu::create(vm, index, self.topology.apic_id(index))?;
        self.configure(&vcpu)?;
        Ok(vcpu)
    }

    fn configure(&self, vcpu: &Vcpu) -> Result<(), BuildError> {
        let cpuid = cpuid::configure(&self.host, &self.cpuid, vcpu.index())?;
        Ok(vcpu.configure(&cpuid)?)
    }
}

/// What each vCPU's thread works on.
pub(super) struct Surroundings {
    pub(super) buses: Buses,
    pub(super) memory: GuestRam,
    pub(super) watch: Arc<dyn Watch>,
    pub(super) started: Instant,
}

/// A vCPU of a machine. KVM keeps every vCPU that was made: one that was plugged out stays, paused, for its return, and
/// then waits to be started like a new one.
struct Place {
    thread: VcpuThread,
    plugged: bool,
}

/// The vCPUs of a machine in the order of their numbers.
pub(super) struct Vcpus {
    plan: VcpuPlan,
    around: Surroundings,
    places: Vec<Place>,
    /// Whether those that are plugged in run.
    running: bool,
    /// How those that come are debugged.
    debug: kvm_guest_debug,
}

impl Vcpus {
    /// No vCPU yet.
    pub(super) fn new(plan: VcpuPlan, around: Surroundings) -> Self {
        Self {
            plan,
            around,
            places: Vec::new(),
            running: false,
            debug: kvm_guest_debug::default(),
        }
    }

    /// Takes the first vCPUs, the first of which enters at `entry`. They are paused.
    ///
    /// # Errors
    ///
    /// KVM refused the entry, or there is no thread to be had.
    pub(super) fn start(&mut self, vcpus: Vec<Vcpu>, entry: &BootEntry) -> Result<(), BuildError> {
        if let Some(boot_vcpu) = vcpus.first() {
            boot_vcpu.enter_at(entry)?;
        }
        for vcpu in vcpus {
            let thread = self.spawn(vcpu)?;
            self.places.push(Place {
                thread,
                plugged: true,
            });
        }
        Ok(())
    }

    fn spawn(&self, vcpu: Vcpu) -> Result<VcpuThread, BuildError> {
        let Surroundings {
            buses,
            memory,
            watch,
            started,
        } = &self.around;
        let (buses, memory, watch) = (buses.clone(), memory.clone(), Arc::clone(watch));
        VcpuThread::spawn(vcpu, buses, memory, watch, *started)
            .map_err(BuildError::host("a thread for a vCPU"))
    }

    /// Number of vCPUs that are plugged in.
    pub(super) fn count(&self) -> u32 {
        self.places.iter().filter(|place| place.plugged).count() as u32
    }

    /// The largest number of vCPUs.
    pub(super) fn max(&self) -> u32 {
        self.plan.max
    }

    /// The numbers of those that are plugged in, in order.
    pub(super) fn plugged(&self) -> impl DoubleEndedIterator<Item = u32> {
        let plugged = |(index, place): (u32, &Place)| place.plugged.then_some(index);
        (0..)
            .zip(&self.places)
            .filter_map(plugged)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The numbers that vCPUs get until there are `count`.
    fn next(&self, count: u32) -> Vec<u32> {
        (0..self.plan.max)
            .filter(|index| {
                let place = self.places.get(*index as usize);
                place.is_none_or(|place| !place.plugged)
            })
            .take(count.saturating_sub(self.count()) as usize)
            .collect()
    }

    /// Makes the vCPUs that are missing until there are `count`, without plugging them in: what can fail about that.
    ///
    /// # Errors
    ///
    /// A vCPU cannot be made.
    pub(super) fn prepare(&mut self, vm: &Vm, count: u32) -> Result<(), BuildError> {
        // Those that are not there yet come last, and one after the other.
        for index in self.next(count) {
            if (index as usize) < self.places.len() {
                continue;
            }
            let vcpu = self.plan.create(vm, index)?;
            if self.debug.control != 0 {
                vcpu.debug(&self.debug)?;
            }
            let thread = self.spawn(vcpu)?;
            self.places.push(Place {
                thread,
                plugged: false,
            });
        }
        Ok(())
    }

    /// Plugs in vCPUs until there are `count`, and gives the numbers of the new ones. They do what the others do: run, and
    /// wait to be started, or stand still.
    ///
    /// # Errors
    ///
    /// A vCPU cannot be made; none was plugged in.
    pub(super) fn grow_to(&mut self, vm: &Vm, count: u32) -> Result<Vec<u32>, BuildError> {
        self.prepare(vm, count)?;
        let next = self.next(count);
        for index in &next {
            let place = &mut self.places[*index as usize];
            place.plugged = true;
            if self.running {
                place.thread.resume();
            }
        }
        Ok(next)
    }

    /// Takes vCPU `index` out of the guest, if it is there. Does not wait for it: the guest may have given it up in the
    /// middle of something slow.
    pub(super) fn unplug(&mut self, index: u32) {
        if let Some(place) = self.places.get_mut(index as usize) {
            place.plugged = false;
            place.thread.unplug();
        }
    }

    /// Returns when all are out of the guest.
    pub(super) fn pause(&mut self) {
        self.running = false;
        let places = self.places.iter();
        let pausing: Vec<_> = places.map(|place| place.thread.pause()).collect();
        for vcpu in pausing {
            vcpu.wait();
        }
    }

    /// Lets those that are plugged in run.
    pub(super) fn resume(&mut self) {
        self.running = true;
        for place in self.places.iter().filter(|place| place.plugged) {
            place.thread.resume();
        }
    }

    /// Lets those of `indexes` run that are plugged in.
    pub(super) fn resume_only(&mut self, indexes: &[u32]) {
        self.running = true;
        let places = (0..).zip(&self.places);
        for (_, place) in places.filter(|(index, place)| place.plugged && indexes.contains(index)) {
            place.thread.resume();
        }
    }

    /// Has `question` answered by vCPU `index`, if it is plugged in.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        index: u32,
        question: impl FnOnce(&mut Vcpu) -> Result<T, VcpuError> + Send + 'static,
    ) -> Result<T, VcpuError> {
        let place = self.places.get(index as usize);
        let place = place.filter(|place| place.plugged);
        let place = place.ok_or(VcpuError::Ended { index })?;
        place.thread.ask(question).wait()
    }

    /// Has all be debugged as `debug` says, those that come later too, but for those of `others`.
    ///
    /// # Errors
    ///
    /// KVM cannot do that.
    pub(super) fn debug(
        &mut self,
        debug: kvm_guest_debug,
        others: &[(u32, kvm_guest_debug)],
    ) -> Result<(), VcpuError> {
        self.debug = debug;
        let asked: Vec<_> = (0..)
            .zip(&self.places)
            .map(|(index, place)| {
                let other = others.iter().find(|(other, _)| *other == index);
                let debug = other.map_or(debug, |(_, debug)| *debug);
                place.thread.ask(move |vcpu| vcpu.debug(&debug))
            })
            .collect();
        asked.into_iter().try_for_each(Asked::wait)
    }

    /// Raises a non-maskable interrupt on every vCPU.
    pub(super) fn inject_nmi(&self) {
        for place in self.places.iter().filter(|place| place.plugged) {
            place.thread.inject_nmi();
        }
    }

    pub(super) fn measure(&self) -> Vec<VcpuMetrics> {
        let places = self.places.iter();
        places.map(|place| place.thread.measure()).collect()
    }

    /// What the registers of those that are plugged in hold, by their numbers. All are paused.
    ///
    /// # Errors
    ///
    /// KVM does not tell.
    pub(super) fn registers(&self) -> Result<Vec<(u32, Registers)>, VcpuError> {
        debug_assert!(!self.running);
        let plugged = (0..).zip(&self.places).filter(|(_, place)| place.plugged);
        let asked: Vec<_> = plugged
            .map(|(index, place)| (index, place.thread.registers()))
            .collect();
        asked
            .into_iter()
            .map(|(index, reading)| Ok((index, reading.wait()?)))
            .collect()
    }

    /// Ends all threads.
    pub(super) fn clear(&mut self) {
        self.places.clear();
    }
}
