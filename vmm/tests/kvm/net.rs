//! Real taps, each test in a network namespace of its own. Needs root and /dev/net/tun.

mod macvtap;
mod opened;

use std::error::Error;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api::config::{MacAddr, NetConfig};
use api::request::{Descriptors, Reply, Request, Service};
use devices::memory::GuestRam;
use devices::virtio::VirtioDevice;
use devices::virtio::driver::{self, CountingInterrupt, Ring, readable, writable};
use devices::virtio::net::{LinkObserver, Net, Tap};
use netlink_bindings::rt_link::{self, Ifinfomsg};
use netlink_socket2::NetlinkSocket;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm::wire::net::{self, OpenNet};

use crate::code::Code;
use crate::guest::Setup;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 94, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 94, 0, 2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Features: VERSION_1, MRG_RXBUF, STATUS, and checksum and TCP segmentation offload both ways.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 16 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 3;

/// Runs `test` on a thread with a network namespace of its own, which has no interface but a loopback that is down.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: the call concerns this thread only.
        #[allow(unsafe_code)]
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert_eq!(
            result, 0,
            "cannot make a network namespace ({error}): run as root, as in `sudo ./tests/run kvm`"
        );
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn config(value: &str) -> NetConfig {
    value.parse().unwrap()
}

fn with_address(value: &str) -> NetConfig {
    NetConfig {
        ip: Some(HOST.into()),
        mask: Some(IpAddr::V4(Ipv4Addr::new(255, 255, 255, 0))),
        ..config(value)
    }
}

/// The error and its causes, as the binary prints them.
fn failure(config: &NetConfig) -> String {
    let error = net::open(config, &[]).unwrap_err();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A tap or tun as another program would open it.
fn foreign(name: &str, flags: libc::c_int) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("load the driver with `modprobe tun`");
    // SAFETY: an ifreq is bytes and integers, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    file
}

fn keep(file: &File) {
    // SAFETY: TUNSETPERSIST takes an integer.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Index, MTU and whether it is up, if there is such an interface.
fn interface(name: &str) -> Option<(i32, u32, bool)> {
    let mut socket = NetlinkSocket::new();
    let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
    request.encode().push_ifname_bytes(name.as_bytes());
    let mut replies = socket.request(&request).unwrap();
    let (header, link) = replies.recv_one().ok()?;
    Some((
        header.ifi_index,
        link.get_mtu().unwrap(),
        header.ifi_flags & libc::IFF_UP as u32 != 0,
    ))
}

fn set_up(name: &str, up: bool) {
    let header = Ifinfomsg {
        ifi_index: interface(name).unwrap().0,
        ifi_flags: u32::from(up) * libc::IFF_UP as u32,
        ifi_change: libc::IFF_UP as u32,
        ..Ifinfomsg::new()
    };
    let request = rt_link::Request::new().op_setlink_do(&header);
    NetlinkSocket::new()
        .request(&request)
        .unwrap()
        .recv_ack()
        .unwrap();
}

fn delete(name: &str) {
    let header = Ifinfomsg {
        ifi_index: interface(name).unwrap().0,
        ..Ifinfomsg::new()
    };
    let request = rt_link::Request::new().op_dellink_do(&header);
    NetlinkSocket::new()
        .request(&request)
        .unwrap()
        .recv_ack()
        .unwrap();
}

/// Nobody who is told of the link.
fn silent() -> Arc<dyn LinkObserver> {
    struct Nobody;
    impl LinkObserver for Nobody {
        fn link_changed(&self) {}
    }
    Arc::new(Nobody)
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "what was waited for did not come");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A running device with the guest's memory.
struct Guest {
    memory: GuestRam,
    rx: Ring,
    tx: Ring,
    net: Net<Tap>,
}

impl Guest {
    fn new(open: &OpenNet) -> Self {
        let memory = driver::memory(&[(0, 4 << 20)]);
        let (rx, tx) = (
            Ring::new(&memory, 0x1_0000, 256),
            Ring::new(&memory, 0x4_0000, 256),
        );
        let mut net = open.device(silent()).unwrap();
        assert_eq!(
            net.features() & FEATURES,
            FEATURES,
            "this kernel's taps offload checksums and TCP segmentation"
        );
        let interrupt = Arc::new(CountingInterrupt::default());
        net.start(driver::activation(
            &memory,
            &[&rx, &tx],
            FEATURES,
            &interrupt,
        ))
        .unwrap();
        Self {
            memory,
            rx,
            tx,
            net,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let memory = self.memory.memory();
        memory
            .write_slice(&[0; 12], GuestAddress(0x8_0000))
            .unwrap();
        memory.write_slice(frame, GuestAddress(0x8_000c)).unwrap();
        self.tx.push(&[readable(0x8_0000, frame.len() as u32 + 12)]);
        self.tx.kick();
        self.tx.wait_used(TIMEOUT).expect("the packet is taken");
    }

    /// Waits for a frame that ends with `payload`; the host sends others of its own accord.
    fn receives(&mut self, payload: &[u8]) {
        let end = Instant::now() + TIMEOUT;
        loop {
            assert!(Instant::now() < end, "the packet did not come");
            self.rx.push(&[writable(0x10_0000, 4096)]);
            self.rx.kick();
            let used = self.rx.wait_used(TIMEOUT).expect("a packet comes");
            let mut frame = vec![0; used.len as usize];
            self.memory
                .memory()
                .read_slice(&mut frame, GuestAddress(0x10_0000))
                .unwrap();
            assert_eq!(frame[10..12], [1, 0], "one buffer");
            if frame.ends_with(payload) {
                return;
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.net.stop();
    }
}

/// A UDP packet from the guest to the host's `port`, in a broadcast frame.
fn frame(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((28 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(GUEST.octets());
    ip.extend(HOST.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 2, 8, 0]);
    frame.extend(ip);
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

#[test]
fn descriptor_of_a_tap_is_used() {
    in_namespace(|| {
        let file = foreign(
            "given",
            libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        );
        let open = net::open(&config(&format!("fd={}", file.as_raw_fd())), &[]).unwrap();
        drop(file);
        assert_eq!(open.interface(), "given");
        set_up("given", true);
        let guest = Guest::new(&open);
        assert!(guest.net.handle().is_link_up());
    });
}

#[test]
fn descriptor_of_a_tap_with_wrong_flags_is_refused() {
    in_namespace(|| {
        let cases = [
            (
                libc::IFF_TAP | libc::IFF_NO_PI,
                "without the virtio header: open it with IFF_VNET_HDR",
            ),
            (
                libc::IFF_TAP | libc::IFF_VNET_HDR,
                "with packet information: open it with IFF_NO_PI",
            ),
            (
                libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
                "open it with IFF_TAP",
            ),
        ];
        for (flags, expected) in cases {
            let file = foreign("wrong", flags);
            let text = failure(&config(&format!("fd={}", file.as_raw_fd())));
            assert!(
                text.contains("cannot be a network: interface \"wrong\"")
                    && text.ends_with(expected),
                "{text}"
            );
        }
    });
}

#[test]
fn packets_go_both_ways() {
    in_namespace(|| {
        let open = net::open(&with_address("tap=cable"), &[]).unwrap();
        let host = UdpSocket::bind((HOST, 5000)).unwrap();
        host.set_broadcast(true).unwrap();
        host.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut guest = Guest::new(&open);
        for round in 0..50_u8 {
            let payload = vec![round; 100 + 20 * usize::from(round)];
            guest.send(&frame(5000, &payload));
            let mut bytes = [0; 2000];
            let (len, from) = host
                .recv_from(&mut bytes)
                .expect("the guest's packet comes");
            assert_eq!(from.ip(), IpAddr::V4(GUEST));
            assert_eq!(bytes[..len], payload);

            let payload = vec![!round; 100 + 20 * usize::from(round)];
            host.send_to(&payload, (Ipv4Addr::new(10, 94, 0, 255), 6000))
                .unwrap();
            guest.receives(&payload);
        }
    });
}

#[test]
fn link_follows_the_interface_down_and_up() {
    in_namespace(|| {
        let open = net::open(&with_address("tap=cable"), &[]).unwrap();
        let mut guest = Guest::new(&open);
        set_up("cable", false);
        guest.send(&frame(5000, b"lost"));
        wait_until(|| !guest.net.handle().is_link_up());
        set_up("cable", true);
        wait_until(|| guest.net.handle().is_link_up());
    });
}

/// Sends `payload` to whoever listens on the tap with the host's address.
fn broadcast(payload: &[u8], count: usize) {
    let host = UdpSocket::bind((HOST, 0)).unwrap();
    host.set_broadcast(true).unwrap();
    for _ in 0..count {
        host.send_to(payload, (Ipv4Addr::new(10, 94, 0, 255), 6000))
            .unwrap();
    }
}

#[test]
fn packets_for_a_link_that_is_set_down_are_lost_and_counted() {
    in_namespace(|| {
        let open = net::open(&with_address("tap=cable"), &[]).unwrap();
        let mut guest = Guest::new(&open);
        let (handle, metrics) = (guest.net.handle(), guest.net.metrics());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        handle.set_link(false);
        broadcast(b"lost", 20);
        wait_until(|| count(&metrics.rx_link_down) >= 20);
        assert_eq!(count(&metrics.rx_errors), 0);
        handle.set_link(true);
        broadcast(b"found", 1);
        guest.receives(b"found");
        assert_eq!(count(&metrics.rx_packets), 1, "and nothing older");
    });
}

#[test]
fn packets_from_before_the_driver_are_thrown_away_all() {
    in_namespace(|| {
        let open = net::open(&with_address("tap=cable"), &[]).unwrap();
        broadcast(b"before", 20);
        open.device(silent()).unwrap().reset();
        let mut guest = Guest::new(&open);
        broadcast(b"after", 1);
        guest.receives(b"after");
        let packets = guest.net.metrics().rx_packets.load(Ordering::Relaxed);
        assert!(packets < 20, "{packets}");
    });
}

#[test]
fn link_of_a_deleted_interface_goes_down_and_the_device_goes_on() {
    in_namespace(|| {
        let open = net::open(&with_address("tap=cable"), &[]).unwrap();
        let mut guest = Guest::new(&open);
        guest.rx.push(&[writable(0x10_0000, 4096)]);
        guest.rx.kick();
        delete("cable");
        wait_until(|| !guest.net.handle().is_link_up());
        guest.send(&frame(5000, b"lost"));
        let queues = guest.net.stop();
        assert_eq!(queues.len(), 2);
        let again = open.device(silent()).unwrap();
        assert!(!again.handle().is_link_up());
    });
}

#[test]
fn packets_go_to_the_pairs_that_the_guest_uses() {
    const MQ: u64 = FEATURES | 1 << 17 | 1 << 22;
    const COMMAND: u64 = 0xc_0000;
    in_namespace(|| {
        let open = net::open(&with_address("tap=wide,num_queues=4"), &[]).unwrap();
        let memory = driver::memory(&[(0, 4 << 20)]);
        let ring = |at: u64| Ring::new(&memory, 0x1_0000 + at * 0x4000, 256);
        let mut rings: Vec<Ring> = (0..5).map(ring).collect();
        let interrupt = Arc::new(CountingInterrupt::default());
        let mut net = open.device(silent()).unwrap();
        let given: Vec<&Ring> = rings.iter().collect();
        net.start(driver::activation(&memory, &given, MQ, &interrupt))
            .unwrap();
        // Packets of many flows, and how many of them each pair was given.
        let flows = |rings: &mut [Ring]| {
            for at in [0, 2] {
                for _ in 0..80 {
                    rings[at].push(&[writable(0x10_0000, 4096)]);
                }
                rings[at].kick();
            }
            for _ in 0..64 {
                let host = UdpSocket::bind((HOST, 0)).unwrap();
                host.set_broadcast(true).unwrap();
                host.send_to(b"a flow", (Ipv4Addr::new(10, 94, 0, 255), 6000))
                    .unwrap();
            }
            thread::sleep(Duration::from_millis(200));
            [0, 2].map(|at| std::iter::from_fn(|| rings[at].pop_used()).count())
        };
        let set_pairs = |rings: &mut [Ring], count: u8| {
            let memory = memory.memory();
            let command = [4, 0, count, 0];
            memory.write_slice(&command, GuestAddress(COMMAND)).unwrap();
            rings[4].push(&[readable(COMMAND, 4), writable(COMMAND + 8, 1)]);
            rings[4].kick();
            rings[4].wait_used(TIMEOUT).expect("an answer comes");
            let ack: u8 = memory.read_obj(GuestAddress(COMMAND + 8)).unwrap();
            assert_eq!(ack, 0);
        };
        let [first, second] = flows(&mut rings);
        assert!(first >= 64 && second == 0, "{first} and {second}");
        set_pairs(&mut rings, 2);
        let [first, second] = flows(&mut rings);
        assert!(first > 0 && second > 0, "{first} and {second}");
        set_pairs(&mut rings, 1);
        let [first, second] = flows(&mut rings);
        assert!(first >= 64 && second == 0, "{first} and {second}");
        assert_eq!(net.stop().len(), 5);
    });
}

/// Takes CAP_NET_ADMIN from this thread.
fn drop_net_admin() {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_NET_ADMIN: u32 = 12;
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable, first those numbered 0 to 31, then the others.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: version 3 of the call writes two times three numbers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    for set in &mut sets[0] {
        *set &= !(1 << CAP_NET_ADMIN);
    }
    // SAFETY: version 3 of the call reads two times three numbers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn without_privileges_the_command_that_makes_a_tap_is_told() {
    in_namespace(|| {
        drop_net_admin();
        let error = net::open(&config("tap=tap7"), &[]).unwrap_err();
        assert!(error.is_configuration());
        let text = failure(&config("tap=tap7"));
        let start = "--net: not permitted to use or make interface tap=tap7; have CAP_NET_ADMIN, or have root make a tap";
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.contains("`ip tuntap add dev tap7 mode tap user 0 && ip link set dev tap7 up`"),
            "{text}"
        );
    });
}

#[test]
fn tap_made_beforehand_is_used_without_privileges() {
    in_namespace(|| {
        keep(&foreign("mine", libc::IFF_TAP | libc::IFF_NO_PI));
        let mut prepared = net::open(&with_address("tap=mine,mtu=1400"), &[]).unwrap();
        prepared.settle();
        drop(prepared);
        drop_net_admin();
        let open = net::open(&with_address("tap=mine,mtu=1400"), &[]).unwrap();
        drop(Guest::new(&open));
        drop(open);
        let text = failure(&with_address("tap=mine,mtu=1300"));
        assert!(
            text.starts_with("--net: not permitted to set mtu=1300 on interface mine; "),
            "{text}"
        );
    });
}

#[test]
fn address_that_was_drawn_stays_that_of_the_network() {
    in_namespace(|| {
        let mut setup = Setup::new(Code::new().stop());
        setup.config.net.push(NetConfig::default());
        setup.config.assign_ids();
        let run = setup.serve(None);
        let macs = || match run.mailbox.call(Request::Info) {
            Ok(Reply::Info(info)) => {
                let nets = info.config.net.into_iter();
                nets.map(|net| net.mac).collect::<Vec<_>>()
            }
            other => panic!("vm.info answers {other:?}"),
        };
        run.mailbox.call(setup.create()).unwrap();
        assert_eq!(macs(), [None]);
        run.mailbox.call(Request::Boot).unwrap();
        run.mailbox
            .call(Request::AddNet {
                config: Box::default(),
                descriptors: Descriptors::none(),
            })
            .unwrap();
        let drawn = macs();
        assert!(drawn[0].is_some() && drawn[1].is_some() && drawn[0] != drawn[1]);
        run.mailbox.call(Request::Shutdown).unwrap();
        run.mailbox.call(Request::Boot).unwrap();
        assert_eq!(macs(), drawn);
        run.mailbox.call(Request::ShutdownVmm).unwrap();
        run.wait().unwrap();
    });
}
