//! Reads an admin page, and what a histogram counted between two looks at it.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
const PAGE_BYTES_MAX: u64 = 8 << 20;

/// The JSON of `GET path`.
pub fn fetch(at: SocketAddr, path: &str) -> Result<Value, String> {
    let read = || {
        let mut stream = TcpStream::connect_timeout(&at, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.take(PAGE_BYTES_MAX).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let text = read().map_err(|e| format!("http://{at}{path}: {e}"))?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => {
            serde_json::from_str(body).map_err(|e| format!("http://{at}{path}: {e}"))
        }
        Some((head, _)) => Err(format!("http://{at}{path}: {}", head.lines().next().unwrap_or_default())),
        None => Err(format!("http://{at}{path}: no whole answer")),
    }
}

/// How many fell into each bucket, by its end in microseconds; all services together.
pub type Buckets = BTreeMap<u64, u64>;

/// The histogram `name` of a `/histograms` page; `None` if the page has none.
pub fn buckets(page: &Value, name: &str) -> Option<Buckets> {
    let mut all = Buckets::new();
    for service in page.get(name)?.as_object()?.values() {
        for bucket in service.get("buckets")?.as_array()? {
            *all.entry(bucket.get(0)?.as_u64()?).or_default() += bucket.get(1)?.as_u64()?;
        }
    }
    Some(all)
}

/// The quantile, in microseconds, of what came between two looks: the end of its bucket.
pub fn quantile_us(before: &Buckets, after: &Buckets, q: f64) -> Option<f64> {
    let new = |at: &u64| after[at].saturating_sub(before.get(at).copied().unwrap_or(0));
    let all: u64 = after.keys().map(new).sum();
    let mut seen = 0;
    let place = after.keys().find(|at| {
        seen += new(at);
        seen > 0 && seen as f64 >= q * all as f64
    });
    place.map(|us| *us as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_quantile_is_of_what_came_between_two_looks() {
        let page = |a: u64, b: u64| json!({ "own": { "one": { "buckets": [[10, a], [20, 3]] }, "two": { "buckets": [[40, b]] } } });
        let look = |a, b| buckets(&page(a, b), "own").unwrap();
        assert_eq!(quantile_us(&look(5, 7), &look(103, 9), 0.98), Some(10.0));
        assert_eq!(quantile_us(&look(5, 7), &look(103, 9), 0.99), Some(40.0));
        assert_eq!(quantile_us(&look(5, 7), &look(5, 7), 0.5), None);
        assert_eq!(buckets(&page(1, 1), "other"), None);
    }
}
