//! Debian's kernel booted through the real binary. `./tests/run guest` runs these where KVM can.

mod api;
mod balloon;
mod block;
mod boot;
mod boot_disk;
mod clock;
mod console;
mod cpu;
mod fs;
mod gdb;
mod hotplug;
mod images;
mod lifecycle;
mod memory;
mod mmio;
mod net;
mod power;
mod rng;
mod serial;
mod space;
mod vsock;
mod watchdog;
