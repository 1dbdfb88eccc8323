//! Asks an admin page: one request on a connection of its own, bounded in time and length.

use crate::map::Fault;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Status and body of a POST of JSON.
pub fn post(at: SocketAddr, path: &str, body: &str) -> io::Result<(u16, String)> {
    let len = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
    );
    ask(at, &(head + body))
}

/// The JSON that a log's page answers: a GET, or, with a body, a POST. A refusal comes in the log's own words.
pub fn of_log(at: SocketAddr, body: Option<&str>, path: &str) -> Result<Value, Fault> {
    let wrong = |what: String| Fault::Input(format!("the log at {at}: {what}"));
    let (status, answer) = match body {
        Some(body) => post(at, path, body),
        None => get(at, path),
    }
    .map_err(|e| wrong(e.to_string()))?;
    match (status, serde_json::from_str::<Value>(&answer)) {
        (200, Ok(value)) => Ok(value),
        (_, Ok(value)) if value["error"].is_string() => {
            Err(wrong(value["error"].as_str().unwrap_or_default().to_owned()))
        }
        (404, _) => Err(wrong("it has no such page: is this the admin address of a log ([log] admin)?".into())),
        (_, _) => Err(wrong(format!("answered {status}, and nothing that is understood: is this its [log] admin?"))),
    }
}

/// Status and body of a GET.
fn get(at: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    ask(at, &format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n"))
}

fn ask(at: SocketAddr, request: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = vec![];
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let malformed = || io::Error::other("its answer is no HTTP: is this an admin address?");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
    let chunked = head.lines().any(|l| l.eq_ignore_ascii_case("transfer-encoding: chunked"));
    if chunked {
        return Err(io::Error::other("its answer comes in chunks, which no admin page does"));
    }
    Ok((status, body.into()))
}
