//! Ports that have names.

use super::*;

#[test]
fn ports_are_announced_by_number_and_name() {
    let mut bench = Bench::ports(3);
    let mut config = [0; 12];
    bench.device.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.device.queue_sizes().len(), 10);
    assert!(bench.is_silent(), "the driver has not asked");
    bench.say(0, 0, 1);
    // The first takes the buffer that was offered above.
    assert!(bench.rings[2].wait_used(TIMEOUT).is_some());
    assert_eq!(bench.hear(), (2, 1, 1, Vec::new()));
    assert_eq!(bench.hear(), (3, 1, 1, Vec::new()));
    bench.say(3, 3, 1);
    assert_eq!(bench.hear(), (3, 7, 1, b"c".to_vec()));
    bench.say(2, 3, 0);
    assert!(bench.is_silent(), "the driver has not taken it");
}

#[test]
fn driver_hears_of_the_client_once_and_in_order() {
    let mut bench = Bench::open_port();
    let client = |session, present| Client { session, present };
    bench.change(0, |line| line.client = client(1, true));
    assert_eq!(bench.hear(), (1, 6, 1, Vec::new()));
    bench.change(0, |line| line.client = client(1, false));
    assert_eq!(bench.hear(), (1, 6, 0, Vec::new()));
    bench.change(0, |line| line.client = client(2, true));
    assert_eq!(bench.hear(), (1, 6, 1, Vec::new()));
    // One left and another came before anybody looked.
    bench.change(0, |line| line.client = client(3, true));
    assert_eq!(bench.hear(), (1, 6, 0, Vec::new()));
    assert_eq!(bench.hear(), (1, 6, 1, Vec::new()));
    bench.change(0, |_| ());
    assert!(bench.is_silent());
}

#[test]
fn client_leaves_after_its_last_bytes() {
    let mut bench = Bench::open_port();
    bench.change(0, |line| {
        line.client = Client {
            session: 1,
            present: true,
        }
    });
    assert_eq!(bench.hear(), (1, 6, 1, Vec::new()));
    until("the port is open", || bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"bye"), 3);
    bench.change(0, |line| line.client.present = false);
    assert!(bench.is_silent(), "its bytes are not delivered");
    assert_eq!(bench.receive(4, 64), b"bye");
    assert!(bench.rings[2].wait_used(TIMEOUT).is_some());
}

#[test]
fn port_takes_input_only_while_the_guest_has_it_open() {
    let mut bench = Bench::open_port();
    until("the port is open", || bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"for the first"), 13);
    let ready = bench.lines[0].get(|line| line.ready);
    bench.say(1, 6, 0);
    assert!(!bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"x"), 0);
    bench.say(1, 6, 1);
    assert!(bench.lines[0].get(|line| line.ready) >= ready + 2);
    assert_eq!(bench.inputs[0].receive(b"for the second"), 14);
    assert_eq!(bench.receive(4, 64), b"for the second");
}

#[test]
fn port_that_waits_does_not_stop_another() {
    let mut bench = Bench::ports(2);
    bench.lines[0].set(|line| line.room = 0);
    bench.send(5, b"stays");
    bench.sent(7, b"goes");
    assert_eq!(bench.lines[1].taken(), b"goes");
    assert!(bench.lines[0].taken().is_empty());
    assert!(bench.rings[5].pop_used().is_none());
}

#[test]
fn driver_without_ports_finds_a_console_that_leads_nowhere() {
    let mut bench = Bench::ports(1);
    drop(bench.device.stop());
    bench.device.reset();
    bench.features &= !(1 << F_MULTIPORT);
    bench.rings.truncate(2);
    bench.rings = (0..2)
        .map(|index| Ring::new(&bench.memory, RINGS + index * RING_STRIDE, SIZE))
        .collect();
    bench.start();
    bench.sent(1, b"nobody hears this");
    assert!(bench.lines[0].taken().is_empty());
}

#[test]
fn number_and_names_of_ports_are_bounded() {
    let named = |count: usize, name: &str| {
        let ports = (0..count).map(|_| NamedPort {
            name: name.to_owned(),
            line: Line::new(0),
        });
        Console::named("virtio-ports", ports.collect())
    };
    assert!(matches!(named(0, "a"), Err(ConsoleError::PortCount(0))));
    assert!(matches!(named(31, "a"), Err(ConsoleError::PortCount(31))));
    assert!(matches!(named(1, ""), Err(ConsoleError::Name(0))));
    let long = "a".repeat(65);
    assert!(matches!(named(1, &long), Err(ConsoleError::Name(65))));
    let most = named(30, &long[1..]).unwrap();
    assert_eq!(most.queue_sizes().len(), 64);
}

#[test]
fn reset_forgets_what_the_driver_had_open() {
    let mut bench = Bench::open_port();
    until("the port is open", || bench.inputs[0].is_open());
    drop(bench.device.stop());
    bench.device.reset();
    assert!(!bench.inputs[0].is_open());
    bench.rings = (0..6)
        .map(|index| Ring::new(&bench.memory, RINGS + index * RING_STRIDE, SIZE))
        .collect();
    bench.start();
    assert!(bench.is_silent());
    bench.say(0, 0, 1);
    assert!(bench.rings[2].wait_used(TIMEOUT).is_some());
}
