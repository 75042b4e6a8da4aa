//! The guest's memory, and its changes while rings run.

use super::fake::{ADD_MEM_REG, P_MEM_SLOTS, P_REPLY_ACK, SET_MEM_TABLE, Wrong};
use super::*;
use crate::memory::MemoryFollower;

const MORE: u64 = 1 << 30;

impl Rig {
    /// Makes `map` the guest's memory, as its owner does.
    fn change(&self, map: Ram) {
        self.memory.lock().unwrap().replace(map);
        self.backend.memory_changed(&self.memory.memory());
    }

    fn regions(&self) -> Vec<(u64, u64)> {
        let seen = self.backends.seen(0);
        seen.lock().unwrap().regions.clone()
    }

    fn requests(&self, request: u32) -> usize {
        let seen = self.backends.seen(0);
        let seen = seen.lock().unwrap();
        seen.requests
            .iter()
            .filter(|seen| **seen == request)
            .count()
    }
}

fn with_more(memory: &Ram, address: u64) -> Ram {
    let more = shared_memory(&[(address, MEMORY)]);
    let (_, region) = more
        .remove_region(GuestAddress(address), MEMORY as u64)
        .unwrap();
    memory.insert_region(region).unwrap()
}

#[test]
fn memory_that_comes_and_goes_is_known_to_the_backend_before_the_guest() {
    let ages = [P_REPLY_ACK | P_MEM_SLOTS, P_MEM_SLOTS, P_REPLY_ACK, 0];
    for protocol in ages {
        let mut rig = Rig::new(Manner {
            protocol,
            ..Manner::good()
        });
        rig.start().unwrap();
        rig.echo(1, b"before");
        let before = (*rig.memory.memory()).clone();
        rig.change(with_more(&before, MORE));
        // Told when the call returns.
        let both = [(0, MEMORY as u64), (MORE, MEMORY as u64)];
        assert_eq!(rig.regions(), both, "{protocol:#x}");
        assert_eq!(
            rig.echo_at(1, MORE + 0x100, b"into new memory"),
            b"into new memory"
        );
        rig.change(before);
        assert_eq!(rig.regions(), both[..1], "{protocol:#x}");
        assert_eq!(rig.echo(1, b"after"), b"after");
        assert_eq!(rig.backends.lost(), [""; 0]);
        let tables = if protocol & P_MEM_SLOTS != 0 { 1 } else { 3 };
        assert_eq!(rig.requests(SET_MEM_TABLE), tables, "{protocol:#x}");
    }
}

#[test]
fn change_while_no_ring_runs_is_known_at_the_next_start() {
    let mut rig = Rig::new(Manner::good());
    let before = (*rig.memory.memory()).clone();
    rig.change(with_more(&before, MORE));
    rig.start().unwrap();
    assert_eq!(rig.regions().len(), 2);
    let queues = rig.rings.stop();
    rig.change(before);
    rig.resume(queues).unwrap();
    assert_eq!(rig.regions().len(), 1);
    assert_eq!(rig.requests(ADD_MEM_REG), 0);
}

#[test]
fn more_regions_than_a_table_has_go_to_the_slots() {
    let mut rig = Rig::new(Manner::good());
    let mut map = (*rig.memory.memory()).clone();
    for index in 1..12 {
        map = with_more(&map, MORE * index);
    }
    rig.change(map);
    rig.start().unwrap();
    assert_eq!(rig.regions().len(), 12);
    assert_eq!(rig.requests(ADD_MEM_REG), 4);
    assert_eq!(rig.echo_at(1, MORE * 11, b"the last"), b"the last");
}

#[test]
fn backend_that_cannot_take_all_memory_is_not_given_the_rings() {
    let mut rig = Rig::new(Manner {
        slots: 1,
        ..Manner::good()
    });
    let before = (*rig.memory.memory()).clone();
    rig.change(with_more(&before, MORE));
    let error = rig.start().unwrap_err();
    assert!(told(&error).contains("takes fewer regions"), "{error:?}");
    // While it runs there is no way back, as the guest will use the memory.
    rig.change(before.clone());
    rig.start().unwrap();
    rig.change(with_more(&before, MORE));
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert_eq!(rig.backends.lost(), ["it takes no more regions of memory"]);
}

#[test]
fn backend_that_refuses_memory_is_lost() {
    let mut rig = Rig::new(Manner::wrong(ADD_MEM_REG, Wrong::Refuse));
    rig.start().unwrap();
    let before = (*rig.memory.memory()).clone();
    rig.change(with_more(&before, MORE));
    assert!(rig.interrupt.wait_needs_reset(TIMEOUT));
    assert!(rig.backends.lost()[0].starts_with("it did not take the guest's memory"));
}

#[test]
fn memory_of_this_process_alone_is_refused() {
    let mut rig = Rig::new(Manner::good());
    rig.memory = driver::memory(&[(0, MEMORY)]);
    rig.queues = Rig::queues(&rig.memory);
    let error = told(&rig.start().unwrap_err());
    assert!(
        error.contains("guest memory at 0x0 is not shared"),
        "{error}"
    );
}

#[test]
fn ring_across_two_regions_is_refused() {
    let mut rig = Rig::new(Manner::good());
    rig.memory = GuestMemoryAtomic::new(shared_memory(&[(0, MEMORY), (MEMORY as u64, MEMORY)]));
    rig.queues = Rig::queues(&rig.memory);
    rig.queues[1] = Ring::new(&rig.memory, MEMORY as u64 - 64, SIZE);
    let error = told(&rig.start().unwrap_err());
    assert!(error.contains("a ring of queue 1"), "{error}");
    assert!(rig.backends.lost().is_empty());
}
