//! Much data both ways at once, through little.

use super::*;

const TOTAL: usize = 16 << 20;

/// Sends back what it reads.
fn echo(stream: UnixStream) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 10_000];
        loop {
            match (&stream).read(&mut buffer).unwrap() {
                0 => return,
                len => (&stream).write_all(&buffer[..len]).unwrap(),
            }
        }
    })
}

/// FNV-1a, which does not depend on how the bytes are divided.
#[derive(Debug, PartialEq, Eq)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

impl Bench {
    /// The guest sends [`TOTAL`] bytes to the host's `port` and has them come back, with room for `room` bytes.
    fn exchange(&mut self, port: u32, room: u32) {
        let data: Vec<u8> = {
            let mut state = 1_u64;
            let words = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            });
            words.take(TOTAL / 8).flatten().collect()
        };
        self.credit = Credit {
            buf_alloc: room,
            fwd_cnt: self.credit.fwd_cnt,
        };
        self.send_between(GUEST, port, Op::CreditUpdate, &[]);
        let mut hash = Fnv::default();
        let (mut sent, mut received, mut forwarded) = (0, 0, 0_u32);
        let mut length = 1;
        let end = Instant::now() + 120 * SECOND;
        while received < TOTAL {
            assert!(Instant::now() < end, "sent {sent}, received {received}");
            let mut asked = false;
            while let Some((packet, payload)) = self.try_receive() {
                forwarded = packet.credit.fwd_cnt;
                hash.add(&payload);
                received += payload.len();
                self.credit.fwd_cnt = received as u32;
                asked |= packet.op == Op::CreditRequest;
            }
            let on_the_way = (sent as u32).wrapping_sub(forwarded) as usize;
            length = (length * 5 + 1) % 65_537;
            let len = length.min(CAPACITY - on_the_way).min(TOTAL - sent);
            if len > 0 {
                self.send_between(GUEST, port, Op::Data, &data[sent..sent + len]);
                sent += len;
            } else if asked {
                self.send_between(GUEST, port, Op::CreditUpdate, &[]);
            } else {
                thread::yield_now();
            }
        }
        let mut expected = Fnv::default();
        expected.add(&data);
        assert_eq!(hash, expected);
    }
}

#[test]
fn sixteen_mebibytes_come_back_to_the_guest_that_connected() {
    let mut bench = Bench::new();
    bench.start();
    bench.offer(16, 300);
    let echo = echo(bench.guest_connects());
    bench.exchange(HOST, 8192);
    bench.send(Op::Shutdown(Shutdown::all()));
    bench.receive_op(Op::Reset);
    echo.join().unwrap();
}

#[test]
fn sixteen_mebibytes_come_back_to_the_guest_that_was_connected_to() {
    let mut bench = Bench::new();
    bench.start();
    bench.offer(64, 4096);
    let (stream, port) = bench.host_connects();
    let echo = echo(stream);
    bench.exchange(port, 64 << 10);
    bench.send_between(GUEST, port, Op::Shutdown(Shutdown::all()), &[]);
    bench.receive_op(Op::Reset);
    echo.join().unwrap();
}
