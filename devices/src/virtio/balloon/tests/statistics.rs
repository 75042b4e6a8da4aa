//! What the driver tells of its guest.

use super::super::Statistic;
use super::*;
use crate::virtio::driver::Used;

const AT: u64 = 0x3_0000;

fn place(rig: &Rig, entries: &[(u16, u64)]) -> u32 {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    rig.write(AT, &bytes);
    bytes.len() as u32
}

fn tell(rig: &mut Rig, entries: &[(u16, u64)]) -> u16 {
    let len = place(rig, entries);
    let head = rig.rings[STATS].push(&[readable(AT, len)]);
    rig.rings[STATS].kick();
    head
}

fn wait(rig: &Rig, answers: u64) {
    let until = std::time::Instant::now() + TIMEOUT;
    while rig.metric(|metrics| &metrics.statistics) < answers {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn statistics_are_kept_and_asked_for_when_they_are_wanted() {
    let mut rig = Rig::new();
    let head = tell(&mut rig, &[(4, 1000), (5, 2000)]);
    wait(&rig, 1);
    assert_eq!(rig.rings[STATS].pop_used(), None);
    assert_eq!(rig.handle.statistics().get(Statistic::Free), Some(1000));
    let used = rig.rings[STATS].wait_used(TIMEOUT);
    assert_eq!(used, Some(Used { head, len: 0 }));
    assert!(rig.interrupt.wait_queue(2, 1, TIMEOUT));
    tell(&mut rig, &[(4, 3000)]);
    wait(&rig, 2);
    let statistics = rig.handle.statistics();
    assert_eq!(statistics.get(Statistic::Free), Some(3000));
    assert_eq!(statistics.get(Statistic::Total), None);
}

#[test]
fn statistics_are_asked_for_in_an_interval() {
    let setup = BalloonSetup {
        statistics_interval: Some(Duration::from_millis(1)),
        ..setup()
    };
    let mut rig = Rig::with(setup, ALL, 4);
    for round in 1..4 {
        let head = tell(&mut rig, &[(0, round)]);
        let used = rig.rings[STATS].wait_used(TIMEOUT).unwrap();
        assert_eq!(used.head, head);
        let statistics = rig.handle.statistics();
        assert_eq!(statistics.get(Statistic::SwapIn), Some(round));
    }
}

#[test]
fn second_answer_takes_the_place_of_the_first() {
    let mut rig = Rig::new();
    let first = tell(&mut rig, &[(4, 1)]);
    wait(&rig, 1);
    tell(&mut rig, &[(4, 2)]);
    assert_eq!(rig.rings[STATS].wait_used(TIMEOUT).unwrap().head, first);
    wait(&rig, 2);
    assert_eq!(rig.handle.statistics().get(Statistic::Free), Some(2));
}

#[test]
fn answer_is_read_again_after_a_pause() {
    let mut rig = Rig::new();
    let head = tell(&mut rig, &[(4, 1)]);
    wait(&rig, 1);
    let queues = rig.device.stop();
    rig.resume(queues);
    wait(&rig, 2);
    assert_eq!(rig.rings[STATS].pop_used(), None);
    rig.handle.statistics();
    assert_eq!(rig.rings[STATS].wait_used(TIMEOUT).unwrap().head, head);
}

#[test]
fn no_answer_is_told_after_a_reset() {
    let mut rig = Rig::new();
    tell(&mut rig, &[(4, 1)]);
    wait(&rig, 1);
    rig.device.stop();
    rig.device.reset();
    assert_eq!(rig.handle.statistics().get(Statistic::Free), None);
}

#[test]
fn long_and_broken_answers_are_read_as_far_as_they_go() {
    let mut rig = Rig::new();
    place(&rig, &[(4, 1), (5, 2)]);
    let head = rig.rings[STATS].push(&[readable(AT, 15)]);
    rig.rings[STATS].kick();
    wait(&rig, 1);
    let statistics = rig.handle.statistics();
    assert_eq!(statistics.get(Statistic::Free), Some(1));
    assert_eq!(statistics.get(Statistic::Total), None);
    assert_eq!(rig.rings[STATS].wait_used(TIMEOUT).unwrap().head, head);
    rig.rings[STATS].push(&[readable(FREE, 1 << 20)]);
    rig.rings[STATS].kick();
    wait(&rig, 2);
}
