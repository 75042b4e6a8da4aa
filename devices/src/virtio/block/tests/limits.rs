//! Rate limits.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};
use virtio_queue::QueueT;

use super::super::FileDisk;
use super::disks::WithoutUring;
use super::*;
use crate::rate_limit::{RateLimiter, RateLimits, TokenBucket};

const OK: u8 = 0;
const HOUR: Duration = Duration::from_secs(3600);

fn bucket(size: u64, refill_time: Duration) -> Option<TokenBucket> {
    Some(TokenBucket {
        size,
        one_time_burst: 0,
        refill_time,
    })
}

fn limited(disk: impl Disk + 'static, limits: RateLimits) -> Rig {
    let setup = BlockSetup {
        limiter: Arc::new(RateLimiter::new(limits, Instant::now())),
        ..setup()
    };
    let mut rig = Rig::made_of(disk, setup, FLUSH);
    rig.start();
    rig
}

/// Runs `test` with io_uring and with threads.
fn with_each_engine(limits: RateLimits, test: impl Fn(Rig)) {
    let (disk, _file) = file_disk(1 << 20);
    test(limited(disk, limits));
    let (disk, _file) = file_disk(1 << 20);
    let disk: WithoutUring = WithoutUring {
        disk,
        refused: None,
    };
    test(limited(disk, limits));
}

/// Makes reads of one sector each available, all of the first sectors.
fn push_reads(rig: &mut Rig, count: u64) -> Vec<Pending> {
    (0..count)
        .map(|at| rig.push(VIRTIO_BLK_T_IN, at, &[writable(DATA + 512 * at, 512)]))
        .collect()
}

#[test]
fn requests_beyond_the_limit_wait_in_the_ring_and_are_there_after_a_pause() {
    let limits = RateLimits {
        ops: bucket(3, HOUR),
        bandwidth: None,
    };
    with_each_engine(limits, |mut rig| {
        let pending = push_reads(&mut rig, 8);
        rig.ring.kick();
        for _ in 0..3 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        // More is looked at after a stop only.
        rig.ring.kick();
        let queues = rig.device.stop();
        assert_eq!(queues[0].queue.next_avail(), 3);
        assert_eq!(rig.ring.device_used_index(), 3);
        assert_eq!(rig.metric(|metrics| &metrics.in_flight), 0);
        for (at, pending) in pending.iter().enumerate() {
            let expected = if at < 3 { OK } else { UNTOUCHED };
            assert_eq!(rig.status(*pending), expected);
        }
        // Another device, without a limit, goes on with them.
        let (disk, _file) = file_disk(1 << 20);
        rig.device = Block::new(Arc::new(disk), setup());
        queues[0].notify.write(1).unwrap();
        rig.device
            .start(crate::virtio::Activation {
                memory: rig.memory.clone(),
                queues,
                features: FLUSH,
                interrupt: rig.interrupt.clone(),
            })
            .unwrap();
        for _ in 3..8 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        assert!(pending.iter().all(|pending| rig.status(*pending) == OK));
    });
}

#[test]
fn requests_go_on_as_time_goes_on() {
    let limits = RateLimits {
        ops: bucket(1, Duration::from_millis(10)),
        bandwidth: None,
    };
    let start = Instant::now();
    with_each_engine(limits, |mut rig| {
        push_reads(&mut rig, 6);
        rig.ring.kick();
        for _ in 0..6 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        // The driver is asked for notifications again once the ring is empty.
        assert!(rig.ring.wait_wants_kick(TIMEOUT));
        assert_eq!(rig.read_disk(1, 512).0, OK);
    });
    // Six times a token had to come back for each engine.
    assert!(start.elapsed() >= Duration::from_millis(120));
}

#[test]
fn bytes_are_counted_for_transfers_alone() {
    let limits = RateLimits {
        ops: None,
        bandwidth: bucket(1024, HOUR),
    };
    with_each_engine(limits, |mut rig| {
        for _ in 0..10 {
            assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
        }
        assert_eq!(rig.read_disk(0, 512).0, OK);
        // It is longer than what is left, and the last for an hour.
        assert_eq!(rig.read_disk(0, 8192).0, OK);
        rig.push(VIRTIO_BLK_T_FLUSH, 0, &[]);
        rig.ring.kick();
        assert_eq!(rig.device.stop()[0].queue.next_avail(), 12);
    });
}

#[test]
fn request_that_does_not_reach_the_disk_is_free() {
    let limits = RateLimits {
        ops: bucket(1, HOUR),
        bandwidth: None,
    };
    with_each_engine(limits, |mut rig| {
        for _ in 0..5 {
            let data = [writable(DATA, 20)];
            assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &data).0, OK);
            assert_eq!(rig.read_disk(4096, 512).0, 1);
        }
        assert_eq!(rig.read_disk(0, 512).0, OK);
    });
}

#[test]
fn reset_does_not_fill_the_bucket() {
    let limits = RateLimits {
        ops: bucket(2, HOUR),
        bandwidth: None,
    };
    let (disk, _file): (FileDisk, _) = file_disk(1 << 20);
    let mut rig = limited(disk, limits);
    assert_eq!(rig.read_disk(0, 512).0, OK);
    rig.device.stop();
    rig.device.reset();
    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    rig.start();
    push_reads(&mut rig, 2);
    rig.ring.kick();
    rig.ring.wait_used(TIMEOUT).unwrap();
    assert_eq!(rig.device.stop()[0].queue.next_avail(), 1);
}

#[test]
fn disks_of_a_group_share_its_limit() {
    let limits = RateLimits {
        ops: bucket(2, HOUR),
        bandwidth: None,
    };
    let limiter = Arc::new(RateLimiter::new(limits, Instant::now()));
    let mut rigs = [(); 2].map(|()| {
        let setup = BlockSetup {
            limiter: Arc::clone(&limiter),
            ..setup()
        };
        let mut rig = Rig::made_of(file_disk(1 << 20).0, setup, FLUSH);
        rig.start();
        rig
    });
    for rig in &mut rigs {
        assert_eq!(rig.read_disk(0, 512).0, OK);
    }
    for rig in &mut rigs {
        push_reads(rig, 1);
        rig.ring.kick();
        assert_eq!(rig.device.stop()[0].queue.next_avail(), 1);
    }
}

#[test]
fn limits_are_changed_while_requests_wait_for_them() {
    let limits = RateLimits {
        ops: bucket(2, HOUR),
        bandwidth: None,
    };
    with_each_engine(limits, |mut rig| {
        let pending = push_reads(&mut rig, 12);
        rig.ring.kick();
        for _ in 0..2 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        assert!(rig.ring.wait_used(Duration::from_millis(30)).is_none());
        // Another bucket, which is full.
        rig.device.limits().set(RateLimits {
            ops: bucket(3, HOUR),
            bandwidth: None,
        });
        for _ in 0..3 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        assert!(rig.ring.wait_used(Duration::from_millis(30)).is_none());
        rig.device.limits().set(RateLimits::default());
        for _ in 0..7 {
            rig.ring.wait_used(TIMEOUT).unwrap();
        }
        for pending in pending {
            assert_eq!(rig.status(pending), OK);
        }
    });
}

#[test]
fn device_without_limits_gets_some_and_keeps_them_over_a_pause() {
    let mut rig = limited(file_disk(1 << 20).0, RateLimits::default());
    assert_eq!(rig.read_disk(0, 512).0, OK);
    rig.device.limits().set(RateLimits {
        ops: bucket(1, HOUR),
        bandwidth: None,
    });
    assert_eq!(rig.read_disk(0, 512).0, OK);
    rig.device.stop();
    rig.ring = Ring::new(&rig.memory, RING, RING_SIZE);
    rig.start();
    let pending = rig.push(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]);
    rig.ring.kick();
    assert!(rig.ring.wait_used(Duration::from_millis(30)).is_none());
    rig.device.limits().set(RateLimits::default());
    assert_eq!(rig.finish(pending), (OK, 513));
}
