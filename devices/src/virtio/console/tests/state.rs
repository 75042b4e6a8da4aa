//! Saved state.

use super::*;
use crate::state::{Persist, Section, StateError};

/// A bench with the same ports, whose device has the state of `section`, on the rings of `before`.
fn restored(before: Bench, section: &Section) -> Bench {
    let mut after = Bench::ports(1);
    drop(after.device.stop());
    after.device.reset();
    after.device.restore(section).unwrap();
    after.memory = before.memory.clone();
    after.rings = before.rings;
    after.next = before.next;
    after
}

#[test]
fn port_goes_on_where_it_was_saved() {
    let mut bench = Bench::open_port();
    bench.change(0, |line| {
        line.room = 1_000;
        line.client = Client {
            session: 7,
            present: true,
        };
    });
    assert_eq!(bench.hear(), (1, 6, 1, Vec::new()));
    let bytes = pattern(3_000);
    bench.send(5, &bytes);
    until("what fits is taken", || {
        bench.lines[0].taken().len() == 1_000
    });
    until("the port is open", || bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"typed"), 5);
    let queues = bench.device.stop();
    let section = bench.device.save();

    let mut after = restored(bench, &section);
    after.resume(queues);
    assert!(after.inputs[0].is_open());
    assert!(after.rings[5].wait_used(TIMEOUT).is_some());
    assert!(after.lines[0].taken() == bytes[1_000..]);
    // Its client is not on this host, and what it sent is delivered first.
    assert_eq!(after.receive(4, 64), b"typed");
    assert_eq!(after.hear(), (1, 6, 0, Vec::new()));
    drop(after.device.stop());
    let again = after.device.save();
    assert_ne!(again, section);
    after.device.restore(&again).unwrap();
    assert_eq!(after.device.save(), again);
}

#[test]
fn state_of_other_ports_is_refused() {
    let section = {
        let mut bench = Bench::ports(2);
        drop(bench.device.stop());
        bench.device.save()
    };
    let mut bench = Bench::ports(1);
    drop(bench.device.stop());
    let error = bench.device.restore(&section).unwrap_err();
    assert!(matches!(error, StateError::Field { field: "ports", .. }));
}

#[test]
fn input_beyond_the_buffer_is_refused() {
    #[derive(serde::Serialize)]
    struct Port {
        taken: u64,
        add: bool,
        tell_name: bool,
        ready: bool,
        client: bool,
        open: bool,
        input: Vec<u8>,
    }
    #[derive(serde::Serialize)]
    struct State {
        ports: Vec<Port>,
    }
    let state = |len| {
        let port = Port {
            taken: 0,
            add: false,
            tell_name: false,
            ready: false,
            client: false,
            open: true,
            input: vec![0; len],
        };
        Section::new("virtio-console", 1, &State { ports: vec![port] })
    };
    let mut device = Console::single("virtio-_console0", Line::new(0)).unwrap();
    device.restore(&state(INPUT_CAPACITY)).unwrap();
    let error = device.restore(&state(INPUT_CAPACITY + 1)).unwrap_err();
    assert!(matches!(error, StateError::Field { field: "input", .. }));
}
