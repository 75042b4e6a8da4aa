//! Interfaces that are macvtaps.

use super::*;

/// Runs `ip` in the namespace of this thread.
fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("install it with `apt-get install iproute2`");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn macvtap_carries_packets_and_its_end_takes_the_link_down() {
    in_namespace(|| {
        // A cable with the host's address at one end, and the macvtap on the other.
        ip("link add up0 type veth peer name down0");
        ip("address add 10.94.0.1/24 dev up0");
        ip("link set up0 up");
        ip("link set down0 up");
        ip(
            "link add link down0 name mv0 index 94001 address 02:00:00:00:00:77 type macvtap mode bridge",
        );
        let open = net::open(&config("tap=mv0,num_queues=4"), &[]).unwrap();
        assert_eq!(open.mac(), MacAddr([2, 0, 0, 0, 0, 0x77]));
        let host = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000)).unwrap();
        host.set_broadcast(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(&open);
        let mut bytes = [0; 100];
        let mut len = 0;
        // The kernel takes its time to find the cable plugged in.
        wait_until(|| {
            guest.send(&frame(5000, b"out by a macvtap"));
            host.recv_from(&mut bytes).is_ok_and(|(count, _)| {
                len = count;
                true
            })
        });
        assert_eq!(&bytes[..len], b"out by a macvtap");
        host.send_to(b"in by a macvtap", (Ipv4Addr::new(10, 94, 0, 255), 6000))
            .unwrap();
        guest.receives(b"in by a macvtap");
        delete("mv0");
        wait_until(|| !guest.net.handle().is_link_up());
        guest.send(&frame(5000, b"lost"));
        drop(guest);
        let error = failure(&config("tap=down0"));
        assert!(error.contains("tap=down0 is a veth interface"), "{error}");
    });
}

#[test]
fn macvtap_gets_the_address_of_the_guest_and_no_ip() {
    in_namespace(|| {
        ip("link add up0 type veth peer name down0");
        ip(
            "link add link down0 name mv0 index 94002 address 02:00:00:00:00:77 type macvtap mode bridge",
        );
        let text = failure(&with_address("tap=mv0"));
        assert!(
            text.starts_with("--net: tap=mv0 is a macvtap, expected no ip"),
            "{text}"
        );
        let open = net::open(&config("tap=mv0,mac=02:00:00:00:00:99"), &[]).unwrap();
        assert_eq!(open.mac(), MacAddr([2, 0, 0, 0, 0, 0x99]));
        drop(open);
        // What was changed was changed back.
        let open = net::open(&config("tap=mv0"), &[]).unwrap();
        assert_eq!(open.mac(), MacAddr([2, 0, 0, 0, 0, 0x77]));
    });
}
