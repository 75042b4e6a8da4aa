//! How connections come to be, and do not.

use super::*;
use crate::virtio::vsock::table::MOST_CONNECTIONS;

#[test]
fn guest_reaches_the_program_of_a_port() {
    let mut bench = Bench::started();
    let program = bench.program(HOST);
    bench.send(Op::Request);
    let response = bench.receive_op(Op::Response);
    assert_eq!(
        (response.ends.src_port, response.ends.dst_port),
        (HOST, GUEST)
    );
    assert_eq!(response.credit.buf_alloc as usize, CAPACITY);
    bench.send_data(b"question");
    assert_eq!(read_exactly(&program, 8), b"question");
    (&program).write_all(b"answer").unwrap();
    let (packet, answer) = bench.receive();
    assert_eq!((packet.op, &answer[..]), (Op::Data, &b"answer"[..]));
    assert_eq!(packet.credit.fwd_cnt, 8);
    assert_eq!(count(&bench.metrics.guest_connections), 1);
    assert_eq!(count(&bench.metrics.tx_bytes), 8);
    assert_eq!(count(&bench.metrics.rx_bytes), 6);
}

#[test]
fn guest_is_refused_where_nobody_listens() {
    let mut bench = Bench::started();
    bench.send(Op::Request);
    let reset = bench.receive_op(Op::Reset);
    assert_eq!((reset.ends.src_port, reset.ends.dst_port), (HOST, GUEST));
    assert_eq!(count(&bench.metrics.refused_connections), 1);
}

#[test]
fn program_reaches_a_port_of_the_guest() {
    let mut bench = Bench::started();
    let (mut stream, port) = bench.host_connects();
    bench.send_between(GUEST, port, Op::Data, b"hello");
    assert_eq!(read_exactly(&stream, 5), b"hello");
    stream.write_all(b"world").unwrap();
    assert_eq!(bench.receive().1, b"world");
    assert_eq!(count(&bench.metrics.host_connections), 1);
}

#[test]
fn what_a_program_sends_ahead_reaches_the_guest_after_it_accepted() {
    let mut bench = Bench::started();
    let mut stream = bench.greet("connect 1234\nahead");
    let port = bench.receive_op(Op::Request).ends.src_port;
    bench.receives_nothing();
    bench.send_between(GUEST, port, Op::Response, &[]);
    assert_eq!(bench.receive().1, b"ahead");
    assert_eq!(read_line(&mut stream), format!("OK {port}\n"));
}

#[test]
fn first_line_may_come_byte_by_byte() {
    let mut bench = Bench::started();
    let mut stream = bench.greet("");
    for byte in b"CONNECT 1234" {
        stream.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    bench.receives_nothing();
    stream.write_all(b"\n").unwrap();
    assert_eq!(bench.receive_op(Op::Request).ends.dst_port, GUEST);
}

#[test]
fn program_that_says_something_else_is_hung_up_on() {
    let mut bench = Bench::started();
    for greeting in [
        "GET / HTTP/1.1\n",
        "CONNECT many\n",
        "CONNECT 00000000000000000000000000000001\n",
        "a line that does not end for all the time",
    ] {
        let stream = bench.greet(greeting);
        let mut byte = [0];
        // What was not read is lost, of which a socket tells its other end.
        assert!(matches!((&stream).read(&mut byte), Ok(0) | Err(_)));
    }
    bench.receives_nothing();
    wait_count(&bench.metrics.connections, 0);
    assert_eq!(count(&bench.metrics.refused_connections), 4);
}

#[test]
fn program_is_hung_up_on_if_the_guest_refuses() {
    let mut bench = Bench::started();
    let stream = bench.greet("CONNECT 9\n");
    let port = bench.receive_op(Op::Request).ends.src_port;
    bench.send_between(9, port, Op::Reset, &[]);
    assert_eq!(read_all(&stream), b"");
    bench.receives_nothing();
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn program_that_leaves_before_the_guest_accepts_is_told_to_the_guest() {
    let mut bench = Bench::started();
    let stream = bench.greet("CONNECT 9\n");
    let port = bench.receive_op(Op::Request).ends.src_port;
    drop(stream);
    assert_eq!(bench.receive_op(Op::Reset).ends.src_port, port);
    wait_count(&bench.metrics.connections, 0);
    bench.send_between(9, port, Op::Response, &[]);
    bench.receive_op(Op::Reset);
}

#[test]
fn program_that_leaves_before_it_says_where_to_is_forgotten() {
    let mut bench = Bench::started();
    let stream = bench.greet("CONN");
    wait_count(&bench.metrics.connections, 1);
    drop(stream);
    wait_count(&bench.metrics.connections, 0);
    bench.receives_nothing();
}

#[test]
fn guest_that_does_not_answer_in_time_is_given_up() {
    let mut bench = Bench::new();
    bench.vsock.set_timeout(Duration::from_millis(50));
    bench.start();
    bench.offer(8, 4096);
    let silent = bench.greet("");
    let stream = bench.greet("CONNECT 9\n");
    let port = bench.receive_op(Op::Request).ends.src_port;
    assert_eq!(bench.receive_op(Op::Reset).ends.src_port, port);
    assert_eq!(read_all(&stream), b"");
    assert_eq!(read_all(&silent), b"", "nor does a program say where to");
    wait_count(&bench.metrics.connections, 0);
    assert_eq!(count(&bench.metrics.refused_connections), 2);
}

#[test]
fn connection_in_use_has_no_time_to_keep() {
    let mut bench = Bench::new();
    bench.vsock.set_timeout(Duration::from_millis(20));
    bench.start();
    bench.offer(8, 4096);
    let stream = loop {
        let mut stream = bench.greet("CONNECT 1234\n");
        let port = bench.receive_op(Op::Request).ends.src_port;
        bench.send_between(GUEST, port, Op::Response, &[]);
        if read_line(&mut stream).starts_with("OK") {
            break stream;
        }
        // The guest of this test was too late.
        bench.receive_op(Op::Reset);
        bench.receive_op(Op::Reset);
    };
    thread::sleep(4 * QUIET);
    (&stream).write_all(b"still there").unwrap();
    assert_eq!(bench.receive().1, b"still there");
}

#[test]
fn connections_beyond_the_table_are_refused_either_way() {
    let mut bench = Bench::started();
    let programs: Vec<_> = (0..=MOST_CONNECTIONS)
        .map(|_| bench.program(HOST))
        .collect();
    for at in 0..MOST_CONNECTIONS as u32 {
        bench.send_between(at, HOST, Op::Request, &[]);
        assert_eq!(bench.receive_op(Op::Response).ends.dst_port, at);
    }
    bench.send_between(5000, HOST, Op::Request, &[]);
    assert_eq!(bench.receive_op(Op::Reset).ends.dst_port, 5000);
    let stream = UnixStream::connect(&bench.socket).unwrap();
    assert_eq!(read_all(&stream), b"");
    assert_eq!(count(&bench.metrics.connections), MOST_CONNECTIONS as u64);

    bench.send_between(7, HOST, Op::Reset, &[]);
    assert_eq!(read_all(&programs[7]), b"");
    let (_stream, _) = bench.host_connects();
    assert_eq!(count(&bench.metrics.connections), MOST_CONNECTIONS as u64);
}
