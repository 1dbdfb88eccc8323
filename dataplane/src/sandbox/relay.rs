//! Emulates a WAN between two sockets of this machine: each chunk is delivered one way's time after it was read.
//!
//! ```text
//!   connect ──▶ listener ─ one_way ▶ connect to the target ─ one_way ▶ the first byte is read
//!   bytes   ──▶ read at t ─ queue, at most 8 MiB ─▶ written at t + one_way        (each direction on its own)
//! ```
//!
//! It delays and does not limit the rate: chunks follow each other as closely as they came. The end of a stream and a reset
//! travel in the same queue. Delays are rounded up to tokio's millisecond. The kernel accepts a connection at once, so that
//! the round trip of the set-up shows as a later first byte, not as a later `connect`.

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// The most bytes on their way in one direction; beyond that the sender has to wait.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// What a chunk counts at least, so that a stream of single bytes is bounded in memory too.
const CHUNK_BYTES_MIN: usize = 128;

/// How the line is now.
#[derive(Clone, Copy)]
struct Line {
    one_way: Duration,
    /// Nothing arrives, and nobody is told: what is under way waits.
    silent: bool,
}

/// A listener that forwards to one target with a delay; dropped, it takes its connections along.
pub struct Relay {
    address: SocketAddr,
    line: watch::Sender<Line>,
    /// Even: healed, odd: cut; a connection ends when the number is no longer the one it began with.
    cuts: watch::Sender<u64>,
    acceptor: JoinHandle<()>,
}

impl Relay {
    /// Listens on `listen` (port 0: any) and forwards to `target`. Must be called within a tokio runtime.
    pub fn start(listen: SocketAddr, target: SocketAddr, one_way: Duration) -> io::Result<Relay> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let (listener, address) = (TcpListener::from_std(listener.try_clone()?)?, listener.local_addr()?);
        let (cuts, cuts_now) = watch::channel(0);
        let (line, line_now) = watch::channel(Line { one_way, silent: false });
        let acceptor = tokio::spawn(accept(listener, target, line_now, cuts_now));
        Ok(Relay { address, line, cuts, acceptor })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection and each new one, until `heal`.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n |= 1);
    }

    /// Nothing arrives any more, in either direction, and nobody is told, until `heal`.
    pub fn silence(&self) {
        self.line.send_modify(|line| line.silent = true);
    }

    /// Lets new connections through again, and what `silence` kept.
    pub fn heal(&self) {
        self.cuts.send_modify(|n| *n += *n % 2);
        self.line.send_modify(|line| line.silent = false);
    }

    /// What is read from now on takes this long. It never overtakes what was read before.
    pub fn set_one_way(&self, one_way: Duration) {
        self.line.send_modify(|line| line.one_way = one_way);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

type LineNow = watch::Receiver<Line>;

async fn accept(listener: TcpListener, target: SocketAddr, line: LineNow, cuts: watch::Receiver<u64>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) if *cuts.borrow() % 2 == 1 => reset(&client),
            Ok((client, _)) => {
                tokio::spawn(connection(client, target, line.clone(), cuts.clone()));
            }
            // Out of descriptors, most likely: the connection stays in the backlog for a while.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(mut client: TcpStream, target: SocketAddr, line: LineNow, mut cuts: watch::Receiver<u64>) {
    let began = *cuts.borrow();
    // The sender is gone when the relay is dropped: that ends a connection as a cut does.
    let mut server = tokio::select! {
        server = set_up(&client, target, line.clone()) => match server {
            Ok(server) => server,
            Err(_) => return reset(&client),
        },
        _ = cuts.wait_for(|n| *n != began) => return reset(&client),
    };
    let whole = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let (up, down) = (pump(from_client, to_server, line.clone()), pump(from_server, to_client, line));
        tokio::select! {
            done = async { tokio::try_join!(up, down) } => done.is_ok(),
            _ = cuts.wait_for(|n| *n != began) => false,
        }
    };
    if !whole {
        reset(&client);
        reset(&server);
    }
}

async fn set_up(client: &TcpStream, target: SocketAddr, mut line: LineNow) -> io::Result<TcpStream> {
    let one_way = line.borrow().one_way;
    sleep(one_way).await;
    heard(&mut line).await?;
    let server = TcpStream::connect(target).await;
    sleep(one_way).await;
    let server = server?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Waits until the line is not silent.
async fn heard(line: &mut LineNow) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::ConnectionReset); // the relay was dropped
    line.wait_for(|l| !l.silent).await.map(|_| ()).map_err(gone)
}

/// The next close of this socket is a reset.
fn reset(socket: &TcpStream) {
    // It fails only on a socket that is already gone.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// What is on its way, and when it arrives.
enum Item {
    Chunk(Bytes, OwnedSemaphorePermit),
    End,
    Reset(io::Error),
}

/// One direction; ends well after the end of the stream has been delivered, badly after a reset.
async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, line: LineNow) -> io::Result<()> {
    let (queue, arrivals) = mpsc::unbounded_channel(); // bounded by the permits that its chunks hold
    tokio::try_join!(take(from, queue, line.clone()), deliver(arrivals, to, line)).map(|_| ())
}

async fn take(mut from: ReadHalf<'_>, queue: mpsc::UnboundedSender<(Instant, Item)>, line: LineNow) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES_MAX);
        let read = (&mut from).take(CHUNK_BYTES_MAX as u64).read_buf(&mut buffer).await;
        let due = Instant::now() + line.borrow().one_way;
        let item = match read {
            Ok(0) => Item::End,
            Ok(n) => {
                let weight = n.max(CHUNK_BYTES_MIN) as u32;
                let held = Arc::clone(&room).acquire_many_owned(weight).await;
                Item::Chunk(buffer.split().freeze(), held.expect("this semaphore is never closed"))
            }
            Err(e) => Item::Reset(e),
        };
        let last = !matches!(item, Item::Chunk(..));
        if queue.send((due, item)).is_err() || last {
            return Ok(());
        }
    }
}

async fn deliver(
    mut arrivals: mpsc::UnboundedReceiver<(Instant, Item)>,
    mut to: WriteHalf<'_>,
    mut line: LineNow,
) -> io::Result<()> {
    while let Some((due, item)) = arrivals.recv().await {
        sleep_until(due).await;
        heard(&mut line).await?;
        match item {
            Item::Chunk(bytes, _held) => {
                if let Err(e) = to.write_all(&bytes).await {
                    let one_way = line.borrow().one_way;
                    sleep(one_way).await; // the news travels back
                    return Err(e);
                }
            }
            Item::End => return to.shutdown().await,
            Item::Reset(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    const ANY: &str = "127.0.0.1:0";
    const ONE_WAY: Duration = Duration::from_millis(20);

    /// A server of one kind of connection, and a relay in front of it.
    async fn relay<F, S>(serve: S) -> Relay
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream) -> F + Send + 'static,
    {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket));
            }
        });
        Relay::start(ANY.parse().unwrap(), target, ONE_WAY).unwrap()
    }
    async fn echo(mut socket: TcpStream) {
        let (mut from, mut to) = socket.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
    async fn within<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("done within 20 s")
    }

    #[tokio::test]
    async fn an_echo_takes_a_round_trip_and_the_first_one_two() {
        let relay = relay(echo).await;
        let start = Instant::now();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        for trips in [4, 2, 2] {
            let sent = Instant::now();
            client.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            within(client.read_exact(&mut answer)).await.unwrap();
            assert_eq!(&answer, b"ping");
            let since = if trips == 4 { start } else { sent };
            assert!(since.elapsed() >= ONE_WAY * trips, "{:?} for {trips} ways", since.elapsed());
        }
    }

    #[tokio::test]
    async fn many_bytes_arrive_whole_in_order_and_without_waiting_for_each_other() {
        let relay = relay(echo).await;
        let sent: Vec<u8> = (0..24_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut from, mut to) = TcpStream::connect(relay.address()).await.unwrap().into_split();
        let bytes = sent.clone();
        let start = Instant::now();
        let writer = tokio::spawn(async move { to.write_all(&bytes).await.and(to.shutdown().await) });
        let mut received = Vec::with_capacity(sent.len());
        within(from.read_to_end(&mut received)).await.unwrap();
        within(writer).await.unwrap().unwrap();
        assert!(received == sent, "{} bytes of {} came back, or others", received.len(), sent.len());
        // Stop and wait would take 367 chunks of 64 KiB times 40 ms: 14.6 s.
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_stops_the_sender() {
        let relay = relay(|socket| async move {
            std::future::pending::<()>().await;
            drop(socket);
        })
        .await;
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let all = tokio::time::timeout(Duration::from_secs(2), client.write_all(&vec![7; 64_000_000])).await;
        assert!(all.is_err(), "64 MB were taken, at most 8 MiB and the sockets' buffers may be");
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_open_and_what_comes_until_it_heals() {
        let relay = relay(echo).await;
        let mut byte = [0; 1];
        let mut open = TcpStream::connect(relay.address()).await.unwrap();
        open.write_all(b"x").await.unwrap();
        within(open.read_exact(&mut byte)).await.unwrap();
        relay.cut();
        assert!(within(open.read(&mut byte)).await.is_err());
        let mut new = TcpStream::connect(relay.address()).await.unwrap();
        assert!(!matches!(within(new.read(&mut byte)).await, Ok(1..)));
        relay.heal();
        let mut healed = TcpStream::connect(relay.address()).await.unwrap();
        healed.write_all(b"y").await.unwrap();
        within(healed.read_exact(&mut byte)).await.unwrap();
        assert_eq!(&byte, b"y");
    }

    #[tokio::test]
    async fn a_silent_line_delivers_nothing_and_resets_nothing_until_it_heals() {
        let relay = relay(echo).await;
        let mut byte = [0; 1];
        let mut open = TcpStream::connect(relay.address()).await.unwrap();
        open.write_all(b"x").await.unwrap();
        within(open.read_exact(&mut byte)).await.unwrap();
        relay.silence();
        open.write_all(b"y").await.unwrap();
        let mut new = TcpStream::connect(relay.address()).await.unwrap();
        new.write_all(b"z").await.unwrap();
        for socket in [&mut open, &mut new] {
            let heard = tokio::time::timeout(ONE_WAY * 20, socket.read(&mut byte)).await;
            assert!(heard.is_err(), "{heard:?}");
        }
        relay.heal();
        within(open.read_exact(&mut byte)).await.unwrap();
        assert_eq!(&byte, b"y");
        within(new.read_exact(&mut byte)).await.unwrap();
        assert_eq!(&byte, b"z");
    }

    #[tokio::test]
    async fn a_line_that_became_slower_delivers_later_and_in_order() {
        let relay = relay(echo).await;
        let mut socket = TcpStream::connect(relay.address()).await.unwrap();
        let mut answer = [0; 2];
        socket.write_all(b"a").await.unwrap();
        within(socket.read_exact(&mut answer[..1])).await.unwrap();
        relay.set_one_way(ONE_WAY * 10);
        let sent = Instant::now();
        socket.write_all(b"b").await.unwrap();
        sleep(ONE_WAY).await; // it is on its way before the line is fast again
        relay.set_one_way(ONE_WAY);
        socket.write_all(b"c").await.unwrap();
        within(socket.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"bc");
        assert!(sent.elapsed() >= ONE_WAY * 11, "{:?}", sent.elapsed());
    }

    #[tokio::test]
    async fn a_peer_that_closes_ends_the_stream_after_its_last_bytes() {
        let relay = relay(|mut socket| async move {
            socket.write_all(b"bye").await.unwrap();
        })
        .await;
        let start = Instant::now();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let mut all = Vec::new();
        within(client.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all, b"bye");
        assert!(start.elapsed() >= ONE_WAY * 3, "set-up and one way: {:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_reset_and_a_refused_connection_reach_the_client_as_resets() {
        let relay = relay(|mut socket| async move {
            socket.read_exact(&mut [0; 1]).await.unwrap();
            reset(&socket);
        })
        .await;
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert!(within(client.read(&mut [0; 1])).await.is_err());

        let gone = TcpListener::bind(ANY).await.unwrap().local_addr().unwrap();
        let nobody = Relay::start(ANY.parse().unwrap(), gone, ONE_WAY).unwrap();
        let mut client = TcpStream::connect(nobody.address()).await.unwrap();
        assert!(within(client.read(&mut [0; 1])).await.is_err());
    }
}
