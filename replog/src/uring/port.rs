//! Serves the port: router cores connect to a log core's Unix socket and ask.

use super::core::Core;
use super::signal::{Budget, Signal};
use crate::commit::Step;
use crate::port::{Answer, Ask, Refused, put_answer, take_ask};
use bytes::{Bytes, BytesMut};
use futures_lite::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio::net::{UnixListener, UnixStream};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

/// Asks of one router core that may be under way, and their bytes; more are refused as busy.
const ASKS_MAX: usize = 8192;
const ASK_BYTES_MAX: usize = 32 << 20;
/// Rows that may be on their way from the store to one router core; more reads wait. A row has a mebibyte at most.
const ROWS_MAX: usize = 64;
/// Bytes of answers that may wait for one router core; it is not read from while there are more.
const WAITING_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;

/// Listens at `path`; a socket that an earlier process left there is taken away (the data directory's lock is held).
pub(super) fn bind(path: &Path) -> Result<UnixListener, String> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{}: {e}", path.display())),
    }
    UnixListener::bind(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Accepts router cores for ever.
pub(super) fn serve(core: Rc<Core>, listener: UnixListener) {
    glommio::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok(router) => drop(glommio::spawn_local(connection(core.clone(), router)).detach()),
                Err(e) => {
                    tracing::warn!("the port: {e}");
                    glommio::timer::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    })
    .detach();
}

/// Answers that wait to be written to one router core.
#[derive(Default)]
struct Waiting {
    bytes: RefCell<BytesMut>,
    changed: Signal,
    closed: Cell<bool>,
}

async fn connection(core: Rc<Core>, router: UnixStream) {
    let number = core.routers.replace(core.routers.get() + 1);
    let waiting = Rc::new(Waiting::default());
    let (read, write) = split(router);
    let writer = glommio::spawn_local(answers(waiting.clone(), write));
    if let Err(why) = asks(&core, number, &waiting, read).await {
        tracing::warn!("the port: {why}; closing the connection");
    }
    waiting.closed.set(true);
    waiting.changed.notify();
    core.router_gone(number);
    writer.await;
}

async fn asks(
    core: &Rc<Core>,
    router: u64,
    waiting: &Rc<Waiting>,
    mut read: ReadHalf<UnixStream>,
) -> Result<(), String> {
    let (mut buffer, mut part) = (BytesMut::new(), vec![0; READ_BYTES]);
    let (count, bytes, rows) = (Budget::of(ASKS_MAX), Budget::of(ASK_BYTES_MAX), Budget::of(ROWS_MAX));
    loop {
        waiting.room().await;
        let n = read.read(&mut part).await.map_err(|e| e.to_string())?;
        if n == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&part[..n]);
        while let Some((corr, ask)) = take_ask(&mut buffer).map_err(|e| e.to_string())? {
            let shares = (count.try_take(1), bytes.try_take(weight(&ask)));
            let (Some(_), Some(_)) = &shares else {
                waiting.put(corr, &Answer::Refused(Refused::Busy));
                continue;
            };
            let (core, waiting, rows) = (core.clone(), waiting.clone(), rows.clone());
            glommio::spawn_local(async move {
                let (answer, row) = core.answer(ask, router, &rows).await;
                drop(shares);
                if row.is_some() {
                    waiting.room().await;
                }
                waiting.put(corr, &answer);
            })
            .detach();
        }
    }
}

/// What an ask holds in memory while it is under way.
fn weight(ask: &Ask) -> usize {
    let optional = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
    match ask {
        Ask::Write { table, key, value, .. } => table.len() + optional(key) + optional(value),
        Ask::Read { table, key, .. } | Ask::ReadAfter { table, key, .. } => table.len() + key.len(),
        Ask::Changes(wish) => wish.after.as_ref().map_or(0, |a| a.len() * 16),
        Ask::Standing { .. } => 0,
        Ask::Commit(c) => {
            let step = |s: &Step| s.table.len() + optional(&s.key) + optional(&s.value);
            c.steps.iter().map(step).sum::<usize>() + c.once.as_ref().map_or(0, |o| o.key.len())
        }
    }
}

impl Waiting {
    /// Ends when another answer may wait, or when nobody will hear it.
    async fn room(&self) {
        let room = || (self.closed.get() || self.bytes.borrow().len() < WAITING_BYTES_MAX).then_some(());
        self.changed.wait(room).await;
    }

    fn put(&self, corr: u64, answer: &Answer) {
        if self.closed.get() {
            return;
        }
        put_answer(&mut self.bytes.borrow_mut(), corr, answer);
        self.changed.notify();
    }
}

/// Writes whatever waits, all in one go, until the connection is closed.
async fn answers(waiting: Rc<Waiting>, mut write: WriteHalf<UnixStream>) {
    loop {
        let some = || (waiting.closed.get() || !waiting.bytes.borrow().is_empty()).then_some(());
        waiting.changed.wait(some).await;
        if waiting.closed.get() {
            return;
        }
        let bytes = waiting.bytes.take();
        if write.write_all(&bytes).await.is_err() {
            waiting.closed.set(true); // the reader sees the same end
            return;
        }
        waiting.changed.notify();
    }
}
