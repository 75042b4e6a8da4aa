//! Packets and chains of any shape.

use proptest::prelude::*;

use super::*;
use crate::virtio::driver::Descriptor;

/// Values that are right, or nearly, or anything.
fn field(right: &'static [u32]) -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => prop::sample::select(right),
        1 => prop::sample::select(right).prop_map(|value| value.wrapping_add(1)),
        1 => any::<u32>(),
    ]
}

#[derive(Clone, Debug)]
struct Sent {
    header: Header,
    payload: usize,
    /// What a program on the host does before: 0 nothing, 1 sends, 2 closes, 3 connects to the guest.
    host: u8,
}

fn sent() -> impl Strategy<Value = Sent> {
    let ends = (field(&[CID]), field(&[HOST_CID as u32]), field(&[1]));
    // Ports of the guest's and of the host's connections.
    let ports = (field(&[1, 2, 3]), field(&[1, 2, 1 << 30, (1 << 30) + 1]));
    let credit = (field(&[0, 10, ROOM]), field(&[0, 10, u32::MAX]));
    let op = (field(&[1, 1, 2, 3, 4, 5, 5, 5, 6, 7]), field(&[0, 1, 2, 3]));
    let len = (field(&[0, 1, 100, 65_536]), 0_usize..70_000, any::<bool>());
    (ends, ports, credit, op, len, 0_u8..4).prop_map(
        |(ends, ports, credit, op, (len, payload, honest), host)| {
            let payload = if honest {
                len.min(70_000) as usize
            } else {
                payload
            };
            let header = Header {
                src_cid: u64::from(ends.0).into(),
                dst_cid: u64::from(ends.1).into(),
                src_port: ports.0.into(),
                dst_port: ports.1.into(),
                len: len.into(),
                kind: (ends.2 as u16).into(),
                op: (op.0 as u16).into(),
                flags: op.1.into(),
                buf_alloc: credit.0.into(),
                fwd_cnt: credit.1.into(),
            };
            Sent {
                header,
                payload,
                host,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_packets_are_taken_and_the_device_goes_on(all in prop::collection::vec(sent(), 1..60)) {
        let mut bench = Bench::started();
        let mut programs = VecDeque::new();
        let mut greeted = Vec::new();
        for port in [1, 2, 1 << 30] {
            for _ in 0..20 {
                programs.push_back(bench.program(port));
            }
        }
        for sent in all {
            match sent.host {
                1 => for program in &programs {
                    program.set_nonblocking(true).unwrap();
                    let _ = (&mut &*program).write(b"some bytes");
                }
                2 => drop(programs.pop_front()),
                3 => greeted.push(bench.greet("CONNECT 1\n")),
                _ => {}
            }
            bench.send_raw(&sent.header, &vec![7; sent.payload]);
            while let Some((packet, _)) = bench.try_receive() {
                prop_assert_ne!(packet.op, Op::Unknown);
            }
        }
        // What it was made to do leaves room for one more.
        let program = bench.program(9);
        bench.credit.buf_alloc = ROOM;
        bench.send_between(9, 9, Op::Request, &[]);
        bench.send_between(9, 9, Op::Data, b"and on");
        prop_assert_eq!(read_exactly(&program, 6), b"and on");
        prop_assert_eq!(bench.vsock.stop().len(), 3);
        prop_assert_eq!(bench.interrupt.needs_reset_count(), 0);
        bench.vsock.reset();
        prop_assert_eq!(count(&bench.metrics.connections), 0);
    }

    #[test]
    fn any_chain_is_answered_and_changes_nothing_but_its_buffers(
        table in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(0_u16..16, 1..8),
        receiving: bool,
    ) {
        let mut bench = Bench::new();
        let queue = if receiving { &mut bench.rx } else { &mut bench.tx };
        *queue = Ring::new(&bench.memory, TX_RING, 16);
        for (at, descriptor) in (0..).zip(&table) {
            queue.set_descriptor(at, *descriptor);
        }
        for head in &heads {
            queue.offer(*head);
        }
        bench.write(BUFFERS, &[0x55; 0x2_0000]);
        let before = bench.read(0, LOOKED_AT);
        if receiving {
            let ends = Ends {
                src_cid: CID.into(),
                dst_cid: HOST_CID,
                src_port: GUEST,
                dst_port: HOST,
                kind: TYPE_STREAM,
            };
            let packet = Packet::new(ends, Op::Data, Credit::default());
            bench.tx = Ring::new(&bench.memory, EVENT_RING, 16);
            bench.event = Ring::new(&bench.memory, RX_RING, 16);
            bench.write(TX_DATA, packet.header().as_bytes());
            for _ in 0..heads.len() {
                bench.tx.push(&[readable(TX_DATA, 44)]);
            }
        }
        bench.start();
        let queue = if receiving { &mut bench.rx } else { &mut bench.tx };
        for _ in &heads {
            let used = queue.wait_used(10 * SECOND);
            prop_assert!(used.is_some_and(|used| heads.contains(&used.head)));
        }
        prop_assert_eq!(bench.vsock.stop().len(), 3);
        prop_assert_eq!(bench.interrupt.needs_reset_count(), 0);

        let mut allowed = vec![false; LOOKED_AT];
        for descriptor in &table {
            if descriptor.flags & 2 != 0 && receiving {
                let from = descriptor.address.min(LOOKED_AT as u64) as usize;
                let to = descriptor.address.saturating_add(u64::from(descriptor.len));
                allowed[from..to.min(LOOKED_AT as u64) as usize].fill(true);
            }
        }
        let after = bench.read(BUFFERS, LOOKED_AT - BUFFERS as usize);
        let changed = (BUFFERS as usize..LOOKED_AT)
            .find(|at| before[*at] != after[*at - BUFFERS as usize] && !allowed[*at]);
        prop_assert_eq!(changed, None);
    }
}

/// Buffers of chains are from here on, behind the rings.
const BUFFERS: u64 = 0x8_0000;
const LOOKED_AT: usize = 0xa_0000;

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![8 => BUFFERS..LOOKED_AT as u64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0_u32..100, 2 => 0_u32..0x1_0000, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 2_u16..4, 4 => 0_u16..4, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..16, 1 => any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}
