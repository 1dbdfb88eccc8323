//! The links of the simulation: connections that carry bytes whole or in part, are cut, barred, or heard long after they were given up.

use crate::disk::Block;
use crate::world::{Broken, Conn, Fail, World};
use crate::zone::map_bytes;
use replog::link::Order;

impl World {
    /// The connection from `o` to `p` opens, or carries something, whole or in part.
    pub fn link(&mut self, o: usize, p: usize) -> Result<(), Fail> {
        let at = o * self.zones + p;
        if o == p || self.conns[at].barred || self.nodes[o].live.is_none() || self.nodes[p].live.is_none() {
            return Ok(());
        }
        if !self.conns[at].open || self.rng.one_in(60) {
            self.cut(o, p);
            let conn = &mut self.conns[at];
            conn.open = true;
            if self.rng.one_in(3) {
                conn.stale = std::mem::take(&mut conn.sent);
            }
            conn.sent.clear();
            let now_us = self.now_us;
            self.nodes[o].live.as_mut().expect("up").senders[p].on_connect(now_us);
            self.nodes[p].live.as_mut().expect("up").receivers[o].on_connect(now_us);
        }
        self.orders(o, p)?;
        let part = if self.rng.one_in(4) { 2 } else { 1 };
        let conn = &mut self.conns[at];
        let to_peer: Vec<u8> = conn.to_peer.drain(..conn.to_peer.len() / part).collect();
        let to_origin: Vec<u8> = conn.to_origin.drain(..conn.to_origin.len() / part).collect();
        self.heard[at] |= !to_origin.is_empty();
        self.nodes[p].live.as_mut().expect("up").receivers[o].on_bytes(&to_peer, self.now_us);
        self.nodes[o].live.as_mut().expect("up").senders[p].on_bytes(&to_origin, self.now_us);
        self.orders(o, p)?;
        self.acknowledge(o);
        Ok(())
    }

    pub fn orders(&mut self, o: usize, p: usize) -> Result<(), Fail> {
        let (at, now_us, mut maps) = (o * self.zones + p, self.now_us, vec![]);
        let [origin, peer] = self.nodes.get_disjoint_mut([o, p]).expect("two zones");
        origin.tell_everywhere();
        let (Some(from), Some(to)) = (origin.live.as_mut(), peer.live.as_mut()) else { return Ok(()) };
        while let Some(order) = from.senders[p].next_order(now_us) {
            match order {
                Order::Send(bytes) => {
                    self.conns[at].sent.extend(&bytes);
                    self.conns[at].to_peer.extend(bytes);
                }
                Order::Read(seq) => {
                    let found = origin.disk.held(o).iter().find(|b| b.batch.last_seq() >= seq);
                    from.senders[p].on_batch(found.expect("durable and kept").batch.clone(), now_us);
                }
                Order::Pack(batches, codec) => {
                    from.senders[p].on_packed(self.conns[at].packer.pack(&batches, codec), 10, now_us);
                }
                Order::TakeMap(epoch, _) => maps.push((o, epoch)),
                Order::Close => self.conns[at].open = false,
                Order::Append(_) => return Err(Fail("a sender appends".into())),
            }
        }
        while let Some(order) = to.receivers[o].next_order(now_us) {
            match order {
                Order::Send(bytes) => self.conns[at].to_origin.extend(bytes),
                Order::Append(batch) => {
                    if self.broken == Broken::MirrorBeforeFlush {
                        to.receivers[o].on_durable(batch.last_seq());
                    }
                    to.written[o].push(Block::of(batch));
                }
                Order::TakeMap(epoch, bytes) => {
                    assert_eq!(bytes, map_bytes(epoch));
                    maps.push((p, epoch));
                }
                Order::Close => self.conns[at].open = false,
                Order::Read(_) | Order::Pack(..) => return Err(Fail("a receiver ships".into())),
            }
        }
        let stops = [from.senders[p].stopped(), to.receivers[o].stopped(), to.receivers[o].refused()];
        if let Some(stop) = stops.into_iter().flatten().next() {
            self.on_stop(o, p, stop)?;
        }
        for (z, epoch) in maps {
            self.take_map(z, epoch)?;
        }
        Ok(())
    }

    pub fn cut(&mut self, o: usize, p: usize) {
        let conn = &mut self.conns[o * self.zones + p];
        let (barred, sent, stale) = (conn.barred, std::mem::take(&mut conn.sent), std::mem::take(&mut conn.stale));
        *conn = Conn { barred, sent, stale, ..Conn::default() };
        if let Some(live) = &mut self.nodes[o].live {
            live.senders[p].on_disconnect();
        }
        if let Some(live) = &mut self.nodes[p].live {
            live.receivers[o].on_disconnect();
        }
    }

    /// A zone gives another the next batch of its mirror of a third one's log.
    pub fn lend(&mut self, to: usize, from: usize, of: usize) -> Result<(), Fail> {
        if to == from || to == of || from == of || self.conns[to * self.zones + from].barred {
            return Ok(());
        }
        let [taker, lender] = self.nodes.get_disjoint_mut([to, from]).expect("two zones");
        if lender.live.is_some() && taker.lent(of, lender.disk.held(of))? {
            self.seen.lent += 1;
        }
        Ok(())
    }

    /// A connection that was given up long ago is heard only now, and then no more.
    pub fn stale(&mut self, o: usize, p: usize) {
        let at = o * self.zones + p;
        if o == p || self.nodes[p].live.is_none() || self.conns[at].stale.is_empty() {
            return;
        }
        let (stale, now_us) = (std::mem::take(&mut self.conns[at].stale), self.now_us);
        self.cut(o, p);
        self.nodes[p].stale(o, &stale, now_us);
        self.seen.stale += 1;
    }

    /// A cut, a partition that begins or ends, of a link or of the way to the GZS.
    pub fn disturb(&mut self, z: usize, other: usize) {
        let (at, back) = (z * self.zones + other, other * self.zones + z);
        match self.rng.below(8) {
            0 => self.cut(z, other),
            1 => {
                self.cut(z, other);
                self.cut(other, z);
                (self.conns[at].barred, self.conns[back].barred) = (true, true);
            }
            2 => self.gzs_barred[z] = true,
            3 | 4 => self.gzs_barred[z] = false,
            _ => (self.conns[at].barred, self.conns[back].barred) = (false, false),
        }
    }
}
