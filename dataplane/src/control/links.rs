//! Connections of other zones' logs: each is read until it says which stream it is for, and goes to that stream's core.

use bytes::BytesMut;
use replog::link::{self, Frame};
use replog::uring::node::{Adopted, Node};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long another zone's log may take to say which stream it is for.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How many connections may be about to say it: who only connects must not use up this process's descriptors.
const HELLOS_MAX: usize = 256;
/// A HELLO is a cluster's name and some numbers.
const HELLO_BYTES_MAX: usize = 4096;

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

/// Reads of each connection which stream it is for, and hands it to that stream's core.
pub async fn accept(links: TcpListener, node: Arc<Node>, refused: Arc<Refused>) {
    let waiting = Arc::new(Semaphore::new(HELLOS_MAX));
    loop {
        // The oldest connection gives way within `HELLO_WAIT`; until then the kernel keeps the next ones.
        let turn = waiting.clone().acquire_owned().await.expect("this semaphore is never closed");
        match links.accept().await {
            Ok((socket, from)) => {
                let (node, refused) = (node.clone(), refused.clone());
                tokio::spawn(async move {
                    let _turn = turn;
                    match tokio::time::timeout(HELLO_WAIT, hello(socket)).await {
                        Ok(Ok(adopted)) => node.adopt(adopted),
                        Ok(Err(why)) => refused.one(from, &why),
                        Err(_) => refused.one(from, &format!("no HELLO within {} s", HELLO_WAIT.as_secs())),
                    }
                });
            }
            Err(e) => {
                tracing::warn!("links: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn hello(mut socket: TcpStream) -> Result<Adopted, String> {
    let mut read = BytesMut::new();
    loop {
        if socket.read_buf(&mut read).await.map_err(|e| e.to_string())? == 0 {
            return Err("it ended before its HELLO".into());
        }
        // The core's receiver gets the bytes as they came; here they are only looked into.
        match link::take(&mut read.clone()).map_err(|e| e.to_string())? {
            Some(Frame::Hello(h)) => {
                let socket = socket.into_std().map_err(|e| e.to_string())?;
                return Ok(Adopted { asks: false, stream: h.stream, origin: h.origin, socket, read: read.to_vec() });
            }
            Some(Frame::Ask(a)) => {
                let socket = socket.into_std().map_err(|e| e.to_string())?;
                return Ok(Adopted { asks: true, stream: a.stream, origin: a.origin, socket, read: read.to_vec() });
            }
            Some(Frame::Seed(s)) => {
                let socket = socket.into_std().map_err(|e| e.to_string())?;
                let (stream, origin) = (s.ask.stream, s.ask.origin);
                return Ok(Adopted { asks: true, stream, origin, socket, read: read.to_vec() });
            }
            Some(_) => return Err("its first frame is none of HELLO, ASK and SEED".into()),
            None if read.len() > HELLO_BYTES_MAX => return Err(format!("no HELLO in {} bytes", read.len())),
            None => {}
        }
    }
}
