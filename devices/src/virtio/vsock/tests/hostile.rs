//! What a driver must not do.

use super::*;
use crate::virtio::vsock::spec::MAX_PAYLOAD;

fn header(change: impl FnOnce(&mut Header)) -> Header {
    let packet = Packet {
        ends: Ends {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: GUEST,
            dst_port: HOST,
            kind: TYPE_STREAM,
        },
        op: Op::Data,
        len: 0,
        credit: Credit {
            buf_alloc: ROOM,
            fwd_cnt: 0,
        },
    };
    let mut header = packet.header();
    change(&mut header);
    header
}

#[test]
fn packets_for_no_connection_are_reset_and_resets_are_not() {
    let mut bench = Bench::started();
    for op in [
        Op::Response,
        Op::Shutdown(Shutdown::all()),
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Unknown,
    ] {
        bench.send(op);
        bench.receive_op(Op::Reset);
    }
    bench.send(Op::Reset);
    bench.receives_nothing();
    assert_eq!(count(&bench.metrics.tx_unknown), 6);
}

#[test]
fn packets_of_another_address_are_dropped() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    for cid in [0, 2, 4, u64::MAX, 1 << 32 | u64::from(CID)] {
        bench.send_raw(
            &header(|header| {
                header.src_cid = cid.into();
                header.op = 3.into();
            }),
            &[],
        );
    }
    assert_eq!(count(&bench.metrics.tx_malformed), 5);
    bench.send_data(b"still there");
    assert_eq!(read_exactly(&program, 11), b"still there");
}

#[test]
fn packets_to_another_address_or_of_another_type_are_reset() {
    let mut bench = Bench::started();
    let _program = bench.guest_connects();
    let change = |cid: u64, kind: u16| {
        header(|header| {
            header.dst_cid = cid.into();
            header.kind = kind.into();
        })
    };
    for (cid, kind) in [(1, 1), (9, 1), (1 << 32 | HOST_CID, 1), (HOST_CID, 2)] {
        for op in [1_u16, 3, 5] {
            let mut header = change(cid, kind);
            header.op = op.into();
            bench.send_raw(&header, &[]);
            if op == 3 {
                continue;
            }
            let (reset, _) = bench.receive();
            assert_eq!(reset.op, Op::Reset);
            assert_eq!((reset.ends.src_cid, reset.ends.kind), (cid, kind));
        }
    }
    bench.receives_nothing();
    assert_eq!(count(&bench.metrics.connections), 1);
}

#[test]
fn what_a_connection_must_not_get_resets_it() {
    let mut bench = Bench::started();
    for op in [Op::Request, Op::Response, Op::Unknown] {
        let program = bench.guest_connects();
        bench.send(op);
        bench.receive_op(Op::Reset);
        assert_eq!(read_all(&program), b"");
    }
    let program = bench.guest_connects();
    bench.send(Op::Shutdown(Shutdown::SEND));
    bench.send_data(b"after all");
    bench.receive_op(Op::Reset);
    assert_eq!(read_all(&program), b"");

    let stream = bench.greet("CONNECT 1234\n");
    let port = bench.receive_op(Op::Request).ends.src_port;
    bench.send_between(GUEST, port, Op::Data, b"too soon");
    bench.receive_op(Op::Reset);
    assert_eq!(read_all(&stream), b"");
    assert_eq!(count(&bench.metrics.tx_violations), 5);
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn length_beyond_the_chain_or_the_longest_packet_resets_the_connection() {
    let mut bench = Bench::started();
    let long = vec![0; MAX_PAYLOAD as usize + 1];
    for (len, payload) in [
        (5, &b"four"[..]),
        (u32::MAX, b"four"),
        (MAX_PAYLOAD + 1, &long),
    ] {
        let program = bench.guest_connects();
        bench.send_raw(&header(|header| header.len = len.into()), payload);
        bench.receive_op(Op::Reset);
        assert_eq!(read_all(&program), b"");
    }
    let program = bench.guest_connects();
    bench.send_raw(&header(|header| header.len = 4.into()), b"four and more");
    bench.send_data(b"!");
    assert_eq!(read_exactly(&program, 5), b"four!");
}

#[test]
fn data_beyond_the_credit_resets_the_connection() {
    let mut bench = Bench::started();
    let program = bench.guest_connects();
    bench.send_until_stuck();
    bench.send_data(b"!");
    bench.receive_op(Op::Reset);
    assert_eq!(count(&bench.metrics.tx_violations), 1);
    drop(program);
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn counts_that_make_no_sense_hurt_nobody_but_the_connection() {
    let mut bench = Bench::started();
    bench.credit.buf_alloc = 0;
    let program = bench.guest_connects();
    (&program).write_all(b"0123456789").unwrap();
    bench.receive_op(Op::CreditRequest);
    for (buf_alloc, fwd_cnt) in [(0, 5), (0, u32::MAX), (10, 1), (u32::MAX, 1)] {
        bench.credit = Credit { buf_alloc, fwd_cnt };
        bench.send(Op::CreditUpdate);
    }
    // More taken than sent is taken for all that there can be on its way.
    bench.receives_nothing();
    bench.credit = Credit {
        buf_alloc: u32::MAX,
        fwd_cnt: 0,
    };
    bench.send(Op::CreditUpdate);
    assert_eq!(bench.receive().1, b"0123456789");
    bench.credit.fwd_cnt = u32::MAX - 5;
    bench.send(Op::CreditUpdate);
    (&program).write_all(b"again").unwrap();
    assert_eq!(bench.receive().1, b"again", "backwards is room as well");
}

#[test]
fn chains_without_a_header_are_returned() {
    let mut bench = Bench::started();
    let end = MEMORY as u64;
    for chain in [
        &[readable(TX_DATA, 43)][..],
        &[readable(TX_DATA, 0)],
        &[writable(TX_DATA, 100)],
        &[readable(end, 44)],
        &[readable(end - 43, 44)],
        &[readable(TX_DATA, 44), readable(end, 1)],
        &[readable(TX_DATA, u32::MAX)],
        &[writable(TX_DATA, 1), readable(TX_DATA, 44)],
    ] {
        let head = bench.tx.push(chain);
        bench.tx.kick();
        assert_eq!(bench.tx.wait_used(SECOND).unwrap().head, head);
    }
    assert_eq!(count(&bench.metrics.tx_malformed), 8);
    bench.receives_nothing();
}

#[test]
fn receive_buffers_that_hold_no_packet_are_returned_empty() {
    let mut bench = Bench::new();
    bench.start();
    let end = MEMORY as u64;
    let chains = [
        &[writable(RX_DATA, 44)][..],
        &[readable(RX_DATA, 100)],
        &[writable(end - 44, 45)],
        &[writable(RX_DATA, 0)],
    ];
    for chain in chains {
        bench.rx.push(chain);
    }
    bench.rx.kick();
    bench.send(Op::Data);
    for _ in chains {
        assert_eq!(bench.rx.wait_used(SECOND).unwrap().len, 0);
    }
    assert_eq!(count(&bench.metrics.rx_malformed), 4);
    bench.offer(1, 100);
    bench.receive_op(Op::Reset);
}

#[test]
fn flood_that_takes_no_answers_waits_for_buffers() {
    let mut bench = Bench::new();
    bench.start();
    let packet = header(|header| header.op = 2.into());
    bench.write(TX_DATA, packet.as_bytes());
    let flood = |bench: &mut Bench| {
        for _ in 0..SIZE {
            bench.tx.push(&[readable(TX_DATA, 44)]);
        }
        bench.tx.kick();
    };
    flood(&mut bench);
    for _ in 0..SIZE {
        bench.tx.wait_used(SECOND).unwrap();
    }
    flood(&mut bench);
    assert_eq!(bench.tx.wait_used(QUIET), None);
    assert_eq!(count(&bench.metrics.tx_unknown), u64::from(SIZE));
    assert!(count(&bench.metrics.tx_blocked) > 0);
    bench.offer(16, 4096);
    for _ in 0..2 * SIZE {
        bench.receive_op(Op::Reset);
    }
    for _ in 0..SIZE {
        bench.tx.wait_used(SECOND).unwrap();
    }
    bench.receives_nothing();
}

#[test]
fn flood_of_connections_leaves_none_behind() {
    let mut bench = Bench::started();
    for round in 0..300_u32 {
        let program = bench.program(HOST);
        bench.send_between(round, HOST, Op::Request, &[]);
        bench.receive_op(Op::Response);
        if round % 2 == 0 {
            bench.send_between(round, HOST, Op::Reset, &[]);
        } else {
            bench.send_between(round, HOST, Op::Shutdown(Shutdown::all()), &[]);
            bench.receive_op(Op::Reset);
        }
        assert_eq!(read_all(&program), b"");
    }
    wait_count(&bench.metrics.connections, 0);
}

#[test]
fn broken_rings_need_a_reset_and_the_host_is_left_alone() {
    let bench = Bench::started();
    bench.tx.offer_beyond();
    assert!(bench.interrupt.wait_needs_reset(SECOND));
    let _waits = bench.greet("CONNECT 1234\n");
    bench.tx.kick();
    bench.rx.kick();
    thread::sleep(QUIET);
    assert_eq!(bench.interrupt.needs_reset_count(), 1);
    assert_eq!(count(&bench.metrics.broken_rings), 1);

    let mut bench = Bench::started();
    bench.rx.set_available_index(SIZE + 100);
    bench.send(Op::Data);
    assert!(bench.interrupt.wait_needs_reset(SECOND));
}

impl Ring {
    /// Says that there are more chains than the ring has elements.
    fn offer_beyond(&self) {
        self.set_available_index(self.available_index().wrapping_add(self.size() + 1));
        self.kick();
    }
}
