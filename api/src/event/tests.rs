use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use super::*;

fn events() -> Events {
    Events::new(Instant::now())
}

/// The events of a file, which must be one JSON document and an empty line each.
fn parse(text: &str) -> Vec<Event> {
    assert!(text.is_empty() || text.ends_with("}\n\n"), "{text:?}");
    let documents = text.split_terminator("\n\n");
    documents
        .map(|document| serde_json::from_str(document).unwrap())
        .collect()
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.event.as_ref()).collect()
}

fn lost(event: &Event) -> Option<u64> {
    (event.source == "monitor" && event.event == "lost")
        .then(|| event.properties.as_ref().unwrap()["count"].parse().unwrap())
}

#[test]
fn event_is_written_as_cloud_hypervisor_writes_it() {
    let event = Event::new(Duration::new(3, 40_000), "vm", "booted", &[]);
    insta::assert_snapshot!(serde_json::to_string_pretty(&event).unwrap(), @r#"
    {
      "timestamp": {
        "secs": 3,
        "nanos": 40000
      },
      "source": "vm",
      "event": "booted",
      "properties": null
    }
    "#);
    let event = Event::new(Duration::ZERO, "vm", "device-added", &[("id", "_disk0")]);
    insta::assert_snapshot!(serde_json::to_string(&event).unwrap(),
        @r#"{"timestamp":{"secs":0,"nanos":0},"source":"vm","event":"device-added","properties":{"id":"_disk0"}}"#);
}

#[test]
fn file_has_all_events_in_their_order_when_it_is_closed() {
    let events = events();
    events.publish("vmm", "before", &[]);
    let mut file = tempfile::tempfile().unwrap();
    let monitor = events.write_to(file.try_clone().unwrap()).unwrap();
    events.publish("vmm", "starting", &[]);
    events.publish("vm", "created", &[("a", "1"), ("b", "two\n\nlines")]);
    for _ in 0..100 {
        events.publish("vm", "paused", &[]);
    }
    monitor.close();
    events.publish("vmm", "after", &[]);

    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let written = parse(&text);
    assert_eq!(names(&written[..3]), ["starting", "created", "paused"]);
    assert_eq!(written.len(), 102);
    let properties = written[1].properties.as_ref().unwrap();
    assert_eq!(properties["b"], "two\n\nlines");
    assert!(written.is_sorted_by_key(|event| event.timestamp));
}

#[test]
fn reader_that_does_not_read_delays_nobody_and_is_told_what_it_lost() {
    let events = events();
    let (mut reader, writer) = io::pipe().unwrap();
    let monitor = events.write_to(File::from(OwnedFd::from(writer))).unwrap();
    // Far more than the pipe and the queue hold.
    let published = 10_000;
    for _ in 0..published {
        events.publish("vm", "paused", &[]);
    }
    let reader = thread_reading(move |text| {
        reader.read_to_string(text).unwrap();
    });
    monitor.close();
    let written = parse(&reader.join().unwrap());
    let lost: u64 = written.iter().filter_map(lost).sum();
    let seen = written.iter().filter(|event| event.event == "paused");
    assert!(lost > 0);
    assert_eq!(seen.count() as u64 + lost, published);
}

fn thread_reading(
    read: impl FnOnce(&mut String) + Send + 'static,
) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        read(&mut text);
        text
    })
}

#[test]
fn closing_does_not_wait_for_a_reader_that_never_reads() {
    let events = events();
    let (reader, writer) = io::pipe().unwrap();
    let monitor = events.write_to(File::from(OwnedFd::from(writer))).unwrap();
    for _ in 0..5_000 {
        events.publish("vm", "paused", &[]);
    }
    monitor.close();
    drop(reader);
}

#[test]
fn events_that_a_broken_file_cannot_take_cost_nothing_else() {
    let events = events();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let monitor = events.write_to(File::from(OwnedFd::from(writer))).unwrap();
    events.publish("vm", "paused", &[]);
    monitor.close();
}

#[test]
fn second_file_takes_the_place_of_the_first() {
    let events = events();
    let mut files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let first = events.write_to(files[0].try_clone().unwrap()).unwrap();
    events.publish("vm", "one", &[]);
    let second = events.write_to(files[1].try_clone().unwrap()).unwrap();
    events.publish("vm", "two", &[]);
    first.close();
    events.publish("vm", "three", &[]);
    second.close();
    let texts = files.each_mut().map(|file| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(names(&parse(&texts[0])), ["one"]);
    assert_eq!(names(&parse(&texts[1])), ["two", "three"]);
}

#[test]
fn listener_that_is_too_far_behind_is_told_so() {
    let events = events();
    let mut slow = events.subscribe();
    for _ in 0..=BACKLOG {
        events.publish("vm", "paused", &[]);
    }
    assert_eq!(
        slow.try_recv(),
        Err(broadcast::error::TryRecvError::Lagged(1))
    );
}

#[test]
fn listeners_see_what_is_published_after_they_came() {
    let events = events();
    events.publish("vm", "booting", &[]);
    let mut listener = events.subscribe();
    events.clone().publish("vm", "booted", &[]);
    assert_eq!(listener.try_recv().unwrap().event, "booted");
    assert!(listener.try_recv().is_err());
}
