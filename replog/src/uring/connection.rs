//! One TCP connection of a link: a task of its own reads it, another one writes it, so that neither what arrives nor what is read from the
//! disk meanwhile is kept waiting by what is written.

use super::line::{Gear, Line, choose, has_much, tune};
use super::now_us;
use super::secure::{Session, plain_to_tls};
use super::signal::Signal;
use crate::link::SILENT_MAX_US;
use bytes::Bytes;
use futures_lite::future::or;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio::net::TcpStream;
use glommio::timer::sleep;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

/// How much is read at a time.
const READ_BYTES: usize = 256 << 10;
/// Received bytes that may wait for the machine; the connection is not read from while there are more.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// With so much waiting to be written there is no more room: 8 ms of a 1 Gb/s line, in which the next megabyte comes from the disk.
const OUTBOX_BYTES: usize = 1 << 20;
/// How long a connection that ends may take to say what it still has to say.
const LAST_WORDS_US: u64 = 1_000_000;

/// What has arrived, and the way back.
pub(super) struct Connection {
    inbox: RefCell<VecDeque<Bytes>>,
    inbox_bytes: Cell<usize>,
    /// Something has arrived, or was taken, or the connection ended.
    arrived: Signal,
    outbox: RefCell<VecDeque<Bytes>>,
    outbox_bytes: Cell<usize>,
    /// Something is to be written, or was, or the connection ended.
    left: Signal,
    ended_us: Cell<Option<u64>>,
    /// The socket takes nothing more.
    closed: Cell<bool>,
    heard_us: Cell<u64>,
    /// Has anything come?
    has_heard: Cell<bool>,
    /// The congestion control that is in use.
    congestion: RefCell<String>,
    tls: RefCell<Option<Session>>,
    /// Why it ended, where that is more than an end.
    fault: RefCell<Option<String>>,
}

impl Connection {
    pub fn new(socket: TcpStream, line: &Line, tls: Option<Session>) -> Rc<Connection> {
        let fd = socket.as_raw_fd();
        // SAFETY: `socket` has the descriptor open, and is not moved before this was used last.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        tune(&borrowed);
        let congestion = choose(&borrowed, line, false);
        let (read, write) = split(socket);
        let connection = Rc::new(Connection {
            inbox: RefCell::default(),
            inbox_bytes: Cell::new(0),
            arrived: Signal::default(),
            outbox: RefCell::default(),
            outbox_bytes: Cell::new(0),
            left: Signal::default(),
            ended_us: Cell::new(None),
            closed: Cell::new(false),
            heard_us: Cell::new(now_us()),
            has_heard: Cell::new(false),
            congestion: RefCell::new(congestion),
            tls: RefCell::new(tls),
            fault: RefCell::default(),
        });
        glommio::spawn_local(reader(connection.clone(), read)).detach();
        glommio::spawn_local(writer(connection.clone(), write, fd, line.clone())).detach();
        connection
    }

    /// The congestion control that is in use.
    pub fn congestion(&self) -> String {
        self.congestion.borrow().clone()
    }

    /// Why it ended, if there is more to say than that it did.
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Bytes that have arrived on the wire.
    fn receive(&self, bytes: &[u8]) {
        let mut tls = self.tls.borrow_mut();
        let Some(session) = tls.as_mut() else {
            return match plain_to_tls(bytes).filter(|_| !self.has_heard.replace(true)) {
                Some(fault) => self.fail(fault),
                None => self.put(Bytes::copy_from_slice(bytes)),
            };
        };
        match session.on_bytes(bytes) {
            Ok(all) => {
                let answer = session.seal(b"");
                drop(tls);
                self.heard_us.set(now_us());
                all.into_iter().for_each(|plain| self.put(plain));
                self.queue(answer);
            }
            Err(fault) => {
                let alert = session.seal(b"");
                drop(tls);
                self.queue(alert);
                self.fail(fault);
            }
        }
    }

    fn fail(&self, fault: String) {
        self.fault.borrow_mut().get_or_insert(fault);
        self.end();
    }

    /// Bytes that have arrived.
    pub fn put(&self, bytes: Bytes) {
        self.heard_us.set(now_us());
        self.inbox_bytes.set(self.inbox_bytes.get() + bytes.len());
        self.inbox.borrow_mut().push_back(bytes);
        self.arrived.notify();
    }

    /// The next of them.
    pub fn take(&self) -> Option<Bytes> {
        let bytes = self.inbox.borrow_mut().pop_front()?;
        self.inbox_bytes.set(self.inbox_bytes.get() - bytes.len());
        self.arrived.notify();
        Some(bytes)
    }

    /// Has `bytes` written behind what waits already. Whoever sends much asks for `room` first.
    pub fn send(&self, bytes: Bytes) {
        if bytes.is_empty() || self.has_ended() {
            return;
        }
        let sealed = self.tls.borrow_mut().as_mut().map(|session| session.seal(&bytes));
        self.queue(sealed.unwrap_or(bytes));
    }

    fn queue(&self, bytes: Bytes) {
        if !bytes.is_empty() && !self.has_ended() {
            self.outbox_bytes.set(self.outbox_bytes.get() + bytes.len());
            self.outbox.borrow_mut().push_back(bytes);
            self.left.notify();
        }
    }

    /// Do bytes that were sent wait for the socket?
    pub fn is_busy(&self) -> bool {
        self.outbox_bytes.get() > 0
    }

    /// May more be sent?
    pub fn has_room(&self) -> bool {
        self.outbox_bytes.get() < OUTBOX_BYTES
    }

    /// Ends when more may be sent, or when the connection ended.
    pub async fn room(&self) {
        self.left.wait(|| (self.has_ended() || self.has_room()).then_some(())).await;
    }

    /// It is of no use any more: what was sent before may still go out, nothing more is read.
    pub fn end(&self) {
        if !self.has_ended() {
            self.ended_us.set(Some(now_us()));
        }
        self.arrived.notify();
        self.left.notify();
    }

    pub fn has_ended(&self) -> bool {
        self.ended_us.get().is_some()
    }

    /// Ends it, and waits until what was sent has gone out, a second at most.
    pub async fn close(&self) {
        self.end();
        self.left.wait(|| self.closed.get().then_some(())).await;
    }

    /// Ends when there are bytes, or when the connection ended.
    pub async fn something(&self) {
        self.arrived.wait(|| (self.has_ended() || !self.inbox.borrow().is_empty()).then_some(())).await;
    }

    /// Ends, with `false`, when nothing was heard for too long, or the connection ended a while ago.
    async fn given_up(&self) -> bool {
        loop {
            let silent = self.heard_us.get() + SILENT_MAX_US;
            let until = self.ended_us.get().map_or(silent, |ended| silent.min(ended + LAST_WORDS_US));
            let left = until.saturating_sub(now_us());
            if left == 0 {
                return false;
            }
            let had_ended = self.has_ended();
            let ended = self.left.wait(|| (self.has_ended() && !had_ended).then_some(()));
            or(ended, async { sleep(Duration::from_micros(left)).await }).await;
        }
    }

    /// What is to be written next; `None`: the connection ended, and nothing is.
    async fn next(&self) -> Option<Bytes> {
        let look = || match self.outbox.borrow().front() {
            Some(bytes) => Some(Some(bytes.clone())),
            None => self.has_ended().then_some(None),
        };
        self.left.wait(look).await
    }
}

/// Writes what is sent until the connection ends: when a write fails, or the peer neither takes bytes nor says anything.
async fn writer(connection: Rc<Connection>, mut write: WriteHalf<TcpStream>, fd: RawFd, line: Line) {
    let mut gear = Gear::default();
    while let Some(bytes) = connection.next().await {
        let written = async { write.write_all(&bytes).await.is_ok() };
        if !or(written, connection.given_up()).await {
            break;
        }
        connection.outbox.borrow_mut().pop_front();
        connection.outbox_bytes.set(connection.outbox_bytes.get() - bytes.len());
        connection.left.notify();
        // SAFETY: it is that of the socket of which `write` is a half, which is open.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        if let Some(behind) = gear.on_written(connection.is_busy() || has_much(&socket), now_us()) {
            *connection.congestion.borrow_mut() = choose(&socket, &line, behind);
        }
    }
    connection.end();
    let _ = write.close().await; // the peer may have closed it first
    connection.closed.set(true);
    connection.left.notify();
}

async fn reader(connection: Rc<Connection>, mut read: ReadHalf<TcpStream>) {
    let mut part = vec![0; READ_BYTES];
    loop {
        let ended = connection.arrived.wait(|| connection.has_ended().then_some(()));
        let room = connection.arrived.wait(|| (connection.inbox_bytes.get() < INBOX_BYTES_MAX).then_some(()));
        // A peer that is gone without a word never ends a read: the end of the connection does.
        let some = async {
            room.await;
            read.read(&mut part).await.ok().filter(|n| *n > 0)
        };
        let read = or(
            async {
                ended.await;
                None
            },
            some,
        )
        .await;
        match read {
            Some(n) => connection.receive(&part[..n]),
            None => return connection.end(),
        }
    }
}
