//! Answers a zone that asks for a copy of a log: what this node has of it, its own or a mirror, and batches of it, verbatim.
//!
//! ```text
//! asker ── ASK (log, seq) ──▶ this node        once on a connection of its own, and again behind each answer
//!       ◀─ HELD (incarnation, positions), DATA, DATA ──
//! ```

use super::connection::Connection;
use super::core::Core;
use super::node::Adopted;
use super::now_us;
use super::secure::Session;
use super::stream::StreamLog;
use crate::Batch;
use crate::link::{Ask, Frame, Held, Stop, Why, put, take};
use bytes::BytesMut;
use futures_lite::future::or;
use glommio::net::TcpStream;
use glommio::timer::sleep;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

/// How much is sent for one question.
const LEND_BYTES: usize = 1 << 20;
/// Who asks nothing more for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers what comes on this connection until it ends, asks something else, or is silent.
pub(super) async fn serve(core: Rc<Core>, adopted: Adopted) {
    // SAFETY: the descriptor was just given up by its only owner, and this stream becomes its only owner.
    let socket = unsafe { TcpStream::from_raw_fd(adopted.socket.into_raw_fd()) };
    let connection = Connection::new(socket, &core.options.line, adopted.tls.map(|tls| Session::of(*tls)));
    connection.put(adopted.read.into());
    let mut inbox = BytesMut::new();
    while !core.stopping.get() && !connection.has_ended() {
        while let Some(bytes) = connection.take() {
            inbox.extend_from_slice(&bytes);
        }
        match take(&mut inbox) {
            Ok(Some(Frame::Ask(ask))) => {
                let (out, goes_on) = answer(&core, &ask).await;
                connection.send(out.freeze());
                connection.room().await;
                if !goes_on {
                    break;
                }
            }
            Ok(None) => {
                let more = async {
                    connection.something().await;
                    true
                };
                let late = async {
                    sleep(PATIENCE).await;
                    false
                };
                if !or(more, late).await {
                    break;
                }
            }
            Ok(Some(_)) | Err(_) => break, // whoever it is, it does not ask for a copy
        }
    }
    connection.close().await;
}

/// What is sent, and whether another question may follow.
async fn answer(core: &Core, ask: &Ask) -> (BytesMut, bool) {
    let mut out = BytesMut::new();
    let own = (core.options.cluster.as_bytes(), core.options.zone, core.options.streams);
    let stream = core.streams.iter().find(|s| s.number == ask.stream);
    let (Some(stream), true) = (stream, (&ask.cluster[..], ask.peer, ask.streams) == own) else {
        let stop = Stop { why: Why::Foreign, seen: ask.peer.0.into(), expected: core.options.zone.0.into() };
        put(&mut out, &Frame::Stop(stop));
        return (out, false);
    };
    let log = if ask.origin == core.options.zone {
        Some(stream.log.clone())
    } else {
        stream.mirrors.get(&ask.origin).and_then(|m| m.log())
    };
    let batches = match &log {
        Some(log) if ask.seq > 0 => wanted(log, ask.seq).await,
        Some(_) | None => Vec::new(),
    };
    put(&mut out, &Frame::Held(held(log.as_ref(), batches.len())));
    for batch in batches {
        put(&mut out, &Frame::Data { sent_us: now_us(), batch: batch.bytes });
    }
    (out, true)
}

/// Nothing, if it is damaged here too, or not kept: then somebody else may have it.
async fn wanted(log: &StreamLog, seq: u64) -> Vec<Batch> {
    match log.read_from(seq, LEND_BYTES).await {
        Ok(batches) => batches,
        Err(why) => {
            tracing::warn!("seq {seq} is asked for, and is not to be had here: {why}");
            Vec::new()
        }
    }
}

fn held(log: Option<&StreamLog>, batches: usize) -> Held {
    let batches = batches as u32;
    log.map_or(Held { log_uuid: 0, first_kept: 0, durable: 0, chain: 0, batches }, |log| {
        log.with(|l| Held {
            log_uuid: l.log_uuid(),
            first_kept: l.first_kept(),
            durable: l.durable_seq(),
            chain: l.durable_chain(),
            batches,
        })
    })
}
