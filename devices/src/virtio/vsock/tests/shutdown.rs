//! How connections end, in one direction or both.

use super::*;

#[test]
fn guest_that_sends_no_more_still_receives() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    bench.send_data(b"all");
    bench.send(Op::Shutdown(Shutdown::SEND));
    assert_eq!(read_all(&program), b"all");
    (&program).write_all(b"answer").unwrap();
    assert_eq!(bench.receive().1, b"answer");
    drop(program);
    bench.receive_op(Op::Shutdown(Shutdown::all()));
    bench.send(Op::Reset);
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn guest_that_receives_no_more_still_sends() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    bench.send(Op::Shutdown(Shutdown::RECEIVE));
    let error = (&program).write_all(b"too late").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    bench.send_data(b"more");
    assert_eq!(read_exactly(&program, 4), b"more");
    drop(program);
    bench.receive_op(Op::Shutdown(Shutdown::all()));
}

#[test]
fn guest_that_closes_gets_its_port_back_and_its_data_still_arrives() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    // More than the socket takes, so that some of it is still on its way when the guest closes.
    let sent = bench.send_until_stuck();
    bench.send(Op::Shutdown(Shutdown::all()));
    bench.receive_op(Op::Reset);
    let second = bench.guest_connects();
    bench.send_data(b"second");
    assert_eq!(read_exactly(&second, 6), b"second");
    assert_eq!(read_all(&program), sent);
    wait_count(&bench.metrics.connections, 1);
}

#[test]
fn host_that_sends_no_more_still_receives() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    (&program).write_all(b"all").unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.receive().1, b"all");
    bench.receive_op(Op::Shutdown(Shutdown::SEND));
    bench.send_data(b"answer");
    assert_eq!(read_exactly(&program, 6), b"answer");
    drop(program);
    bench.receive_op(Op::Shutdown(Shutdown::all()));
    bench.send(Op::Shutdown(Shutdown::all()));
    bench.receive_op(Op::Reset);
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn host_that_receives_no_more_is_told_to_the_guest_once() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    program.shutdown(std::net::Shutdown::Read).unwrap();
    bench.send_data(b"nobody reads this");
    bench.receive_op(Op::Shutdown(Shutdown::RECEIVE));
    bench.send_data(b"nor this");
    (&program).write_all(b"but").unwrap();
    let (packet, data) = bench.receive();
    assert_eq!((packet.op, &data[..]), (Op::Data, &b"but"[..]));
    assert_eq!(packet.credit.fwd_cnt, 25, "it is done with");
}

#[test]
fn host_that_closes_ends_both_directions_behind_its_data() {
    let mut bench = Bench::started();
    let (mut stream, port) = bench.host_connects();
    let sent = payload(0, 100_000);
    stream.write_all(&sent).unwrap();
    drop(stream);
    let mut received = Vec::new();
    let last = loop {
        let (packet, data) = bench.receive();
        if packet.op != Op::Data {
            break packet;
        }
        received.extend(data);
    };
    assert_eq!(received, sent);
    assert_eq!(last.op, Op::Shutdown(Shutdown::all()));
    bench.send_between(GUEST, port, Op::Reset, &[]);
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn guest_that_does_not_answer_the_end_is_reset() {
    let mut bench = Bench::new();
    bench.vsock.set_timeout(Duration::from_millis(50));
    bench.start();
    bench.offer(8, 4096);
    drop(bench.guest_connects());
    bench.receive_op(Op::Shutdown(Shutdown::all()));
    bench.receive_op(Op::Reset);
    wait_count(&bench.metrics.connections, 0);
    assert_eq!(count(&bench.metrics.host_resets), 1);
}

#[test]
fn guest_that_resets_ends_the_host_too() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    bench.send(Op::Reset);
    assert_eq!(read_all(&program), b"");
    bench.receives_nothing();
    assert_eq!(count(&bench.metrics.guest_resets), 1);
    assert_eq!(count(&bench.metrics.connections), 0);
}
