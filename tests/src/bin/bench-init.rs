//! First process of a benchmark's guest: leaves a mark that a tracer of the host's KVM sees, waits if it is told to,
//! and ends the machine. It is linked statically and is all there is in the guest's userland.

use std::arch::asm;
use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::time::Duration;

/// Written to the debug port by the first instruction of userland that can.
const MARK: u8 = 123;
const DEBUG_PORT: u16 = 0x80;

fn main() -> Result<(), Box<dyn Error>> {
    mark()?;
    fs::create_dir_all("/proc")?;
    mount_proc()?;
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let value = |key: &str| {
        cmdline
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    if let Some(seconds) = value("bench.settle") {
        std::thread::sleep(Duration::from_secs(seconds.parse()?));
    }
    end(value("bench.end") == Some("reboot"));
    Err("the machine did not end".into())
}

fn mark() -> std::io::Result<()> {
    // SAFETY: it changes nothing but the right of this thread to use I/O ports.
    #[expect(unsafe_code)]
    if unsafe { libc::iopl(3) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the instruction touches neither memory nor stack, and the right to use the port was had above.
    #[expect(unsafe_code)]
    unsafe {
        asm!("out dx, al", in("dx") DEBUG_PORT, in("al") MARK, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}

fn mount_proc() -> Result<(), Box<dyn Error>> {
    let (target, kind) = (CString::new("/proc")?, CString::new("proc")?);
    // SAFETY: both strings live longer than the call; procfs takes no data.
    #[expect(unsafe_code)]
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn end(by_reboot: bool) {
    let how = if by_reboot {
        libc::RB_AUTOBOOT
    } else {
        libc::RB_POWER_OFF
    };
    // SAFETY: the call takes no pointer; the machine ends with it.
    #[expect(unsafe_code)]
    unsafe {
        libc::reboot(how);
    }
}
