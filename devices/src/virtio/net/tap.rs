//! A tap interface of the host: one of the tun driver, or the character device of a macvtap.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::backend::{Backend, Offloads};
use super::rtnetlink::LinkMonitor;
use super::spec::HEADER_LEN;

/// Why a descriptor cannot serve as the port of a network device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no tap, or one whose interface was deleted.
    #[error("the descriptor is not that of a tap interface")]
    NotTap(#[source] io::Error),
    /// It carries IP packets and not Ethernet frames.
    #[error(
        "interface {0:?} is a tun (IP packets), expected a tap (Ethernet frames): open it with IFF_TAP"
    )]
    Tun(String),
    /// It puts 4 bytes before each packet that are not part of the virtio header.
    #[error("interface {0:?} was opened with packet information: open it with IFF_NO_PI")]
    PacketInformation(String),
    /// It has no virtio header.
    #[error("interface {0:?} was opened without the virtio header: open it with IFF_VNET_HDR")]
    NoHeader(String),
    /// A call failed.
    #[error("cannot {what} of interface {name:?}")]
    Call {
        /// The interface.
        name: String,
        /// What the call is for.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// One queue of an opened tap, with the virtio header of 12 bytes and no packet information.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
    multi_queue: bool,
    /// A macvtap does not tell whoever waits for it that it is gone.
    monitor: Option<LinkMonitor>,
}

impl Tap {
    /// Takes an opened tap, makes it non-blocking, sets the length of its header, and asks what it can offload. A packet
    /// filter on it is taken away.
    ///
    /// # Errors
    ///
    /// [`TapError`] tells what is wrong with it.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let request = interface(&fd).map_err(TapError::NotTap)?;
        let name = name(&request);
        if flags(&request) & libc::IFF_TAP == 0 {
            return Err(TapError::Tun(name));
        }
        if flags(&request) & libc::IFF_VNET_HDR == 0 {
            return Err(TapError::NoHeader(name));
        }
        let failed = |what| {
            let name = name.clone();
            move |source| TapError::Call { name, what, source }
        };
        let driver = driver(&fd).map_err(failed("read the flags"))?;
        if driver
            == (Driver::Tun {
                packet_information: true,
            })
        {
            return Err(TapError::PacketInformation(name));
        }
        let monitor = match driver {
            Driver::Tun { .. } => None,
            Driver::Macvtap => Some(LinkMonitor::new().map_err(failed("watch the state"))?),
        };
        set_nonblocking(&fd).map_err(failed("make the descriptor non-blocking"))?;
        set_header_len(&fd).map_err(failed("set the header length"))?;
        let offloads = probe_offloads(&fd);
        set_offloads(&fd, Offloads::empty()).map_err(failed("set the offloads"))?;
        Ok(Self {
            fd,
            name,
            offloads,
            multi_queue: flags(&request) & libc::IFF_MULTI_QUEUE != 0,
            monitor,
        })
    }

    /// Whether the interface can have several queues.
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// The name of the interface when the tap was taken.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A second handle on the same queue of the same interface.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            name: self.name.clone(),
            offloads: self.offloads,
            multi_queue: self.multi_queue,
            monitor: self
                .monitor
                .as_ref()
                .map(|_| LinkMonitor::new())
                .transpose()?,
        })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Backend for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.fd, offloads)
    }

    fn set_receiving(&self, receiving: bool) -> io::Result<()> {
        match set_queue(&self.fd, receiving) {
            // It is so already.
            Err(error) if self.multi_queue && error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    fn changes(&self) -> Option<RawFd> {
        self.monitor.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn take_changes(&self) {
        if let Some(monitor) = &self.monitor {
            monitor.take();
        }
    }

    fn is_attached(&self) -> bool {
        interface(&self.fd).is_ok()
    }
}

/// Name and flags of the interface that `fd` is attached to.
fn interface(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is bytes and integers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an ifreq.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    Ok(request)
}

fn name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|byte| byte.cast_unsigned());
    let name = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn flags(request: &libc::ifreq) -> libc::c_int {
    // SAFETY: TUNGETIFF filled the flags.
    #[allow(unsafe_code)]
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    flags.into()
}

/// What a descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// A tap of the tun driver.
    Tun {
        /// 4 bytes that are not part of the packet go before it.
        packet_information: bool,
    },
    /// The character device of a macvtap, which has no packet information.
    Macvtap,
}

/// Finds out what `fd` is of.
///
/// TUNGETIFF reports IFF_NO_PI, and for a tun IFF_NOFILTER, which is the same bit: set, it only tells something while there
/// is a filter. A macvtap has no filters.
fn driver(fd: &OwnedFd) -> io::Result<Driver> {
    if flags(&interface(fd)?) & libc::IFF_NO_PI == 0 {
        return Ok(Driver::Tun {
            packet_information: true,
        });
    }
    let mut accept_all = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: u32::MAX,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut accept_all,
    };
    // SAFETY: TUNATTACHFILTER reads a program of the given length.
    #[allow(unsafe_code)]
    let attached =
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) });
    match attached {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Driver::Macvtap),
        result => result?,
    }
    let result = interface(fd);
    // SAFETY: TUNDETACHFILTER takes a program, and does not look at it.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNDETACHFILTER, &raw const program) })?;
    Ok(Driver::Tun {
        packet_information: flags(&result?) & libc::IFF_NO_PI == 0,
    })
}

/// Lets the queue of `fd` take part in receiving, or not.
fn set_queue(fd: &OwnedFd, receiving: bool) -> io::Result<()> {
    // SAFETY: an ifreq is bytes and integers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flag = if receiving {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: TUNSETQUEUE reads an ifreq.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    #[allow(unsafe_code)]
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes an integer.
    #[allow(unsafe_code)]
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn set_header_len(fd: &OwnedFd) -> io::Result<()> {
    let len = HEADER_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

fn set_offloads(fd: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let bits = libc::c_ulong::from(offloads.bits());
    // SAFETY: TUNSETOFFLOAD takes the flags by value.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })
}

/// Tries the offloads one by one: kernels differ in which they know.
fn probe_offloads(fd: &OwnedFd) -> Offloads {
    if set_offloads(fd, Offloads::CSUM).is_err() {
        return Offloads::empty();
    }
    let mut known = Offloads::CSUM;
    for offload in [
        Offloads::TSO4,
        Offloads::TSO6,
        Offloads::TSO_ECN,
        Offloads::UFO,
        Offloads::USO,
    ] {
        if set_offloads(fd, known | offload).is_ok() {
            known |= offload;
        }
    }
    known
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
