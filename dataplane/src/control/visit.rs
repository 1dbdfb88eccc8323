//! Visitors of the admin pages: few at once, and none who keeps a place without asking. The descriptors of the process are for its
//! clients.

use axum::serve::Listener;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// At once; who comes later waits in the listener's queue.
const VISITORS_MAX: usize = 128;
/// Without a byte of a visitor's: so long an answer may take, too.
const SILENCE: Duration = Duration::from_secs(60);
/// Of one connection, whatever comes.
const STAY: Duration = Duration::from_secs(300);

/// A listener that lets in so many.
pub struct Visitors {
    listener: TcpListener,
    places: Arc<Semaphore>,
    silence: Duration,
    stay: Duration,
}

impl Visitors {
    /// Those of `listener`.
    pub fn new(listener: TcpListener) -> Visitors {
        Visitors { listener, places: Arc::new(Semaphore::new(VISITORS_MAX)), silence: SILENCE, stay: STAY }
    }

    /// Those of a listener whose visitors are many, and come back again and again on one connection.
    pub fn many(listener: TcpListener, places: usize) -> Visitors {
        // A poll may wait as long as a silence may last, and is not cut off just before its answer.
        let places = Arc::new(Semaphore::new(places));
        Visitors { listener, places, silence: SILENCE + SILENCE / 2, stay: Duration::from_secs(7 * 24 * 3600) }
    }
}

impl Listener for Visitors {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("nobody closes it");
        let (stream, from) = Listener::accept(&mut self.listener).await;
        let until = Instant::now() + self.stay;
        let patience = Box::pin(sleep_until(Instant::now() + self.silence));
        (Visit { stream, silence: self.silence, until, patience, _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection, as long as it asks.
pub struct Visit {
    stream: TcpStream,
    silence: Duration,
    until: Instant,
    patience: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = pin!(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            let next = self.until.min(Instant::now() + self.silence);
            self.patience.as_mut().reset(next);
            return read;
        }
        self.patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Visit {
    /// Who takes an answer is there; who takes nothing is as silent as who asks nothing, and is not asked for while he is written to.
    fn written(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            let next = self.until.min(Instant::now() + self.silence);
            self.patience.as_mut().reset(next);
            return done;
        }
        self.patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = pin!(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = pin!(&mut self.stream).poll_write_vectored(cx, parts);
        self.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net;

    #[test]
    fn who_asks_much_and_reads_nothing_makes_room_as_well() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let (silence, places) = (Duration::from_millis(300), Arc::new(Semaphore::new(3)));
            let visitors = Visitors { listener, places, silence, stay: STAY };
            // More than what a kernel buffers for one connection.
            let page = axum::routing::get(async || vec![b'x'; 16 << 20]);
            tokio::spawn(async move { axum::serve(visitors, axum::Router::new().route("/", page)).await });
            // As long as there is more to read, nobody waits for a byte of his.
            let ask = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2000);
            let greedy: Vec<_> = (0..3).map(|_| net::TcpStream::connect(at).unwrap()).collect();
            greedy.iter().for_each(|mut g| g.write_all(&ask).unwrap());
            let asked = std::thread::spawn(move || {
                let mut late = net::TcpStream::connect(at).unwrap();
                late.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                late.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
                let mut answer = vec![];
                late.read_to_end(&mut answer).map(|_| answer.len())
            });
            while !asked.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let read = asked.join().unwrap();
            assert!(read.as_ref().is_ok_and(|n| *n > 16 << 20), "{read:?}");
            drop(greedy);
        });
    }

    #[test]
    fn so_many_are_let_in_and_who_is_silent_makes_room() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let visitors = Visitors { silence: Duration::from_millis(200), ..Visitors::new(listener) };
            let pages = axum::Router::new().route("/", axum::routing::get(async || "here"));
            tokio::spawn(async move { axum::serve(visitors, pages).await });
            let silent: Vec<_> = (0..VISITORS_MAX).map(|_| net::TcpStream::connect(at).unwrap()).collect();
            (&silent[0]).write_all(b"GET / HT").unwrap();
            let asked = std::thread::spawn(move || {
                let mut late = net::TcpStream::connect(at).unwrap();
                late.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
                let mut answer = String::new();
                late.read_to_string(&mut answer).map(|_| answer)
            });
            while !asked.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(asked.join().unwrap().unwrap().ends_with("here"));
            drop(silent);
        });
    }
}
