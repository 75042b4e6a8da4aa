//! Start, pause, reset and saved state.

use super::*;
use crate::state::{Persist, Section, StateError};
use crate::virtio::StartError;
use crate::virtio::vsock::VsockError;

#[test]
fn configuration_space_holds_the_address() {
    let mut bench = Bench::new();
    bench.vsock.write_config(0, &[9; 8]);
    let mut config = [0xaa; 10];
    bench.vsock.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xaa]);
    bench.vsock.read_config(u64::MAX, &mut config);
    assert_eq!(bench.vsock.device_id(), 19);
    assert_eq!(bench.vsock.features() & 3, 1, "streams only");
}

#[test]
fn address_that_is_no_guests_is_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let connector = Arc::new(Programs::default());
        let result = Vsock::new("vsock", cid, Arc::new(listener), connector);
        assert!(matches!(result, Err(VsockError::Cid(refused)) if refused == cid));
    }
}

#[test]
fn start_without_a_data_queue_fails_and_without_events_does_not() {
    let mut bench = Bench::new();
    let start = |bench: &mut Bench, rings: &[&Ring]| {
        let activation = driver::activation(&bench.memory, rings, 0, &bench.interrupt);
        bench.vsock.start(activation)
    };
    let [rx, tx] = [RX_RING, TX_RING].map(|at| Ring::new(&bench.memory, at, SIZE));
    assert!(matches!(
        start(&mut bench, &[]),
        Err(StartError::QueueMissing(0))
    ));
    assert!(matches!(
        start(&mut bench, &[&rx]),
        Err(StartError::QueueMissing(1))
    ));
    assert!(bench.vsock.stop().is_empty());
    let section = bench.vsock.save();
    bench.vsock.restore(&section).unwrap();
    start(&mut bench, &[&rx, &tx]).unwrap();
    assert_eq!(bench.vsock.stop().len(), 2);
}

#[test]
fn connections_and_their_data_survive_a_pause() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    let sent = bench.send_until_stuck();
    let (mut stream, port) = bench.host_connects();
    let queues = bench.vsock.stop();
    assert_eq!(queues.len(), 3);
    assert_eq!(read_exactly(&program, 1), sent[..1]);
    stream.write_all(b"meanwhile").unwrap();
    let waits = bench.greet("CONNECT 77\n");
    bench.receives_nothing();
    bench.resume(queues);
    assert_eq!(read_exactly(&program, sent.len() - 1), sent[1..]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (packet, data) = bench.receive();
        match packet.op {
            Op::CreditUpdate => {}
            Op::Data => {
                assert_eq!((packet.ends.src_port, &data[..]), (port, &b"meanwhile"[..]));
                seen.push(1);
            }
            op => {
                assert_eq!((op, packet.ends.dst_port), (Op::Request, 77));
                seen.push(2);
            }
        }
    }
    drop(waits);
}

#[test]
fn time_to_answer_does_not_run_during_a_pause() {
    let mut bench = Bench::new();
    bench.vsock.set_timeout(Duration::from_millis(200));
    bench.start();
    bench.offer(8, 4096);
    let mut stream = bench.greet("CONNECT 1234\n");
    let port = bench.receive_op(Op::Request).ends.src_port;
    let queues = bench.vsock.stop();
    thread::sleep(Duration::from_millis(300));
    bench.resume(queues);
    bench.send_between(GUEST, port, Op::Response, &[]);
    assert_eq!(read_line(&mut stream), format!("OK {port}\n"));
}

#[test]
fn reset_drops_connections_and_the_next_driver_can_have_new_ones() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    let (stream, _) = bench.host_connects();
    assert_eq!(bench.vsock.stop().len(), 3);
    assert_eq!(count(&bench.metrics.connections), 2);
    bench.vsock.reset();
    assert_eq!(read_all(&program), b"");
    assert_eq!(read_all(&stream), b"");
    assert_eq!(count(&bench.metrics.connections), 0);
    let early = bench.greet("CONNECT 1234\n");

    bench.rx = Ring::new(&bench.memory, RX_RING, SIZE);
    bench.tx = Ring::new(&bench.memory, TX_RING, SIZE);
    bench.event = Ring::new(&bench.memory, EVENT_RING, 16);
    bench.buffers.clear();
    bench.start();
    bench.offer(8, 4096);
    assert_eq!(bench.receive_op(Op::Request).ends.dst_port, GUEST);
    drop(early);
    bench.receive_op(Op::Reset);
    bench.guest_connects();
}

#[test]
fn program_that_connects_before_the_driver_runs_is_served_when_it_does() {
    let mut bench = Bench::new();
    let _early = bench.greet("CONNECT 1234\n");
    bench.start();
    bench.offer(1, 100);
    bench.receive_op(Op::Request);
}

#[test]
fn driver_learns_after_a_restore_that_its_connections_are_gone() {
    let mut bench = Bench::new();
    let section = Bench::new().vsock.save();
    bench.vsock.restore(&section).unwrap();
    bench.write(RX_DATA, &[0xff; 8]);
    bench.start();
    bench.event.push(&[writable(RX_DATA, 3)]);
    bench.event.push(&[writable(RX_DATA, 8)]);
    bench.event.push(&[writable(RX_DATA + 16, 8)]);
    bench.event.kick();
    assert_eq!(bench.event.wait_used(SECOND).unwrap().len, 0, "too small");
    assert_eq!(bench.event.wait_used(SECOND).unwrap().len, 4);
    assert_eq!(bench.read(RX_DATA, 5), [0, 0, 0, 0, 0xff]);
    assert!(bench.interrupt.wait_queue(2, 1, SECOND));

    let queues = bench.vsock.stop();
    bench.resume(queues);
    assert_eq!(bench.event.wait_used(QUIET), None, "it knows already");
}

#[test]
fn driver_that_had_no_room_for_the_event_gets_it_after_another_pause() {
    let mut bench = Bench::new();
    let section = bench.vsock.save();
    bench.vsock.restore(&section).unwrap();
    bench.start();
    let queues = bench.vsock.stop();
    bench.event.push(&[writable(RX_DATA, 8)]);
    bench.resume(queues);
    assert_eq!(bench.event.wait_used(SECOND).unwrap().len, 4);
}

#[test]
fn state_restored_into_a_fresh_device_is_equal() {
    let mut bench = Bench::started();
    bench.guest_connects();
    bench.vsock.stop();
    let section = bench.vsock.save();
    let mut fresh = Bench::new();
    fresh.vsock.restore(&section).unwrap();
    assert_eq!(fresh.vsock.save(), section);
}

#[test]
fn state_that_no_device_has_is_refused() {
    #[derive(serde::Serialize)]
    struct State {
        guest_cid: u32,
    }
    let mut bench = Bench::new();
    for guest_cid in [0, 2, u32::MAX] {
        let section = Section::new("virtio-vsock", 1, &State { guest_cid });
        let result = bench.vsock.restore(&section);
        assert!(matches!(
            result,
            Err(StateError::Field {
                field: "guest_cid",
                ..
            })
        ));
    }
    let section = Section::new("virtio-vsock", 1, &State { guest_cid: 77 });
    bench.vsock.restore(&section).unwrap();
    let mut config = [0; 8];
    bench.vsock.read_config(0, &mut config);
    assert_eq!(config[0], 77);
    let newer = Section::new("virtio-vsock", 2, &State { guest_cid: 77 });
    assert!(bench.vsock.restore(&newer).is_err());
}
