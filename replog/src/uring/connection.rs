//! One TCP connection of a link: a task of its own reads it, so that what arrives is never kept waiting by what is written.

use super::now_us;
use super::signal::Signal;
use crate::link::SILENT_MAX_US;
use bytes::Bytes;
use futures_lite::future::or;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio::net::TcpStream;
use glommio::timer::sleep;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// How much is read at a time.
const READ_BYTES: usize = 256 << 10;
/// Received bytes that may wait for the machine; the connection is not read from while there are more.
const INBOX_BYTES_MAX: usize = 8 << 20;

/// What has arrived, and the way back.
pub(super) struct Connection {
    inbox: RefCell<VecDeque<Bytes>>,
    inbox_bytes: Cell<usize>,
    changed: Signal,
    ended: Cell<bool>,
    heard_us: Cell<u64>,
    write: RefCell<Option<WriteHalf<TcpStream>>>,
}

impl Connection {
    pub fn new(socket: TcpStream) -> Rc<Connection> {
        let _ = socket.set_nodelay(true); // slower without, not wrong
        let (read, write) = split(socket);
        let connection = Rc::new(Connection {
            inbox: RefCell::default(),
            inbox_bytes: Cell::new(0),
            changed: Signal::default(),
            ended: Cell::new(false),
            heard_us: Cell::new(now_us()),
            write: RefCell::new(Some(write)),
        });
        glommio::spawn_local(reader(connection.clone(), read)).detach();
        connection
    }

    /// Bytes that have arrived.
    pub fn put(&self, bytes: Bytes) {
        self.heard_us.set(now_us());
        self.inbox_bytes.set(self.inbox_bytes.get() + bytes.len());
        self.inbox.borrow_mut().push_back(bytes);
        self.changed.notify();
    }

    /// The next of them.
    pub fn take(&self) -> Option<Bytes> {
        let bytes = self.inbox.borrow_mut().pop_front()?;
        self.inbox_bytes.set(self.inbox_bytes.get() - bytes.len());
        self.changed.notify();
        Some(bytes)
    }

    /// Writes all of `bytes`, or ends the connection: when it fails, or when the peer neither takes bytes nor says anything.
    pub async fn send(&self, bytes: &[u8]) {
        // Taken out for the time of the write: no borrow lives over an await.
        let Some(mut write) = self.write.take() else { return };
        let written = async { write.write_all(bytes).await.is_ok() };
        if !or(written, async { self.given_up().await }).await {
            self.end();
        }
        self.write.replace(Some(write));
    }

    /// It is of no use any more; the reader ends with it.
    pub fn end(&self) {
        self.ended.set(true);
        self.changed.notify();
    }

    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Closes the socket.
    pub async fn close(&self) {
        self.end();
        let write = self.write.take();
        if let Some(mut write) = write {
            let _ = write.close().await; // the peer may have closed it first
        }
    }

    /// Ends when there are bytes, or when the connection ended.
    pub async fn something(&self) {
        self.changed.wait(|| (self.ended.get() || !self.inbox.borrow().is_empty()).then_some(())).await;
    }

    /// Ends, with `false`, when the connection has ended or nothing was heard for too long.
    async fn given_up(&self) -> bool {
        loop {
            let left = (self.heard_us.get() + SILENT_MAX_US).saturating_sub(now_us());
            if left == 0 || self.ended.get() {
                return false;
            }
            let ended = self.changed.wait(|| self.ended.get().then_some(()));
            or(ended, async { sleep(Duration::from_micros(left)).await }).await;
        }
    }
}

async fn reader(connection: Rc<Connection>, mut read: ReadHalf<TcpStream>) {
    let mut part = vec![0; READ_BYTES];
    loop {
        let ended = connection.changed.wait(|| connection.ended.get().then_some(()));
        let room = connection.changed.wait(|| (connection.inbox_bytes.get() < INBOX_BYTES_MAX).then_some(()));
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
            Some(n) => connection.put(Bytes::copy_from_slice(&part[..n])),
            None => return connection.end(),
        }
    }
}
