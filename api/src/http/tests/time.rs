//! Clients that take their time, which is the runtime's: it passes as soon as everybody waits.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream as Stream;
use tokio::time::{Instant, sleep};

use super::super::limits::{BODY_TIME, HEAD_TIME, IDLE_TIME, WRITE_TIME};
use super::*;
use crate::request::{Answerer, Reply, Request};

/// Answers at once, on the server's own thread.
struct Prompt;

impl Service for Prompt {
    fn post(&self, _: Request, answerer: Answerer) {
        answerer(Ok(Reply::Done));
    }
}

/// Runs a client beside a server on one clock.
fn with_server<F: Future<Output = ()>>(client: impl FnOnce(PathBuf, Events) -> F) {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (stop, stopping) = watch::channel(false);
        let events = Events::new(std::time::Instant::now());
        let api = Arc::new(router::Api {
            service: Arc::new(Prompt),
            events: events.clone(),
            latency: metrics::Latency::new(),
            stopping: stopping.clone(),
        });
        let server = tokio::spawn(listener::run(listener, router::router(&api), stopping));
        client(path, events).await;
        stop.send_replace(true);
        server.await.unwrap();
    });
}

/// All that comes until the end of the connection, and how long that took.
async fn rest(stream: &mut Stream) -> (String, Duration) {
    let started = Instant::now();
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut bytes).await;
    (String::from_utf8(bytes).unwrap(), started.elapsed())
}

fn assert_near(time: Duration, expected: Duration) {
    let slack = Duration::from_secs(1);
    assert!(
        time >= expected.saturating_sub(slack) && time <= expected + slack,
        "{time:?} is not {expected:?}"
    );
}

#[test]
fn client_that_sends_a_byte_a_minute_loses_its_connection_and_hurts_nobody() {
    with_server(|path, _| async move {
        let mut slow = Stream::connect(&path).await.unwrap();
        let slow = tokio::spawn(async move {
            let mut sent = 0;
            for byte in b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n" {
                if slow.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sent += 1;
                sleep(Duration::from_secs(60)).await;
            }
            sent
        });
        let mut quick = Stream::connect(&path).await.unwrap();
        for _ in 0..20 {
            let request = b"GET /api/v1/vmm.ping HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
            quick.write_all(request).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(quick.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"HTTP/1.1 204"));
            sleep(Duration::from_secs(30)).await;
        }
        assert_eq!(slow.await.unwrap(), 1);
    });
}

#[test]
fn head_has_its_time_from_the_first_byte_to_the_last() {
    with_server(|path, _| async move {
        let mut stream = Stream::connect(&path).await.unwrap();
        sleep(IDLE_TIME / 2).await;
        stream
            .write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n")
            .await
            .unwrap();
        let (text, time) = rest(&mut stream).await;
        assert_eq!(text, "");
        assert_near(time, HEAD_TIME);
    });
}

#[test]
fn body_has_its_time_and_is_told_when_it_is_over() {
    with_server(|path, _| async move {
        let mut stream = Stream::connect(&path).await.unwrap();
        let head = b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 100\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let writer = tokio::spawn(async move {
            while writer.write_all(b"{").await.is_ok() {
                sleep(Duration::from_secs(5)).await;
            }
        });
        let started = Instant::now();
        let mut text = String::new();
        let _ = reader.read_to_string(&mut text).await;
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
        assert!(
            text.ends_with(r#"["the body did not come within 30 seconds"]"#),
            "{text}"
        );
        assert_near(started.elapsed(), BODY_TIME);
        writer.await.unwrap();
    });
}

#[test]
fn idle_connection_ends_after_its_time() {
    with_server(|path, _| async move {
        let mut stream = Stream::connect(&path).await.unwrap();
        assert_near(rest(&mut stream).await.1, IDLE_TIME);
        let mut stream = Stream::connect(&path).await.unwrap();
        sleep(IDLE_TIME / 2).await;
        stream
            .write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let (text, time) = rest(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 204 "), "{text}");
        assert_near(time, IDLE_TIME);
    });
}

#[test]
fn listener_that_does_not_read_loses_its_stream_and_delays_nobody() {
    with_server(|path, events| async move {
        let mut slow = Stream::connect(&path).await.unwrap();
        slow.write_all(b"GET /api/v1/vm.events HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        // The head tells that the stream has begun.
        slow.readable().await.unwrap();
        let note = "x".repeat(10_000);
        for _ in 0..1000 {
            events.publish("vm", "noted", &[("note", &note)]);
            tokio::task::yield_now().await;
        }
        sleep(WRITE_TIME + Duration::from_secs(1)).await;
        let (text, time) = rest(&mut slow).await;
        assert!(text.starts_with("HTTP/1.1 200 \r\n"), "{text}");
        assert!(text.matches("noted").count() < 1000);
        assert_near(time, Duration::ZERO);
    });
}

#[test]
fn quiet_stream_says_that_it_is_there() {
    with_server(|path, _| async move {
        let mut stream = Stream::connect(&path).await.unwrap();
        stream
            .write_all(b"GET /api/v1/vm.events HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut seen = 0;
        while seen < 4 {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await.unwrap();
            assert!(count > 0);
            seen += String::from_utf8_lossy(&bytes[..count])
                .matches(":\n\n")
                .count();
        }
    });
}
