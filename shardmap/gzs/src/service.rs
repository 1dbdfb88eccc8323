//! The service as a machine: what it holds, what it is told, and the one change that comes next.
//!
//! ```text
//!   loop {
//!       while let Some(change) = service.next_change(now) { store.commit(&change)?; service.on_stored(change); hand out the map }
//!       wait for a telling, a person's word, or the deadline
//!   }
//! ```
//!
//! A change takes effect here only once it is stored; one that the store refuses was made from something old: what the store holds is
//! loaded into a new machine. It stops issuing as soon as anyone shows it a map that it did not make (a backup was restored, or a
//! second service is at work), and says so until a person has settled it.

mod begin;
mod shown;
mod zones;

use crate::api::{AuditView, NodeAsked, NodeTold};
use crate::change::{Change, Held, Mark};
use crate::leases::Leases;
use crate::limits::{
    CHANGES_BYTES_MAX, CHANGES_MAX, DIGESTS_MAX, GATHER_MS, LIVE_MS, OPS_SHOWN_MAX, TELL_MS, TELL_SOON_MS,
    TEXT_BYTES_MAX,
};
use crate::nodes::{Nodes, Seen};
use crate::op::{At, Decision, Op};
use shardmap::map::Map;
use shardmap::{Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use begin::Refused;
pub use shown::{hex, unhex};

/// What an operator chooses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// A zone whose log was silent for so long is taken over without a word of a person; 0: never.
    pub silence_ms: u64,
    /// What an operation has changed so recently is left alone, unless someone insists.
    pub cool_down_ms: u64,
    /// An operation that takes longer gives up, unless its ask says otherwise.
    pub move_limit_ms: u64,
    /// By zone: requests a second that it can answer; unnamed: not known.
    pub requests_per_s_max: BTreeMap<String, f64>,
    /// How long a lease of a global service is.
    pub lease_ms: u64,
}

/// The machine.
pub struct Service {
    settings: Settings,
    map: Arc<Map>,
    ops: BTreeMap<u64, Op>,
    /// What each running operation waits for.
    waits: BTreeMap<u64, String>,
    marks: BTreeMap<Shard, Mark>,
    digests: BTreeMap<u64, [u8; 32]>,
    leases: Leases,
    nodes: Nodes,
    /// When this process began.
    begun_ms: u64,
    /// The change that was stored last was of grants alone.
    granted: bool,
    /// The store was read, and it is not known whether its operations are those of its map.
    adopted: bool,
    /// When this process began to listen, or was last found to have slept.
    awake_ms: u64,
    /// When it last heard no zone at all: until then it was this service that was cut off.
    deaf_ms: u64,
    looked_ms: u64,
    /// When the newest map was issued.
    issued_ms: u64,
    /// The first map with today's fences, as far as this service has seen: what was judged by an earlier one is judged again.
    fences_since: u64,
    /// A map that someone has and that is not known here.
    shown: Option<Shown>,
    stopped: Option<String>,
    /// The newest changes, newest last.
    audit: Vec<AuditView>,
}

struct Shown {
    by: String,
    epoch: u64,
    digest: Option<[u8; 32]>,
}

/// Unheard since this service began: so much longer than the configured silence, since nodes try again now and then.
const GRACE_MS: u64 = 5000;
/// Changes that are shown.
const AUDIT_SHOWN: usize = 20;

impl Service {
    /// Goes on from what a store holds; `audit`: its newest changes, oldest first.
    pub fn new(held: Held, audit: Vec<AuditView>, settings: Settings, now_ms: u64) -> Service {
        let mut leases = Leases::new(held.grants, settings.lease_ms);
        leases.wake(now_ms);
        Service {
            settings,
            leases,
            fences_since: held.map.epoch().0,
            map: Arc::new(held.map),
            ops: held.ops.into_iter().map(|op| (op.id, op)).collect(),
            waits: BTreeMap::new(),
            marks: held.marks.into_iter().collect(),
            digests: held.digests.into_iter().collect(),
            nodes: Nodes::default(),
            begun_ms: now_ms,
            granted: false,
            adopted: true,
            awake_ms: now_ms,
            deaf_ms: now_ms,
            looked_ms: now_ms,
            issued_ms: now_ms,
            shown: None,
            stopped: None,
            audit,
        }
    }

    /// Goes on from what a store holds now, with what it has heard: its own copy was overtaken.
    pub fn reload(&mut self, held: Held) {
        self.note_fences(&held.map);
        self.map = Arc::new(held.map);
        self.ops = held.ops.into_iter().map(|op| (op.id, op)).collect();
        self.marks = held.marks.into_iter().collect();
        self.digests = held.digests.into_iter().collect();
        self.leases.reload(held.grants);
        self.adopted = true;
        self.waits.clear();
        if let Some(shown) = self.shown.take().filter(|s| self.is_foreign(s.epoch, s.digest)) {
            self.stop_at(&shown);
        }
    }

    /// The newest map.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Why no map is issued; `None`: all is well.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// An operation.
    pub fn op(&self, id: u64) -> Option<&Op> {
        self.ops.get(&id)
    }

    /// Someone shows the map that he has: its epoch and, if he tells it, its digest. What was not made here may have been stored by another
    /// service meanwhile: the store is asked first.
    pub fn on_shown(&mut self, by: &str, epoch: u64, digest: Option<[u8; 32]>) {
        if self.is_foreign(epoch, digest) && self.stopped.is_none() && self.shown.is_none() {
            self.shown = Some(Shown { by: by.to_owned(), epoch, digest });
        }
    }

    /// Is the store to be read again, since someone showed a map that is not known here?
    pub fn wants_reload(&self) -> bool {
        self.shown.is_some()
    }

    fn is_foreign(&self, epoch: u64, digest: Option<[u8; 32]>) -> bool {
        let other = digest.is_some_and(|d| self.digests.get(&epoch).is_some_and(|ours| *ours != d));
        epoch > self.map.epoch().0 || (other && epoch > 0)
    }

    /// The store does not know it either.
    fn stop_at(&mut self, shown: &Shown) {
        let (by, epoch, newest) = (&shown.by, shown.epoch, self.map.epoch());
        let why = if epoch > newest.0 {
            format!("{by} goes by map {epoch}, the newest here is {newest}")
        } else {
            format!("{by} goes by another map {epoch} than the one that was made here")
        };
        self.stopped = Some(format!(
            "{why}: this store is an old backup, or another Global Zone Service is at work. No map is issued. Find the newest map (on any \
             node: DATA_DIR/log.map), make sure that no other service runs, and start this one again with `--adopt FILE`"
        ));
    }

    /// A node tells how it is.
    pub fn on_told(&mut self, told: NodeTold, now_ms: u64) -> Result<NodeAsked, String> {
        let (zone, is_log) = (self.map.zone_named(&told.zone), told.log.is_some());
        let (by, epoch) = (format!("{} of zone {}", told.name, told.zone), told.map_epoch);
        self.nodes.on_told(told, &self.map, now_ms)?;
        self.on_shown(&by, epoch, None);
        let mut asks = vec![];
        for op in self.ops.values().filter(|op| op.is_running() && is_log) {
            asks.extend(op.asks(&self.map).into_iter().filter(|(z, _)| Some(*z) == zone).map(|(_, ask)| ask));
        }
        self.leases.wake(now_ms);
        let issues = self.stopped.is_none() && self.shown.is_none();
        let (leases, lacks) = match zone.filter(|_| is_log && issues) {
            Some(zone) => self.leases.told(&self.map, zone, now_ms),
            None => (vec![], false),
        };
        let soon = lacks || self.ops.values().any(Op::is_running);
        let tell_ms = if soon { TELL_SOON_MS } else { TELL_MS.min(self.leases.tell_ms()) };
        Ok(NodeAsked { map_epoch: self.map.epoch().0, asks, tell_ms, leases })
    }

    /// The change that comes next, if one does. Asked after everything that happens, and at the deadline.
    pub fn next_change(&mut self, now_ms: u64) -> Option<Change> {
        // Who slept, or was stopped, has heard nobody: that is not their silence.
        if now_ms.saturating_sub(self.looked_ms) > LIVE_MS / 2 {
            self.awake_ms = now_ms;
        }
        self.looked_ms = now_ms;
        let heard = |name: &str| self.nodes.silent_ms(name, now_ms).is_some_and(|ms| ms <= LIVE_MS / 2);
        if !self.map.zones().iter().any(|z| heard(&z.name)) {
            self.deaf_ms = now_ms;
        }
        self.leases.wake(now_ms);
        // Who has just begun may have read an old backup: first everyone who is there has shown his map.
        let gathered = now_ms >= self.begun_ms.saturating_add(GATHER_MS);
        if !gathered {
            let running = self.ops.values().filter(|op| op.is_running());
            let why = "this service began a moment ago, and first hears everyone";
            self.waits = running.map(|op| (op.id, why.to_owned())).collect();
        }
        if self.stopped.is_some() || self.shown.is_some() || !gathered {
            return None;
        }
        let live = |zone: Zone| self.nodes.is_live(self.map.zone_name(zone), now_ms);
        let due = self.leases.due(&self.map, live, now_ms);
        let from_epoch = self.map.epoch().0;
        let grants = (!due.is_empty()).then(|| Change {
            from_epoch,
            map: None,
            op: None,
            marks: vec![],
            grants: due,
            audit: None,
        });
        // With a slow store they are due again at once: operations have their turn in between.
        if grants.is_some() && !self.granted {
            return grants;
        }
        let (lost, losing) = (self.lost(), self.losing());
        let facts = Seen {
            nodes: &self.nodes,
            map: &self.map,
            now_ms,
            awake_ms: self.awake_ms,
            lost: &lost,
            losing: &losing,
            leases: &self.leases,
        };
        for op in self.ops.values().filter(|op| op.is_running()) {
            match op.decide(&self.map, &facts, now_ms) {
                Decision::Store(step) => return Some(self.change(op, step.map, step.op, step.why, now_ms)),
                Decision::Wait(why) => {
                    self.waits.insert(op.id, why);
                }
                Decision::Ended => {}
            }
        }
        if self.adopted {
            if let Some(change) = self.orphans(now_ms) {
                return Some(change);
            }
            self.adopted = false;
        }
        self.silent_zone(now_ms).or(grants)
    }

    /// The change is stored: from now on it is so.
    pub fn on_stored(&mut self, change: Change) {
        self.granted = change.is_grants_alone();
        if let Some(map) = change.map {
            self.note_fences(&map);
            self.nodes.keep(&map);
            self.digests.insert(map.epoch().0, map.digest());
            while self.digests.len() > DIGESTS_MAX {
                self.digests.pop_first();
            }
            self.map = Arc::new(map);
            self.issued_ms = self.looked_ms;
        }
        if let Some(op) = change.op {
            self.waits.remove(&op.id);
            self.ops.insert(op.id, op);
            let ended = |ops: &BTreeMap<u64, Op>| ops.iter().find(|(_, op)| !op.is_running()).map(|(id, _)| *id);
            while self.ops.len() > OPS_SHOWN_MAX {
                let Some(id) = ended(&self.ops) else { break };
                self.ops.remove(&id);
            }
        }
        self.leases.on_stored(&change.grants);
        self.marks.extend(change.marks);
        self.audit.extend(change.audit);
        let from = self.audit.len().saturating_sub(AUDIT_SHOWN);
        self.audit.drain(..from);
    }

    fn note_fences(&mut self, next: &Map) {
        if next.fences_digest() != self.map.fences_digest() {
            self.fences_since = next.epoch().0;
        }
    }

    /// When `next_change` may have something to say though nothing happened.
    pub fn deadline_ms(&self, now_ms: u64) -> u64 {
        let ops = self.ops.values().filter_map(Op::deadline_ms).filter(|at| *at > now_ms).min();
        ops.unwrap_or(u64::MAX).min(now_ms + TELL_MS / 2)
    }

    /// Zones that are being taken over, or were and have not got their shards back.
    fn lost(&self) -> BTreeSet<Zone> {
        let losing = self.losing().into_iter();
        losing.chain(self.marks.values().filter(|m| m.lost).filter_map(Mark::home)).collect()
    }

    /// Zones whose shards are being taken over at this moment.
    fn losing(&self) -> BTreeSet<Zone> {
        self.ops.values().filter(|op| op.is_running()).filter_map(Op::lost).collect()
    }

    /// Was it heard again after it had been taken over the last time?
    fn was_back(&self, zone: Zone, now_ms: u64) -> bool {
        let last =
            self.ops.values().filter(|op| op.lost() == Some(zone)).filter_map(|op| op.ended).map(|(at, _)| at).max();
        let heard = self.nodes.silent_ms(self.map.zone_name(zone), now_ms).map(|ms| now_ms.saturating_sub(ms));
        heard > last
    }

    /// A step of an operation as a change.
    fn change(&self, was: &Op, map: Option<Map>, op: Op, why: &str, now_ms: u64) -> Change {
        let given =
            op.shares.iter().zip(&was.shares).filter(|(is, was)| matches!(is.at, At::Given(_)) && is.at != was.at);
        let given: Vec<_> = given.map(|(share, _)| (Shard(share.shard), *share)).collect();
        let marks = given.iter().map(|(s, share)| (*s, self.mark(&op, share.from, share.to, share.shard, now_ms)));
        let marks = marks.collect();
        let grants = map.iter().flat_map(|next| {
            let owner_epoch = next.epoch().begins().0;
            let globals = given.iter().filter(|(shard, _)| shard.is_global());
            globals.map(move |(s, share)| (*s, self.leases.grant(*s, Zone(share.to), owner_epoch, now_ms)))
        });
        let grants = grants.collect();
        let audit = map.as_ref().map(|next| {
            let why = if op.why.is_empty() { why.to_owned() } else { format!("{why}; {}", op.why) };
            self.audited(next, &op.by, why, Some(op.id), now_ms)
        });
        Change { from_epoch: self.map.epoch().0, map, marks, grants, op: Some(op), audit }
    }

    fn mark(&self, op: &Op, from: u8, to: u8, shard: u16, now_ms: u64) -> Mark {
        use crate::api::What;
        let before = self.marks.get(&Shard(shard)).copied().unwrap_or_default();
        let (home, lost) = match &op.what {
            What::Evacuate { .. } => (before.home.or(Some(from)), before.lost),
            // What was evacuated to the lost zone has its home elsewhere: that one is not lost by this.
            What::TakeOver { .. } => (before.home.or(Some(from)), before.lost || before.home.is_none()),
            What::Move { .. } | What::Restore { .. } | What::Unlock { .. } | What::Fences { .. } => (None, false),
            What::AddZone { .. } | What::RemoveZone { .. } | What::AddGlobal { .. } => (before.home, before.lost),
        };
        let home = home.filter(|home| *home != to);
        Mark { home, lost: lost && home.is_some(), given_ms: now_ms }
    }

    fn audited(&self, next: &Map, by: &str, why: String, op: Option<u64>, now_ms: u64) -> AuditView {
        // The first line says the epoch.
        let all: Vec<String> = self.map.diff(next).iter().skip(1).map(ToString::to_string).collect();
        AuditView { epoch: next.epoch().0, at_ms: now_ms, by: by.to_owned(), why, op, changes: bounded(&all) }
    }
}

/// What of an entry's lines is kept.
fn bounded(all: &[String]) -> Vec<String> {
    let mut room = CHANGES_BYTES_MAX;
    // The order of thousands of fences is one line.
    let short = all.iter().take(CHANGES_MAX).map(|line| line.chars().take(TEXT_BYTES_MAX).collect());
    let fits = |line: &String| {
        let left = room.checked_sub(line.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let mut kept: Vec<String> = short.take_while(fits).collect();
    if kept.len() < all.len() {
        kept.push(format!("and {} more", all.len() - kept.len()));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_entry_is_bounded_in_lines_and_in_bytes_and_says_what_it_leaves_out() {
        let lines = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
        assert_eq!(bounded(&[]), Vec::<String>::new());
        assert_eq!(bounded(&lines(3, 4)), lines(3, 4));
        let kept = bounded(&lines(CHANGES_MAX + 2, 4));
        assert_eq!((kept.len(), kept[CHANGES_MAX].as_str()), (CHANGES_MAX + 1, "and 2 more"));
        let (each, fit) = (TEXT_BYTES_MAX, CHANGES_BYTES_MAX / TEXT_BYTES_MAX);
        // Longer than a text may be: each is cut, and as many as fit are kept.
        let kept = bounded(&lines(fit + 7, each + 1));
        assert_eq!((kept.len(), kept[0].len(), kept[fit].as_str()), (fit + 1, each, "and 7 more"));
    }
}
