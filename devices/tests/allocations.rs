//! The path of a block request allocates nothing. A test binary of its own, as its allocator counts for all threads.

use devices::virtio::block::EngineKind;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

#[path = "../benches/block/counted.rs"]
mod counted;
#[path = "../benches/block/load.rs"]
mod load;

use counted::Counted;
use load::Load;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[test]
fn requests_allocate_nothing() {
    let before = counted::count();
    drop(std::hint::black_box(Box::new(before)));
    assert_eq!(counted::count(), before + 1, "allocations are counted");
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            for depth in [1, 32] {
                let mut load = Load::new(kind, depth, engine);
                // Places for requests, and threads, are had when they are used first.
                for _ in 0..20 {
                    load.round();
                }
                let before = counted::count();
                for _ in 0..200 {
                    load.round();
                }
                let allocations = counted::count() - before;
                assert_eq!(allocations, 0, "{engine}, type {kind}, depth {depth}");
            }
        }
    }
}
