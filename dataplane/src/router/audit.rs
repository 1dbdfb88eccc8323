//! What must hold between a core's tables after every call, for simulations and fuzzing: nothing of it runs in production.

use super::Core;
use super::conn::{Conn, ConnId, Kind, Phase, Stage, UpPhase};

/// The most that any connection holds; compared with the limits by whoever simulates.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Bytes that wait to be sent on one connection.
    pub out_bytes_max: usize,
    /// Bytes received and not used yet on one connection.
    pub stash_bytes_max: usize,
    /// Body kept for a second attempt of one request.
    pub kept_bytes_max: usize,
    /// Requests that are held.
    pub held: usize,
    /// Connections in the table, both sides.
    pub connections: usize,
}

impl Core {
    /// Looks at every table: the first contradiction found, or what the connections hold. Call it between driver's calls.
    pub fn audit(&self) -> Result<Footprint, String> {
        let mut print = Footprint { connections: self.conns.len(), ..Footprint::default() };
        let (mut in_flight, mut held_bytes) = (self.ports.asked() as u64, 0);
        for (index, conn) in self.conns.iter().enumerate() {
            let id = ConnId { index: index as u32, generation: conn.generation };
            print.out_bytes_max = print.out_bytes_max.max(conn.io.out.len());
            print.stash_bytes_max = print.stash_bytes_max.max(conn.io.stash.len());
            match &conn.kind {
                Kind::Free => print.connections -= 1,
                Kind::Client(c) if !conn.io.closing => {
                    print.kept_bytes_max = print.kept_bytes_max.max(c.kept.len());
                    let held = c.exchange.as_ref().filter(|e| e.stage == Stage::Held);
                    print.held += usize::from(held.is_some());
                    held_bytes += held.map_or(0, |e| e.held_bytes);
                    self.audit_client(id, conn)?;
                }
                Kind::Upstream(u) if !conn.io.closing => {
                    in_flight += u64::from(u.client.is_some());
                    self.audit_upstream(id, conn)?;
                }
                Kind::Client(_) | Kind::Upstream(_) | Kind::Port(_) => {}
            }
        }
        let holding = self.counts.holding as usize;
        if print.held != holding || (print.held, held_bytes) != self.holds.held() {
            return Err(format!(
                "{} held of {held_bytes} bytes; counted {holding}, {:?}",
                print.held,
                self.holds.held()
            ));
        }
        if in_flight != self.counts.in_flight {
            return Err(format!("{in_flight} in flight, counted {}", self.counts.in_flight));
        }
        self.audit_clusters()?;
        Ok(print)
    }

    /// Every place that is taken is someone's, every wait is someone's, every endpoint's load is its requests.
    fn audit_clusters(&self) -> Result<(), String> {
        let exchanges = || {
            let open = self.conns.iter().filter(|c| !c.io.closing);
            open.filter_map(|c| match &c.kind {
                Kind::Client(c) => c.exchange.as_ref(),
                Kind::Free | Kind::Upstream(_) | Kind::Port(_) => None,
            })
        };
        for (i, cluster) in self.to.clusters.iter().enumerate() {
            let (budget, waiting) = (&cluster.budget, cluster.queue.waiting());
            let admitted = exchanges().filter(|e| e.admitted == Some(i)).count() as u64;
            let retrying = exchanges().filter(|e| e.admitted == Some(i) && e.retrying).count() as u64;
            let queued = exchanges().filter(|e| matches!(e.stage, Stage::Queued(at, _) if at == i)).count();
            if (admitted, retrying, queued) != (budget.active, budget.retrying, waiting) {
                let name = &cluster.name;
                return Err(format!("{name}: {admitted}, {retrying}, {queued}; counted {budget:?}, {waiting}"));
            }
        }
        for (i, pool) in self.to.pools.iter().enumerate() {
            let asked = |c: &&Conn| matches!(&c.kind, Kind::Upstream(u) if u.target == i && u.client.is_some());
            let active = self.conns.iter().filter(|c| !c.io.closing).filter(asked).count();
            let open = self.conns.iter().filter(|c| matches!(&c.kind, Kind::Upstream(u) if u.target == i)).count();
            if (active, open) != (pool.active as usize, pool.open) {
                let at = pool.endpoint.addr;
                return Err(format!("{at}: {active} of {open}; counted {} of {}", pool.active, pool.open));
            }
        }
        Ok(())
    }

    fn audit_client(&self, id: ConnId, conn: &Conn) -> Result<(), String> {
        let Kind::Client(c) = &conn.kind else { return Ok(()) };
        if conn.io.deadline == u64::MAX {
            return Err(format!("client {id:?} in {:?} may wait for ever", c.phase));
        }
        match c.exchange.as_ref().map(|e| e.stage) {
            Some(Stage::New) if c.phase != Phase::Drain && c.exchange.as_ref().is_some_and(|e| e.watcher.is_none()) => {
                Err(format!("client {id:?} stands nowhere in {:?}", c.phase))
            }
            None if c.phase == Phase::Await => Err(format!("client {id:?} awaits an answer to nothing")),
            Some(Stage::Upstream(up)) => match self.alive(up).map(|u| &u.kind) {
                Some(Kind::Upstream(u)) if u.client == Some(id) => Ok(()),
                Some(Kind::Upstream(_) | Kind::Client(_) | Kind::Port(_) | Kind::Free) | None => {
                    Err(format!("client {id:?} waits for {up:?}, which does not serve it"))
                }
            },
            Some(Stage::Port(corr)) if !self.ports.asked_by(corr, id) => {
                Err(format!("client {id:?} waits for ask {corr}, which is not its own"))
            }
            Some(Stage::New | Stage::Held | Stage::Queued(..) | Stage::Gather | Stage::Port(_)) | None => Ok(()),
        }
    }

    fn audit_upstream(&self, id: ConnId, conn: &Conn) -> Result<(), String> {
        let Kind::Upstream(u) = &conn.kind else { return Ok(()) };
        let pooled = self.to.pools.iter().map(|p| p.idle.iter().filter(|i| **i == id).count()).sum::<usize>();
        if pooled != usize::from(u.phase == UpPhase::Idle) {
            return Err(format!("upstream {id:?} in {:?} is {pooled} times in the pools", u.phase));
        }
        let Some(client) = u.client else {
            let patient = conn.io.deadline == u64::MAX;
            return if patient { Err(format!("upstream {id:?} without a client, for ever")) } else { Ok(()) };
        };
        match self.alive(client).map(|c| &c.kind) {
            Some(Kind::Client(c)) if c.exchange.as_ref().is_some_and(|e| e.stage == Stage::Upstream(id)) => Ok(()),
            Some(Kind::Client(_) | Kind::Upstream(_) | Kind::Port(_) | Kind::Free) | None => {
                Err(format!("upstream {id:?} serves {client:?}, which does not wait for it"))
            }
        }
    }

    fn alive(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(id.index as usize).filter(|c| c.generation == id.generation && !c.io.closing)
    }
}
