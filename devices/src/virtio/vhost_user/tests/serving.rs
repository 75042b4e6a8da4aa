//! Backends as they should be.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fake::{F_PROTOCOL, P_MEM_SLOTS, P_REPLY_ACK};
use super::*;
use crate::virtio::{Activation, Interrupt};

#[test]
fn all_queues_are_served() {
    let mut rig = Rig::new(Manner::good());
    rig.start().unwrap();
    assert_eq!(rig.echo(0, b"first queue"), b"first queue");
    assert_eq!(rig.echo(1, b"second queue"), b"second queue");
    for count in 0..100_u32 {
        let text = count.to_le_bytes();
        assert_eq!(rig.echo(1, &text), text);
    }
    assert!(rig.interrupt.wait_queue(0, 1, TIMEOUT));
    assert!(rig.interrupt.wait_queue(1, 1, TIMEOUT));
    let seen = rig.backends.seen(0);
    assert_eq!(seen.lock().unwrap().features, 1 << 32 | F_PROTOCOL);
    assert_eq!(seen.lock().unwrap().regions, [(0, MEMORY as u64)]);
    assert!(rig.backends.lost().is_empty());
}

#[test]
fn backends_of_every_age_are_served_by() {
    let ages = [
        ("without acknowledgements", P_MEM_SLOTS, F_PROTOCOL),
        ("without slots", P_REPLY_ACK, F_PROTOCOL),
        ("without protocol features", 0, 0),
    ];
    for (age, protocol, feature) in ages {
        let mut rig = Rig::new(Manner {
            protocol,
            features: 1 << 32 | feature,
            ..Manner::good()
        });
        assert_eq!(rig.backend.features(), 1 << 32, "{age}");
        rig.start().unwrap();
        assert_eq!(rig.echo(1, b"text"), b"text", "{age}");
        let queues = rig.rings.stop();
        assert_eq!(queues[1].queue.next_avail(), 1, "{age}");
    }
}

#[test]
fn only_features_that_the_backend_has_are_offered() {
    let backends = Backends::new(vec![Manner::good()]);
    let needs = Needs {
        queues: 1,
        features: 1 << 28 | 1 << 5,
    };
    let backend = Backend::connect(backends.peer(), needs, Timeouts::default()).unwrap();
    assert_eq!(backend.features(), 1 << 32 | 1 << 29 | 1 << 28);
}

#[test]
fn queues_come_back_where_the_backend_left_them_and_go_on_from_there() {
    let mut rig = Rig::new(Manner::good());
    rig.start().unwrap();
    for _ in 0..3 {
        rig.echo(1, b"before");
    }
    let queues = rig.rings.stop();
    let at: Vec<_> = queues
        .iter()
        .map(|active| {
            (
                active.index,
                active.queue.next_avail(),
                active.queue.next_used(),
            )
        })
        .collect();
    assert_eq!(at, [(0, 0, 0), (1, 3, 3)]);
    assert!(rig.rings.stop().is_empty());
    // What comes meanwhile waits.
    let ring = &mut rig.queues[1];
    ring.push(&[readable(DATA, 4), writable(DATA + 0x1000, 4)]);
    ring.kick();
    rig.resume(queues).unwrap();
    assert!(rig.queues[1].wait_used(TIMEOUT).is_some());
    assert_eq!(rig.echo(1, b"after"), b"after");
    let seen = rig.backends.seen(0);
    assert_eq!(seen.lock().unwrap().bases[&1], 3);
    assert_eq!(rig.backends.lost(), [""; 0]);
    let metrics = rig.backend.metrics();
    assert_eq!(metrics.connections.load(Ordering::Relaxed), 1);
    assert_eq!(metrics.connected.load(Ordering::Relaxed), 1);
}

/// Interrupts that are eventfds, as MSI-X vectors are.
struct Vectors(Mutex<EventFd>);

impl Interrupt for Vectors {
    fn queue(&self, index: u16) {
        panic!("queue {index} was interrupted by a thread of this process");
    }

    fn queue_eventfd(&self, _index: u16) -> Option<EventFd> {
        self.0.lock().unwrap().try_clone().ok()
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {}
}

#[test]
fn backend_writes_the_eventfd_of_the_interrupt_itself_also_when_it_moves() {
    let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
    let first = eventfd();
    let vectors = Arc::new(Vectors(Mutex::new(first.try_clone().unwrap())));
    let mut rig = Rig::new(Manner::good());
    let queues: Vec<_> = rig.queues.iter().collect();
    let activation = driver::activation(&rig.memory, &queues, 1 << 32, &rig.interrupt);
    let activation = Activation {
        interrupt: Arc::clone(&vectors) as Arc<dyn Interrupt>,
        ..activation
    };
    rig.rings.start(activation).unwrap();
    rig.echo(1, b"text");
    eventually("the backend interrupts", || first.read().is_ok());

    let second = eventfd();
    *vectors.0.lock().unwrap() = second.try_clone().unwrap();
    rig.rings.interrupt_moved(1);
    rig.echo(1, b"text");
    eventually("the backend interrupts by the other", || {
        second.read().is_ok()
    });
    assert!(first.read().is_err());
    // Of a queue that does not run.
    rig.rings.interrupt_moved(7);
    assert_eq!(rig.echo(1, b"text"), b"text");
}

#[test]
fn end_of_the_device_ends_the_connection() {
    let mut rig = Rig::new(Manner::good());
    rig.start().unwrap();
    let (backends, seen) = (Arc::clone(&rig.backends), rig.backends.seen(0));
    drop(rig.rings.stop());
    drop(rig);
    eventually("the backend sees the end", || seen.lock().unwrap().ended);
    assert!(backends.lost().is_empty());
}
