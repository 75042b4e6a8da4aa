//! Bytes in both directions.

use super::*;

#[test]
fn console_has_no_ports_and_tells_the_size_of_a_terminal() {
    let line = Line::new(0);
    let device = Console::single("virtio-_console0", line.clone()).unwrap();
    assert_eq!(device.features() & (1 << F_SIZE | 1 << F_MULTIPORT), 0);
    assert_eq!(device.queue_sizes().len(), 2);
    line.set(|line| {
        line.size = Some(WindowSize {
            columns: 80,
            rows: 0x1234,
        });
    });
    let device = Console::single("virtio-_console0", line).unwrap();
    assert_eq!(
        device.features() & (1 << F_SIZE | 1 << F_MULTIPORT),
        1 << F_SIZE
    );
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(
        config,
        [80, 0, 0x34, 0x12, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
    );
}

#[test]
fn driver_is_told_when_the_terminal_has_another_size() {
    let line = Line::new(usize::MAX);
    line.set(|line| line.size = Some(WindowSize::default()));
    let device = Console::single("virtio-_console0", line.clone()).unwrap();
    let mut bench = Bench::around(device, vec![line]);
    bench.start();
    // At the start, too: Linux does not look by itself.
    until("it is told", || bench.interrupt.config_count() == 1);
    bench.change(0, |line| {
        line.size = Some(WindowSize {
            columns: 132,
            rows: 43,
        });
    });
    until("it is told again", || bench.interrupt.config_count() == 2);
    bench.change(0, |_| ());
    thread::sleep(QUIET);
    assert_eq!(bench.interrupt.config_count(), 2);
}

#[test]
fn guest_bytes_reach_the_line_across_chains_and_pieces() {
    let mut bench = Bench::console(usize::MAX);
    let bytes = pattern(30_000);
    bench.sent(1, &bytes[..1]);
    bench.sent(1, &bytes[1..20_000]);
    let at = bench.place(10_000);
    bench.write(at, &bytes[20_000..]);
    bench.rings[1].push(&[readable(at, 3), readable(at + 3, 9_997)]);
    bench.rings[1].kick();
    bench.rings[1].wait_used(TIMEOUT).unwrap();
    assert!(bench.lines[0].taken() == bytes);
    assert_eq!(bench.metrics.tx_bytes.load(Ordering::Relaxed), 30_000);
}

#[test]
fn line_without_room_leaves_the_rest_in_the_ring() {
    let mut bench = Bench::console(100);
    let bytes = pattern(10_000);
    bench.send(1, &bytes[..4_000]);
    bench.send(1, &bytes[4_000..]);
    until("what fits is taken", || bench.lines[0].taken().len() == 100);
    thread::sleep(QUIET);
    assert!(bench.rings[1].pop_used().is_none());
    bench.change(0, |line| line.room = 5_000);
    assert!(bench.rings[1].wait_used(TIMEOUT).is_some());
    until("what fits is taken", || {
        bench.lines[0].taken().len() == 5_100
    });
    assert!(bench.rings[1].pop_used().is_none());
    bench.change(0, |line| line.room = usize::MAX);
    assert!(bench.rings[1].wait_used(TIMEOUT).is_some());
    assert!(bench.lines[0].taken() == bytes);
    assert!(bench.metrics.tx_waits.load(Ordering::Relaxed) >= 2);
}

#[test]
fn pause_in_the_middle_of_a_chain_neither_loses_nor_repeats_bytes() {
    let mut bench = Bench::console(1_000);
    let bytes = pattern(5_000);
    bench.send(1, &bytes);
    until("what fits is taken", || {
        bench.lines[0].taken().len() == 1_000
    });
    let queues = bench.device.stop();
    bench.lines[0].set(|line| line.room = usize::MAX);
    bench.resume(queues);
    assert!(bench.rings[1].wait_used(TIMEOUT).is_some());
    assert!(bench.lines[0].taken() == bytes);
}

#[test]
fn input_waits_for_buffers_and_is_bounded() {
    let mut bench = Bench::console(0);
    until("the console is open", || bench.inputs[0].is_open());
    let bytes = pattern(3 * INPUT_CAPACITY);
    assert_eq!(bench.inputs[0].receive(&bytes), INPUT_CAPACITY);
    assert_eq!(bench.inputs[0].receive(&bytes), 0);
    let ready = bench.lines[0].get(|line| line.ready);
    assert!(bench.receive(0, 100) == bytes[..100]);
    until("the line is told", || {
        bench.lines[0].get(|line| line.ready) > ready
    });
    assert_eq!(
        bench.inputs[0].receive(&bytes[INPUT_CAPACITY..]),
        100,
        "as much as was taken"
    );
    let rest = bench.receive(0, 8192);
    assert!(rest == bytes[100..INPUT_CAPACITY + 100]);
    assert!(bench.interrupt.wait_queue(0, 1, TIMEOUT));
}

#[test]
fn input_goes_to_buffers_that_were_there_before() {
    let mut bench = Bench::console(0);
    let at = bench.offer(0, 64);
    until("the console is open", || bench.inputs[0].is_open());
    assert_eq!(bench.inputs[0].receive(b"typed"), 5);
    let used = bench.rings[0].wait_used(TIMEOUT).unwrap();
    assert_eq!(bench.read(at, used.len as usize), b"typed");
}

#[test]
fn device_that_is_gone_takes_no_input() {
    let mut bench = Bench::console(0);
    let input = bench.inputs[0].clone();
    bench.device.stop();
    drop(bench);
    assert_eq!(input.receive(b"x"), 0);
    assert!(!input.is_open());
    input.wake();
}
