//! What happens when a vCPU leaves the guest.

use kvm_bindings::{
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_debug_exit_arch, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Buses;
use super::failure::Reason;
use super::measure::ExitCounters;

/// What to do after an exit.
pub(super) enum Next {
    /// Enter the guest again.
    Run,
    /// The thread was kicked. KVM finishes the instruction of the exit before, then looks for signals: the registers
    /// are those between two instructions, and may be read, written or left for a pause.
    Interrupted,
    /// The guest wants a reset.
    Reset,
    /// The guest wants to be turned off.
    PowerOff,
    /// A processor would reset.
    TripleFault,
    /// It stopped where a debugger wanted it to, or at something of the guest's own that looks alike.
    Debug(kvm_debug_exit_arch),
    /// No way on.
    Fail(Reason),
}

/// Enters the guest, and answers its exit.
pub(super) fn run(vcpu: &mut VcpuFd, buses: &Buses, exits: &ExitCounters) -> Next {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) => {
            return match error.errno() {
                libc::EINTR => {
                    ExitCounters::count(&exits.interrupted);
                    Next::Interrupted
                }
                // The vCPU waits for its start by another one, and was woken for nothing.
                libc::EAGAIN => Next::Run,
                _ => Next::Fail(Reason::Run(error.into())),
            };
        }
    };
    ExitCounters::count(match exit {
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => &exits.io,
        VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => &exits.mmio,
        _ => &exits.other,
    });
    match exit {
        VcpuExit::MmioRead(address, data) => buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.mmio.write(address, data),
        VcpuExit::IoIn(port, data) => {
            let data: *mut [u8] = data;
            let size = io_size(vcpu.get_kvm_run());
            // SAFETY: the slice lies in the vCPU's shared page, outside of the fields read since it was made, and only
            // this thread, which has the vCPU for itself, touches the page outside of KVM_RUN.
            #[expect(unsafe_code)]
            let data = unsafe { &mut *data };
            // A string instruction reads its port several times in one exit.
            for item in data.chunks_mut(size) {
                buses.pio.read(port.into(), item);
            }
        }
        VcpuExit::IoOut(port, data) => {
            let data: *const [u8] = data;
            let size = io_size(vcpu.get_kvm_run());
            // SAFETY: as for the read above.
            #[expect(unsafe_code)]
            let data = unsafe { &*data };
            for item in data.chunks(size) {
                buses.pio.write(port.into(), item);
            }
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Next::Reset,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Next::PowerOff,
        VcpuExit::Debug(at) => return Next::Debug(at),
        VcpuExit::Shutdown => return Next::TripleFault,
        VcpuExit::InternalError => return Next::Fail(Reason::internal_error(vcpu.get_kvm_run())),
        VcpuExit::FailEntry(hardware, cpu) => {
            return Next::Fail(Reason::FailEntry { hardware, cpu });
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            return Next::Fail(Reason::MemoryFault { flags, gpa, size });
        }
        _ => return Next::Fail(Reason::Unexpected(vcpu.get_kvm_run().exit_reason)),
    }
    Next::Run
}

/// The length of each item of a port access, 1, 2 or 4.
fn io_size(run: &kvm_run) -> usize {
    // SAFETY: the last exit was of KVM_EXIT_IO, for which this is the variant of the union that KVM filled.
    #[expect(unsafe_code)]
    let io = unsafe { run.__bindgen_anon_1.io };
    usize::from(io.size.max(1))
}
