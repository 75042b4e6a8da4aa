//! How taps are found, made and refused.

use super::*;

#[test]
fn new_tap_is_named_by_the_kernel_and_goes_with_its_owner() {
    in_namespace(|| {
        let first = net::open(&config("mtu=1400"), &[]).unwrap();
        let second = net::open(&config("mac=52:54:00:12:34:56"), &[]).unwrap();
        assert_eq!(first.interface(), "vmtap0");
        assert_eq!(second.interface(), "vmtap1");
        assert_eq!(second.mac(), MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert!(first.mac().is_unicast());
        let (_, mtu, up) = interface("vmtap0").unwrap();
        assert_eq!((mtu, up), (1400, true));
        let mut reported = [0; 2];
        first
            .device(silent())
            .unwrap()
            .read_config(10, &mut reported);
        assert_eq!(u16::from_le_bytes(reported), 1400);
        drop(first);
        assert_eq!(interface("vmtap0"), None);
        assert!(interface("vmtap1").is_some());
    });
}

#[test]
fn devices_of_one_tap_one_after_the_other_have_the_same_address() {
    in_namespace(|| {
        let open = net::open(&config("tap=again"), &[]).unwrap();
        let mac = |net: &Net<Tap>| {
            let mut mac = [0; 6];
            net.read_config(0, &mut mac);
            mac
        };
        let first = open.device(silent()).unwrap();
        let drawn = mac(&first);
        drop(first);
        assert_eq!(mac(&open.device(silent()).unwrap()), drawn);
        assert_eq!(open.mac(), MacAddr(drawn));
    });
}

#[test]
fn existing_tap_is_used_and_left_where_it_was() {
    in_namespace(|| {
        keep(&foreign("mine", libc::IFF_TAP | libc::IFF_NO_PI));
        let index = interface("mine").unwrap().0;
        let mut open = net::open(&with_address("tap=mine"), &[]).unwrap();
        assert_eq!(interface("mine").unwrap().0, index);
        open.settle();
        drop(open);
        assert_eq!(interface("mine"), Some((index, 1500, true)));
        // The address is there already, and that is no error.
        net::open(&with_address("tap=mine"), &[]).unwrap();
    });
}

#[test]
fn tap_in_use_is_refused() {
    in_namespace(|| {
        let _owner = foreign("busy", libc::IFF_TAP | libc::IFF_NO_PI);
        let text = failure(&config("tap=busy"));
        assert!(
            text.starts_with("--net: tap=busy is in use by another process"),
            "{text}"
        );
    });
}

#[test]
fn changes_of_a_tap_are_undone_if_its_network_does_not_come_about() {
    in_namespace(|| {
        keep(&foreign("mine", libc::IFF_TAP | libc::IFF_NO_PI));
        let before = interface("mine");
        let mut config = with_address("tap=mine");
        config.mtu = Some(1400);
        let open = net::open(&config, &[]).unwrap();
        let (_, mtu, up) = interface("mine").unwrap();
        assert_eq!((mtu, up), (1400, true));
        drop(open);
        assert_eq!(interface("mine"), before);
        assert!(before.is_some_and(|(_, mtu, up)| mtu == 1500 && !up));

        // An address that is no host's is found out after the others were set.
        config.ip = Some(IpAddr::V4(Ipv4Addr::new(0, 0, 0, 1)));
        config.mtu = Some(65535);
        net::open(&config, &[]).unwrap_err();
        assert_eq!(interface("mine"), before);
    });
}

#[test]
fn tap_is_opened_once_for_each_pair() {
    in_namespace(|| {
        let open = net::open(&config("num_queues=8"), &[]).unwrap();
        // One device after the other sets the same queues aside.
        for _ in 0..2 {
            let device = open.device(silent()).unwrap();
            assert_eq!(device.queue_sizes().len(), 9);
            assert_ne!(device.features() & 1 << 22, 0);
        }
    });
}

#[test]
fn tap_with_several_queues_may_be_used_with_fewer() {
    in_namespace(|| {
        keep(&foreign(
            "many",
            libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE,
        ));
        for queues in [2, 6] {
            let open = net::open(&config(&format!("tap=many,num_queues={queues}")), &[]).unwrap();
            let guest = Guest::new(&open);
            assert_eq!(guest.net.queue_sizes().len(), queues + 1);
        }
    });
}

#[test]
fn tap_with_one_queue_is_refused_for_several() {
    in_namespace(|| {
        keep(&foreign("one", libc::IFF_TAP | libc::IFF_NO_PI));
        let text = failure(&config("tap=one,num_queues=4"));
        assert!(
            text.starts_with(
                "--net: tap=one has a single queue, expected one with several for num_queues=4; make it with"
            ),
            "{text}"
        );
    });
}

#[test]
fn descriptors_of_several_queues_are_of_one_interface() {
    in_namespace(|| {
        const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let with = |files: [&File; 2]| {
            let [first, second] = files.map(AsRawFd::as_raw_fd);
            config(&format!("fd=[{first},{second}],num_queues=4"))
        };
        let many = || foreign("many", FLAGS | libc::IFF_MULTI_QUEUE);
        let (first, second) = (many(), many());
        net::open(&with([&first, &second]), &[])
            .unwrap()
            .device(silent())
            .unwrap();
        let other = foreign("other", FLAGS | libc::IFF_MULTI_QUEUE);
        assert_eq!(
            failure(&with([&first, &other])),
            "--net: fds: the descriptors are of many and of other, expected queues of one interface"
        );
        let single = foreign("single", FLAGS);
        assert_eq!(
            failure(&with([&single, &single])),
            "--net: fds: interface single was opened with a single queue, expected IFF_MULTI_QUEUE, as there are 2 descriptors"
        );
    });
}

#[test]
fn tun_is_refused() {
    in_namespace(|| {
        keep(&foreign("layer3", libc::IFF_TUN | libc::IFF_NO_PI));
        let text = failure(&config("tap=layer3"));
        assert!(
            text.starts_with("--net: tap=layer3 is a tun interface, expected a tap"),
            "{text}"
        );
    });
}

#[test]
fn mtu_that_no_tap_has_is_refused() {
    in_namespace(|| {
        let text = failure(&config("mtu=65535"));
        assert!(
            text.starts_with("--net: cannot set mtu=65535 on interface vmtap0: "),
            "{text}"
        );
    });
}
