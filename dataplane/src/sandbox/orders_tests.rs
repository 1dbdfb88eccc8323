//! The driver against a server that answers, refuses, hangs up and closes by turns.

use super::*;
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers the n-th request of all with `answer(n)`; an empty answer closes the connection.
async fn server(answer: fn(usize) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while socket.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                    if !seen.ends_with(b"}") {
                        continue;
                    }
                    seen.clear();
                    let text = answer(count.fetch_add(1, Relaxed));
                    if text.is_empty() || socket.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn created(zone: &str, n: usize) -> String {
    let body = format!(r#"{{"id":"{n}"}}"#);
    format!("HTTP/1.1 201 Created\r\nx-ezone: {zone}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn options(routers: Vec<(SocketAddr, String)>, rate: f64) -> DriverOptions {
    let entry = |p: &Place| usize::from(p.lat < 33.0);
    DriverOptions { connections: 4, ..DriverOptions::new(routers, rate, Box::new(entry)) }
}

#[tokio::test]
async fn orders_enter_by_latitude_and_the_zone_that_served_them_is_counted() {
    let (bj, sh) = (server(|n| created("bj", n)).await, server(|n| created(["bj", "sh"][n % 2], n)).await);
    let driver = Driver::start(options(vec![(bj, "bj".into()), (sh, "sh".into())], 500.0));
    driver.set_phase("calm");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = driver.snapshot();
    let report = driver.stop().await;
    let n = report.orders.len();
    assert!((300..=700).contains(&n), "{n} orders in about a second, expected about 500");
    assert_eq!(report.count(|o| o == Outcome::Acknowledged), n);
    assert!(second.orders_per_s > 250.0 && second.cross_zone_share > 0.1, "{second:?}");
    let l = &report.latencies;
    assert_eq!(l.own_zone.len() + l.cross_zone.len(), n as u64);
    assert!(!l.cross_zone.is_empty() && l.by_zone.iter().all(|z| !z.1.is_empty()));
    assert_eq!(l.by_phase.iter().map(|p| p.1.len()).sum::<u64>(), n as u64);
    assert!(report.orders.iter().all(|o| o.id.is_some() && o.status == Some(201)));
}

#[tokio::test]
async fn an_order_is_refused_unknown_or_not_sent_by_what_was_seen_of_it() {
    let odd = server(|n| match n % 4 {
        0 => created("bj", n),
        1 => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".into(),
        2 => "HTTP/1.1 502 Gone\r\nx-ezone-outcome: unknown\r\ncontent-length: 2\r\n\r\n{}".into(),
        _ => String::new(),
    })
    .await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let driver = Driver::start(options(vec![(odd, "bj".into()), (nobody, "sh".into())], 400.0));
    tokio::time::sleep(Duration::from_millis(800)).await;
    let report = driver.stop().await;
    let of = |which| report.count(|o| o == which);
    assert!(of(Outcome::Acknowledged) > 5 && of(Outcome::Refused(503)) > 5 && of(Outcome::NotSent) > 20);
    assert!(of(Outcome::Unknown) > of(Outcome::Refused(503)), "a lost connection and the field both say unknown");
    let unsent = |o: &Order| (o.outcome == Outcome::NotSent) == o.sent.is_none();
    assert!(report.orders.iter().all(|o| unsent(o) && (o.router == 0 || o.outcome == Outcome::NotSent)));
}

#[tokio::test]
async fn a_router_that_is_down_is_replaced_and_a_silent_one_makes_an_order_unknown() {
    let (ok, silent) = (server(|n| created("sh", n)).await, server(|_| "HTTP/1.1 2".into()).await);
    let mut with = options(vec![(silent, "bj".into()), (ok, "sh".into())], 200.0);
    with.timeout = Duration::from_millis(300);
    let driver = Driver::start(with);
    tokio::time::sleep(Duration::from_millis(200)).await;
    driver.set_router_up(0, false);
    tokio::time::sleep(Duration::from_millis(800)).await;
    driver.set_rate(0.0);
    let report = driver.stop().await;
    assert!(report.count(|o| o == Outcome::Unknown) > 0);
    let north = |o: &&Order| o.router == 1;
    assert!(report.orders.iter().filter(north).all(|o| o.outcome == Outcome::Acknowledged));
    let tokens: std::collections::HashSet<_> = report.orders.iter().map(|o| &o.token).collect();
    assert_eq!(tokens.len(), report.orders.len(), "a token is used once");
}

#[test]
fn a_request_is_whole_and_about_300_bytes_of_json() {
    let request = String::from_utf8(request("orders", "1-7", &places()[0], 7)).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("x-shard: loc=98.6,39.61667") && head.contains(&format!("content-length: {}", body.len())));
    assert!((250..350).contains(&body.len()), "{} bytes", body.len());
    let json: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(json["token"], "1-7");
}
