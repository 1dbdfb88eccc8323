//! A driver without a ring around the real core: it does what `uring/drive.rs` does, one completion at a time, and holds the
//! core to what it promises its driver.

use super::net::Link;
use super::rng::Rng;
use dataplane::router::{ConnId, Core, Limits, Now, Order, Settings, Target};
use std::sync::Arc;

/// Bytes of one receive.
pub const READ_BYTES_MAX: usize = 600;
/// Completions that may be handed over before orders are looked at.
const BATCH_MAX: usize = 3;

/// The driver's half of a connection.
pub struct Sock {
    pub id: ConnId,
    /// The connection and the side of it that is ours.
    pub link: Option<(usize, usize)>,
    connecting: Option<Target>,
    /// What is being sent, and how much of it has gone.
    sending: Option<(Vec<u8>, usize)>,
    wanted: bool,
    /// Receives that had completed before they were cancelled.
    late: usize,
    closing: bool,
    /// Its end is a break.
    reset: bool,
}

pub struct Machine {
    pub number: usize,
    pub core: Core,
    pub socks: Vec<Option<Sock>>,
    pub limits: Limits,
    /// Completions handed over since orders were looked at.
    batch: usize,
    pub map_at: usize,
    pub stopped: bool,
    /// It has just been told to stop.
    stopping: bool,
}

/// What a step of a machine leaves to the world.
pub enum Wish {
    Nothing,
    /// A connection is to be made, and then `connected`.
    Connect(ConnId, Target),
}

impl Machine {
    pub fn new(number: usize, settings: Arc<Settings>) -> Machine {
        let limits = settings.limits;
        let core = Core::new(settings);
        Machine { number, core, socks: vec![], limits, batch: 0, map_at: 0, stopped: false, stopping: false }
    }

    pub fn sock(&mut self, id: ConnId) -> Option<&mut Sock> {
        self.socks.get_mut(id.index as usize)?.as_mut().filter(|s| s.id == id)
    }

    pub fn place(&mut self, id: ConnId, link: Option<(usize, usize)>, connecting: Option<Target>) {
        let index = id.index as usize;
        if self.socks.len() <= index {
            self.socks.resize_with(index + 1, || None);
        }
        assert!(self.socks[index].is_none(), "{id:?} is given out twice");
        let wanted = connecting.is_none();
        self.socks[index] =
            Some(Sock { id, link, connecting, sending: None, wanted, late: 0, closing: false, reset: false });
    }

    /// One completion has been handed over: orders are looked at now or a little later.
    pub fn after(&mut self, links: &mut [Link], now: Now, rng: &mut Rng) {
        self.batch += 1;
        if self.batch >= BATCH_MAX || rng.below(2) == 0 {
            self.orders(links, now, rng);
        }
    }

    pub fn orders(&mut self, links: &mut [Link], _: Now, rng: &mut Rng) {
        self.batch = 0;
        for round in 0.. {
            assert!(round < 100_000, "orders without end");
            let Some(order) = self.core.next_order() else { break };
            self.order(order, links, rng);
        }
        self.audit();
    }

    fn order(&mut self, order: Order, links: &mut [Link], rng: &mut Rng) {
        trace(self.number, || format!("order {order:?}"));
        let stopping = self.stopping;
        match order {
            Order::Connect(id, target) => self.place(id, None, Some(target)),
            Order::Send(id) => {
                let out = self.core.take_out(id);
                let Some(sock) = self.sock(id) else { return };
                assert!(sock.sending.is_none(), "{id:?}: two sends at once");
                assert!(sock.link.is_some(), "{id:?}: sent before it was connected");
                sock.sending = Some((out, 0));
            }
            Order::Pause(id) => {
                let late = rng.below(3);
                if let Some(sock) = self.sock(id) {
                    (sock.wanted, sock.late) = (false, late);
                }
            }
            Order::Resume(id) => {
                if let Some(sock) = self.sock(id) {
                    (sock.wanted, sock.late) = (true, 0);
                }
            }
            Order::Shutdown(id) => {
                if let Some((link, side)) = self.sock(id).and_then(|s| s.link) {
                    links[link].pipes[side].fin = true;
                    // A request may cross the end of a connection that was too slow, or whose router was told to stop.
                    links[link].broken = true;
                }
            }
            Order::Close(id) | Order::Reset(id) => match self.sock(id) {
                Some(sock) => {
                    assert!(!sock.closing, "{id:?} is closed twice");
                    assert!(!stopping || sock.sending.is_none(), "{id:?}: a stop cuts an answer off");
                    (sock.closing, sock.reset) = (true, matches!(order, Order::Reset(_)));
                }
                None => self.core.on_closed(id),
            },
        }
    }

    pub fn stop(&mut self, links: &mut [Link], now: Now, rng: &mut Rng) {
        self.orders(links, now, rng);
        (self.stopped, self.stopping) = (true, true);
        self.core.on_stop(now);
        self.orders(links, now, rng);
        self.stopping = false;
    }

    /// The core's own invariants, and what it may hold.
    fn audit(&mut self) {
        let print = self.core.audit().unwrap_or_else(|e| panic!("core {}: {e}", self.number));
        let l = &self.limits;
        let slack = 8 * READ_BYTES_MAX;
        let stash_max = l.buffer_bytes_max + slack;
        let out_max = 2 * l.buffer_bytes_max + 2 * l.head_bytes_max + l.kept_bytes_max.max(l.record_bytes_max) + slack;
        assert!(print.stash_bytes_max <= stash_max, "a stash of {} bytes", print.stash_bytes_max);
        assert!(print.out_bytes_max <= out_max, "{} bytes wait to be sent", print.out_bytes_max);
        assert!(
            print.kept_bytes_max <= l.kept_bytes_max.max(l.record_bytes_max),
            "{} bytes kept",
            print.kept_bytes_max
        );
        assert!(print.connections <= l.connections_max && print.held <= l.hold_count_max);
    }

    /// One of its sockets comes a step further.
    pub fn step(&mut self, index: usize, links: &mut [Link], now: Now, rng: &mut Rng) -> Wish {
        let Some(sock) = self.socks[index].as_mut() else { return Wish::Nothing };
        let id = sock.id;
        if sock.closing {
            self.finish_if_closing(index, links, now, rng);
            return Wish::Nothing;
        }
        if let Some(target) = sock.connecting {
            return Wish::Connect(id, target);
        }
        let Some((link, side)) = sock.link else { return Wish::Nothing };
        if sock.sending.is_some() && rng.below(2) == 0 {
            self.send(id, &mut links[link], side, now, rng);
        } else {
            self.receive(id, &mut links[link], side, now, rng);
        }
        self.after(links, now, rng);
        Wish::Nothing
    }

    fn send(&mut self, id: ConnId, link: &mut Link, side: usize, now: Now, rng: &mut Rng) {
        let Some(sock) = self.sock(id) else { return };
        let Some((out, sent)) = &mut sock.sending else { return };
        let n = rng.piece(16, 9000);
        let part = &out[*sent..(*sent + n).min(out.len())];
        let ok = match link.write(side, part) {
            Some(n) => {
                *sent += n;
                true
            }
            None => false,
        };
        if ok && *sent < out.len() {
            return;
        }
        let (out, _) = sock.sending.take().expect("looked at above");
        trace(self.number, || format!("{id:?} sent {ok} {:?}", String::from_utf8_lossy(&out[..out.len().min(300)])));
        self.core.on_sent(id, out, ok, now);
    }

    fn receive(&mut self, id: ConnId, link: &mut Link, side: usize, now: Now, rng: &mut Rng) {
        let Some(sock) = self.sock(id) else { return };
        if !sock.wanted && sock.late == 0 {
            return;
        }
        let from = &link.pipes[1 - side];
        if !from.data.is_empty() {
            sock.late = sock.late.saturating_sub(1);
            let n = rng.piece(8, READ_BYTES_MAX);
            let bytes = link.read(side, n);
            trace(self.number, || format!("{id:?} at {} came {:?}", now.ms, String::from_utf8_lossy(&bytes)));
            self.core.on_bytes(id, &bytes, now);
        } else if from.fin || from.reset {
            let reset = from.reset;
            (sock.wanted, sock.late) = (false, 0);
            trace(self.number, || format!("{id:?} ended, reset {reset}"));
            self.core.on_end(id, reset, now);
        }
    }

    pub fn connected(&mut self, id: ConnId, link: Option<(usize, usize)>, now: Now) {
        let Some(sock) = self.sock(id) else { return };
        (sock.connecting, sock.link, sock.wanted) = (None, link, link.is_some());
        trace(self.number, || format!("{id:?} connected {link:?}"));
        if link.is_some() {
            self.core.on_connected(id, now);
        } else {
            self.core.on_failed(id, now);
        }
    }

    /// The socket's last operation has ended: it is closed, and a part of what was being sent may have gone.
    fn finish(&mut self, index: usize, links: &mut [Link], rng: &mut Rng) {
        let Some(sock) = self.socks[index].take() else { return };
        let Some((link, side)) = sock.link else { return };
        if let Some((out, sent)) = sock.sending
            && !links[link].pipes[side].fin
        {
            links[link].broken |= sent < out.len() || out.is_empty();
            let _ = links[link].write(side, &out[sent..sent + rng.below(out.len() - sent + 1)]);
        }
        links[link].hang_up(side, sock.reset, rng.below(2) == 0);
    }

    /// The end of a socket that is closing.
    pub fn finish_if_closing(&mut self, index: usize, links: &mut [Link], now: Now, rng: &mut Rng) {
        let Some(id) = self.socks[index].as_ref().filter(|s| s.closing).map(|s| s.id) else { return };
        self.finish(index, links, rng);
        self.core.on_closed(id);
        self.orders(links, now, rng);
    }
}

/// With `TRACE=1`: what a core is told and what it orders.
pub fn trace(core: usize, what: impl Fn() -> String) {
    static ON: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if *ON.get_or_init(|| std::env::var("TRACE").is_ok()) {
        eprintln!("core {core}: {}", what());
    }
}
