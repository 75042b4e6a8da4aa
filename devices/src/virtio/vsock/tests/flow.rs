//! Credit, both ways.

use super::*;

impl Bench {
    /// The guest sends all that it has credit for, while the host's program reads nothing, and returns it.
    pub(super) fn send_until_stuck(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        let mut forwarded = 0;
        loop {
            let on_the_way = sent.len() - forwarded;
            let room = (CAPACITY - on_the_way).min(50_000);
            if room > 0 {
                let part = payload(sent.len(), room);
                self.send_data(&part);
                sent.extend(part);
            } else {
                thread::sleep(QUIET);
            }
            let mut news = false;
            while let Some((packet, _)) = self.try_receive() {
                assert_eq!(packet.op, Op::CreditUpdate);
                forwarded = packet.credit.fwd_cnt as usize;
                news = true;
            }
            if room == 0 && !news {
                return sent;
            }
        }
    }
}

#[test]
fn guest_is_stopped_by_a_program_that_does_not_read_and_goes_on_when_it_does() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    let sent = bench.send_until_stuck();
    assert!(sent.len() >= CAPACITY);
    bench.send(Op::CreditRequest);
    let taken = bench.receive_op(Op::CreditUpdate).credit.fwd_cnt as usize;
    assert_eq!(
        sent.len() - taken,
        CAPACITY,
        "what the device keeps is full"
    );
    assert_eq!(read_exactly(&program, sent.len()), sent);
    let mut told = 0;
    while told < sent.len() {
        told = bench.receive_op(Op::CreditUpdate).credit.fwd_cnt as usize;
    }
    bench.send_data(b"more");
    assert_eq!(read_exactly(&program, 4), b"more");
}

#[test]
fn stuck_connection_does_not_stop_another() {
    let mut bench = Bench::started();
    let stuck = bench.guest_connects();
    bench.send_until_stuck();
    let (mut stream, port) = bench.host_connects();
    bench.send_between(GUEST, port, Op::Data, b"through");
    assert_eq!(read_exactly(&stream, 7), b"through");
    stream.write_all(b"back").unwrap();
    assert_eq!(bench.receive().1, b"back");
    drop(stuck);
}

#[test]
fn guest_gets_no_more_than_it_has_room_for() {
    let mut bench = Bench::started();
    bench.credit.buf_alloc = 10;
    let program = bench.guest_connects();
    (&program).write_all(b"0123456789abcdef").unwrap();
    assert_eq!(bench.receive().1, b"0123456789");
    bench.receive_op(Op::CreditRequest);
    bench.receives_nothing();
    bench.credit.fwd_cnt = 4;
    bench.send(Op::CreditUpdate);
    assert_eq!(bench.receive().1, b"abcd");
    bench.receive_op(Op::CreditRequest);
    bench.credit = Credit {
        buf_alloc: 100,
        fwd_cnt: 14,
    };
    bench.send(Op::CreditUpdate);
    assert_eq!(bench.receive().1, b"ef");
}

#[test]
fn packet_is_as_long_as_the_buffer_and_64_kib_at_most() {
    let mut bench = Bench::new();
    bench.start();
    bench.credit.buf_alloc = 1 << 20;
    bench.offer(4, STRIDE as u32);
    let program = bench.guest_connects();
    let sent = payload(3, 150_000);
    let writer = thread::spawn({
        let sent = sent.clone();
        move || {
            (&program).write_all(&sent).unwrap();
            program
        }
    });
    let mut received = Vec::new();
    let mut longest = 0;
    while received.len() < sent.len() {
        let data = bench.receive().1;
        longest = longest.max(data.len());
        received.extend(data);
    }
    assert!(received == sent);
    assert!(longest <= 64 << 10, "{longest}");
    drop(writer.join().unwrap());
}

#[test]
fn packets_wait_for_buffers() {
    let mut bench = Bench::new();
    bench.start();
    let program = bench.program(HOST);
    bench.send(Op::Request);
    bench.send_data(b"question");
    assert_eq!(read_exactly(&program, 8), b"question");
    (&program).write_all(b"answer").unwrap();
    wait_count(&bench.metrics.rx_starved, 1);
    bench.offer(1, 47);
    bench.receive_op(Op::Response);
    assert_eq!(bench.receive().1, b"ans");
    assert_eq!(bench.receive().1, b"wer");
}

#[test]
fn packet_may_lie_in_any_pieces() {
    let mut bench = Bench::new();
    bench.start();
    let pieces =
        [20, 0, 24 - 1, 1 + 3, 5, 100].map(|len| writable(RX_DATA + 0x100 * u64::from(len), len));
    for _ in 0..2 {
        bench.rx.push(&pieces);
    }
    bench.rx.kick();
    let program = bench.program(HOST);
    let ends = Ends {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: GUEST,
        dst_port: HOST,
        kind: TYPE_STREAM,
    };
    bench.send(Op::Request);
    assert_eq!(bench.rx.wait_used(SECOND).unwrap().len, 44);
    let packet = Packet {
        ends,
        op: Op::Data,
        len: 6,
        credit: bench.credit,
    };
    bench.write(TX_DATA, packet.header().as_bytes());
    bench.write(TX_DATA + 44, b"pieces and more");
    bench.tx.push(&[
        readable(TX_DATA, 1),
        readable(TX_DATA + 1, 42),
        readable(TX_DATA + 43, 4),
        readable(TX_DATA + 47, 9),
    ]);
    bench.tx.kick();
    bench.tx.wait_used(SECOND).unwrap();
    assert_eq!(read_exactly(&program, 6), b"pieces");

    (&program).write_all(b"0123456789").unwrap();
    assert_eq!(bench.rx.wait_used(SECOND).unwrap().len, 54);
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend(bench.read(piece.address, piece.len as usize));
    }
    let (header, data) = Header::read_from_prefix(&bytes).unwrap();
    assert_eq!(Packet::parse(&header).len, 10);
    assert_eq!(&data[..10], b"0123456789");
}
