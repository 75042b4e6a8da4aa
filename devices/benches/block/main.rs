//! Requests per second of one queue of a block device, on a file in memory and without a guest.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use devices::virtio::block::EngineKind;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

mod counted;
mod load;

use counted::Counted;
use load::Load;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

const KINDS: [(&str, u32); 2] = [("read", VIRTIO_BLK_T_IN), ("write", VIRTIO_BLK_T_OUT)];

fn requests(criterion: &mut Criterion) {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let mut group = criterion.benchmark_group(engine.to_string());
        for (name, kind) in KINDS {
            for depth in [1, 32] {
                let mut load = Load::new(kind, depth, engine);
                group.throughput(Throughput::Elements(depth.into()));
                group.bench_function(BenchmarkId::new(name, depth), |bencher| {
                    bencher.iter(|| load.round());
                });
                let before = counted::count();
                for _ in 0..1000 {
                    load.round();
                }
                let allocations = counted::count() - before;
                let requests = 1000 * u64::from(depth);
                println!(
                    "{engine}/{name}/{depth}: {allocations} allocations in {requests} requests"
                );
            }
        }
        group.finish();
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
