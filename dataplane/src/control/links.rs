//! Connections of other zones' logs: each is read until it says which stream it is for, and goes to that stream's core.

use super::doors::{self, Doors};
use bytes::BytesMut;
use replog::link::{self, Frame};
use replog::uring::node::{Adopted, Node};
use rustls::ServerConnection;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long another zone's log may take to say which stream it is for.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How many connections may be about to say it: who only connects must not use up this process's descriptors. When there are as many,
/// the oldest gives way to the next: strangers who say nothing must not keep other zones' logs out for all of `HELLO_WAIT`.
const HELLOS_MAX: usize = 256;
/// But each is heard at least so long: a handshake over a WAN takes two round trips. Shorter than a log's patience with who does not
/// answer, `SILENT_MAX_US`.
const HEARD_LEAST: Duration = Duration::from_millis(500);
/// A HELLO is a cluster's name and some numbers.
const HELLO_BYTES_MAX: usize = 4096;

/// How a TLS handshake begins: its record's type, and version 3.x (RFC 8446 §5.1). No HELLO is so long that it would begin so.
const TLS_HELLO: [u8; 2] = [22, 3];

/// What is refused is told at most so often: whoever scans ports must not fill a disk with messages.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Connections that were closed because no HELLO came.
#[derive(Debug, Default)]
pub struct Refused {
    count: AtomicU64,
    /// When one was told, and how many there had been then.
    told: Mutex<Option<(Instant, u64)>>,
}

impl Refused {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    fn one(&self, from: SocketAddr, why: &str) {
        let count = self.count.fetch_add(1, Relaxed) + 1;
        let mut told = self.told.lock().expect("no one panics while holding it");
        match *told {
            Some((at, _)) if at.elapsed() < TELL_EVERY => return,
            Some((_, before)) if count > before + 1 => {
                tracing::warn!("link from {from}: {why}; closed, as {} before it were", count - before - 1);
            }
            Some(_) | None => tracing::warn!("link from {from}: {why}; closed"),
        }
        *told = Some((Instant::now(), count));
    }
}

/// Connections that are about to say which stream they are for, the oldest first.
#[derive(Default)]
struct Heard(VecDeque<(Instant, SocketAddr, JoinHandle<()>)>);

impl Heard {
    /// Ends when one more may be heard.
    async fn room(&mut self, refused: &Refused) {
        loop {
            self.0.retain(|(.., task)| !task.is_finished());
            if self.0.len() < HELLOS_MAX {
                return;
            }
            let Some((since, from, oldest)) = self.0.front_mut() else { return };
            match HEARD_LEAST.checked_sub(since.elapsed()) {
                // One of them may end before that.
                Some(left) if !left.is_zero() => sleep(left.min(Duration::from_millis(10))).await,
                Some(_) | None => {
                    oldest.abort();
                    // Until it has ended it has its descriptor: the next comes in its place, not beside it.
                    let said = oldest.await.is_ok();
                    if !said {
                        refused
                            .one(*from, &format!("no HELLO, and it gives way: {HELLOS_MAX} connections say nothing"));
                    }
                    self.0.pop_front();
                }
            }
        }
    }
}

/// Reads of each connection which stream it is for, and hands it to that stream's core.
pub async fn accept(links: TcpListener, node: Arc<Node>, doors: Option<Arc<Doors>>, refused: Arc<Refused>) {
    let mut heard = Heard::default();
    loop {
        match links.accept().await {
            Ok((socket, from)) => {
                // Until there is, the kernel keeps the next ones.
                heard.room(&refused).await;
                let (node, doors, refused) = (node.clone(), doors.clone(), refused.clone());
                let task = tokio::spawn(async move {
                    match timeout(HELLO_WAIT, hello(socket, doors.as_deref())).await {
                        Ok(Ok(adopted)) => node.adopt(adopted),
                        Ok(Err(why)) => refused.one(from, &why),
                        Err(_) => refused.one(from, &format!("no HELLO within {} s", HELLO_WAIT.as_secs())),
                    }
                });
                heard.0.push_back((Instant::now(), from, task));
            }
            Err(e) => {
                tracing::warn!("links: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Reads what a connection begins with, behind its handshake if links speak TLS.
async fn hello(socket: TcpStream, doors: Option<&Doors>) -> Result<Adopted, String> {
    let (mut read, mut tls, mut who) = (BytesMut::new(), None, None);
    if let Some(doors) = doors {
        let (session, member) = doors.greet(&socket).await.map_err(|fault| fault.to_string())?;
        (tls, who) = (Some(Box::new(session)), Some(member));
    }
    loop {
        if let Some(frame) = begun(&read)? {
            let (asks, stream, origin) = match &frame {
                Frame::Hello(h) => (false, h.stream, h.origin),
                Frame::Ask(a) => (true, a.stream, a.origin),
                Frame::Seed(s) => (true, s.ask.stream, s.ask.origin),
                _ => return Err("its first frame is none of HELLO, ASK and SEED".into()),
            };
            if let (Some(doors), Some(who)) = (doors, &who) {
                doors.judge(who, &frame)?;
            }
            let socket = socket.into_std().map_err(|e| e.to_string())?;
            return Ok(Adopted { asks, stream, origin, socket, tls, read: read.to_vec() });
        }
        match &mut tls {
            Some(tls) => {
                if drain(tls, &mut read)? == 0 {
                    doors::receive(tls, &socket).await.map_err(|fault| fault.to_string())?;
                    drain(tls, &mut read)?;
                }
            }
            None => {
                socket.readable().await.map_err(|e| e.to_string())?;
                match socket.try_read_buf(&mut read) {
                    Ok(0) => return Err("it ended before its HELLO".into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e.to_string()),
                }
            }
        }
    }
}

/// The first frame, once it is whole. The core's receiver gets the bytes as they came; here they are only looked into.
fn begun(read: &BytesMut) -> Result<Option<Frame>, String> {
    if read.starts_with(&TLS_HELLO) {
        return Err("TLS at a port that speaks none: this node has no [cluster], or allow_plain_links".into());
    }
    match link::take(&mut read.clone()).map_err(|e| e.to_string())? {
        None if read.len() > HELLO_BYTES_MAX => Err(format!("no HELLO in {} bytes", read.len())),
        frame => Ok(frame),
    }
}

/// Moves what a session has to say behind `read`; returns how much.
fn drain(tls: &mut ServerConnection, read: &mut BytesMut) -> Result<usize, String> {
    let mut part = [0; 4096];
    let before = read.len();
    loop {
        match tls.reader().read(&mut part) {
            Ok(0) => return Err("it ended before its HELLO".into()),
            Ok(n) => read.extend_from_slice(&part[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(read.len() - before),
            Err(e) => return Err(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who gives way holds its descriptor no longer than until the next one is taken in: tasks that were only told to end would be
    /// as many more as the kernel has connections waiting.
    #[tokio::test]
    async fn who_gives_way_is_gone_before_the_next_is_heard() {
        let (mut heard, refused, held) = (Heard::default(), Refused::default(), Arc::new(()));
        let (long_ago, from) = (Instant::now() - 2 * HEARD_LEAST, SocketAddr::from(([127, 0, 0, 1], 1)));
        for n in 0..2 * HELLOS_MAX {
            heard.room(&refused).await;
            assert!(Arc::strong_count(&held) <= HELLOS_MAX, "{} before number {n}", Arc::strong_count(&held) - 1);
            let mine = held.clone();
            let task = tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(mine);
            });
            heard.0.push_back((long_ago, from, task));
        }
        assert_eq!(refused.count(), HELLOS_MAX as u64);
    }
}
