//! First process of a benchmark's guest: leaves a mark that a tracer of the host's KVM sees, waits if it is told to,
//! and ends the machine. It is linked statically and is all there is in the guest's userland.

use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

/// Written to a physical address where no machine has memory: the VMM sees an access to a device.
const MARK: u8 = 123;
const MARK_ADDRESS: libc::off_t = 0xc000_0000;
const PAGE: usize = 4096;

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

fn mark() -> Result<(), Box<dyn Error>> {
    let path = CString::new("/mem")?;
    // SAFETY: the string lives longer than the call.
    #[expect(unsafe_code)]
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 1)) };
    if made != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let memory = OpenOptions::new().read(true).write(true).open("/mem")?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    #[expect(unsafe_code)]
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE,
            access,
            flags,
            memory.as_raw_fd(),
            MARK_ADDRESS,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the mapping succeeded, is writable, and no reference points into it.
    #[expect(unsafe_code)]
    unsafe {
        ptr::write_volatile(page.cast::<u8>(), MARK);
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
            ptr::null(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
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
