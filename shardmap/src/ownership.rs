//! Who may write a shard, and how that changes: the contract, as pure functions over a shard's history.
//!
//! ```text
//!            begin_move            commit_move (FENCE applied there, nothing parked)
//!   Own ───────────────▶ Moving ───────────────────────────────▶ Own (target)
//!    ▲ ▲                   │ abort
//!    │ └───────────────────┘                 finish_take_over (cut)
//!    └── abort ── Lost ◀── declare_lost ─┐ ──────────────────────▶ Own (survivor), locks until resolved or Unlock
//! ```
//!
//! Everyone uses this module and nobody else decides: the log's gate (`may_write`, `fence_due`, `locked`), the applier
//! (`is_tail`), the router (`view`), and the map's writer (the transitions, which are compare-and-set on the newest entry).
//! It never looks at a clock, a file or another shard.

use crate::types::{MapEpoch, OwnerEpoch, Positions, ZONES, Zone};
use std::fmt;

/// What a map says of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// `owner` writes it.
    Own,
    /// `owner` still may, until its FENCE; `to` is the target.
    Moving,
    /// Nobody may: `lost` owned it.
    Lost,
    /// `owner` writes it, and an operator has opened the locks of every earlier take-over.
    Unlock,
}

impl Kind {
    /// Is the shard on its way to another owner, or lost without a new one?
    pub fn is_unsettled(self) -> bool {
        match self {
            Kind::Moving | Kind::Lost => true,
            Kind::Own | Kind::Unlock => false,
        }
    }
}

/// One change of one shard; a map with epoch `m` holds every entry with `epoch <= m`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// The map epoch at which this entry was written.
    pub epoch: MapEpoch,
    /// What it says.
    pub kind: Kind,
    /// The owner; `None` only when `kind` is `Lost`.
    pub owner: Option<Zone>,
    /// When the owner's present ownership began (for `Lost`: the one that was lost).
    pub owner_epoch: OwnerEpoch,
    /// The target of a move.
    pub to: Option<Zone>,
    /// The zone that was lost, and the epoch it had owned; kept by the take-over that follows.
    pub lost: Option<(Zone, OwnerEpoch)>,
    /// For every earlier owner's log, the last seq below which the owner had applied everything; unnamed: no cut.
    pub cut: Positions,
}

/// A shard's entries, oldest first, never empty: those that some zone may still need.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct History(Vec<Entry>);

/// Why a zone may not write a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Another zone owns it (or, with `None`, nobody does while a take-over is under way).
    NotOwner(Option<Zone>),
    /// This zone's own FENCE stands against its owner epoch: the shard is leaving, or a newer map is on its way.
    Fenced,
    /// The log has restarted and does not know yet whether it still owns anything.
    ReadOnly,
}

/// Why a change of a map was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Illegal {
    /// The newest entry is not of the kind that this change starts from.
    Wrong {
        /// What the change needs.
        wanted: &'static str,
        /// What the map says.
        found: Kind,
    },
    /// The new epoch does not follow.
    Epoch {
        /// The newest entry's.
        newest: MapEpoch,
        /// The one offered.
        offered: MapEpoch,
    },
    /// A shard cannot be moved to the zone that has it, or be given to the zone that was lost.
    SameZone(Zone),
    /// The positions that a change must carry are missing: one for each earlier owner's log.
    NoPositions,
    /// The predecessor's history is not a prefix of the successor's, or more than one entry was added.
    Rewritten,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Illegal::Wrong { wanted, found } => write!(f, "the shard is {found:?}, expected {wanted}"),
            Illegal::Epoch { newest, offered } => {
                write!(f, "map epoch {offered} offered, the newest entry has {newest}")
            }
            Illegal::SameZone(z) => write!(f, "zone {z} cannot take this shard: it is the zone it comes from"),
            Illegal::NoPositions => f.write_str("the new owner's report lacks a position in an earlier owner's log"),
            Illegal::Rewritten => f.write_str("the shard's history was rewritten; a map may only add one entry to it"),
        }
    }
}
impl std::error::Error for Illegal {}

/// A take-over whose locks are closed until it is resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    /// Rows with an owner epoch below this one are locked.
    pub below: OwnerEpoch,
    /// Everywhere but at this zone.
    pub lost: Zone,
    /// Until a FENCE of that zone with at least this epoch has been applied with nothing of the shard parked.
    pub fence_from: OwnerEpoch,
}

impl Entry {
    /// A first ownership, at the map epoch where it begins.
    pub fn first(owner: Zone, epoch: MapEpoch) -> Entry {
        Entry {
            epoch,
            kind: Kind::Own,
            owner: Some(owner),
            owner_epoch: epoch.begins(),
            to: None,
            lost: None,
            cut: Positions::default(),
        }
    }

    /// Does it agree with itself? Its numbers are in range too, so that what is computed from them cannot overflow.
    fn is_whole(&self) -> bool {
        let (began, epoch) = (self.owner_epoch.0, self.epoch.0);
        let lost = self.lost.map(|l| l.0);
        let agrees = match self.kind {
            Kind::Own => self.owner.is_some() && self.to.is_none() && lost != self.owner && began == epoch,
            Kind::Unlock => self.owner.is_some() && self.to.is_none() && lost.is_none() && began < epoch,
            Kind::Moving => {
                self.owner.is_some()
                    && self.to.is_some_and(|to| self.owner != Some(to))
                    && lost.is_none()
                    && began < epoch
            }
            Kind::Lost => {
                self.owner.is_none()
                    && self.to.is_none()
                    && self.lost.is_some_and(|l| l.1 == self.owner_epoch)
                    && began < epoch
            }
        };
        let zones = [self.owner, self.to, lost].into_iter().flatten().all(|z| (z.0 as usize) < ZONES);
        let in_time = epoch < u64::MAX && self.lost.is_none_or(|l| l.1.0 < epoch);
        agrees && zones && in_time && self.owner.is_none_or(|o| self.cut.get(o).is_none())
    }
}

impl History {
    /// A shard that `owner` has from map `epoch` on.
    pub fn new(owner: Zone, epoch: MapEpoch) -> History {
        History(vec![Entry::first(owner, epoch)])
    }

    /// Entries as they were stored or received. Refused: none, out of order, an entry that contradicts itself, or a first entry
    /// that is not an ownership (what is pruned ends where an ownership begins: `fence_due` and `abort` look for it).
    pub fn from_entries(entries: Vec<Entry>) -> Result<History, Illegal> {
        if entries.is_empty() {
            return Err(Illegal::Rewritten);
        }
        for pair in entries.windows(2) {
            if pair[1].epoch <= pair[0].epoch {
                return Err(Illegal::Epoch { newest: pair[0].epoch, offered: pair[1].epoch });
            }
        }
        if entries[0].kind != Kind::Own {
            return Err(Illegal::Wrong { wanted: "an ownership as the first entry", found: entries[0].kind });
        }
        match entries.iter().find(|e| !e.is_whole()) {
            Some(e) => Err(Illegal::Wrong { wanted: "an entry that agrees with itself", found: e.kind }),
            None => Ok(History(entries)),
        }
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// What the map says now.
    pub fn view(&self) -> &Entry {
        self.0.last().expect("a history is never empty: both constructors see to it")
    }

    // ---- the log's gate -------------------------------------------------------------------------------------------

    /// May `zone` write, given the highest FENCE of its own for this shard? At which owner epoch?
    pub fn may_write(&self, zone: Zone, own_fence: OwnerEpoch, read_only: bool) -> Result<OwnerEpoch, Refusal> {
        let v = self.view();
        if v.owner != Some(zone) {
            return Err(Refusal::NotOwner(v.owner));
        }
        if own_fence > v.owner_epoch {
            return Err(Refusal::Fenced);
        }
        if read_only {
            return Err(Refusal::ReadOnly);
        }
        Ok(v.owner_epoch)
    }

    /// The epoch of the FENCE that `zone` has to append now, if it has to: the shard is moving away, or it heard, however
    /// late, that it was lost.
    pub fn fence_due(&self, zone: Zone, own_fence: OwnerEpoch) -> Option<OwnerEpoch> {
        let v = self.view();
        let mine = self.ownerships().rev().find(|e| e.owner == Some(zone))?;
        let away = match v.kind {
            Kind::Own | Kind::Unlock => v.owner != Some(zone),
            Kind::Moving => true,
            Kind::Lost => true,
        };
        if !away || own_fence > mine.owner_epoch {
            return None;
        }
        Some(match v.kind {
            Kind::Moving | Kind::Lost => v.epoch.next().begins(),
            Kind::Own | Kind::Unlock => v.owner_epoch,
        })
    }

    /// The take-overs whose locks an operator has not opened, as `zone` sees them; empty in a system without losses.
    pub fn locks(&self, zone: Zone) -> impl Iterator<Item = Lock> + '_ {
        self.ownerships().filter_map(move |e| {
            let (lost, lost_epoch) = e.lost?;
            let unlocked = self.0.iter().any(|u| u.kind == Kind::Unlock && u.epoch > e.epoch);
            (lost != zone && !unlocked).then_some(Lock {
                below: e.owner_epoch,
                lost,
                fence_from: OwnerEpoch(lost_epoch.0 + 1),
            })
        })
    }

    /// Is a row of owner epoch `row` locked at `zone`? `fence_applied` tells the highest FENCE of a zone for this shard
    /// that has been applied here with nothing of the shard parked.
    pub fn locked(&self, zone: Zone, row: OwnerEpoch, fence_applied: impl Fn(Zone) -> OwnerEpoch) -> bool {
        self.locks(zone).any(|l| row < l.below && fence_applied(l.lost) < l.fence_from)
    }

    // ---- the applier ----------------------------------------------------------------------------------------------

    /// Is a record (its owner epoch, the zone whose log it is in, its seq) beyond the cut of any later ownership of the
    /// shard by another zone?
    pub fn is_tail(&self, written: OwnerEpoch, zone: Zone, seq: u64) -> bool {
        self.ownerships()
            .any(|e| e.owner_epoch > written && e.owner != Some(zone) && e.cut.get(zone).is_some_and(|cut| seq > cut))
    }

    /// Has a zone that reported its positions for `lost`'s shard to wait before it applies more of that log? True while the
    /// map says "no owner" with that zone lost.
    pub fn is_lost_by(&self, zone: Zone) -> bool {
        let v = self.view();
        v.kind == Kind::Lost && v.lost.is_some_and(|(z, _)| z == zone)
    }

    // ---- the map's writer -----------------------------------------------------------------------------------------

    /// Step 2 of a move: a map that says moving.
    pub fn begin_move(&self, to: Zone, epoch: MapEpoch) -> Result<Entry, Illegal> {
        let v = self.newest(epoch)?;
        if !matches!(v.kind, Kind::Own | Kind::Unlock) {
            return Err(Illegal::Wrong { wanted: "an owner", found: v.kind });
        }
        if v.owner == Some(to) {
            return Err(Illegal::SameZone(to));
        }
        Ok(Entry { epoch, kind: Kind::Moving, to: Some(to), lost: None, ..v.clone() })
    }

    /// Step 5 of a move: the target has applied the source's FENCE at `fence_seq` and every position it carries; `applied`
    /// is its report.
    pub fn commit_move(&self, fence_seq: u64, applied: &Positions, epoch: MapEpoch) -> Result<Entry, Illegal> {
        let v = self.newest(epoch)?;
        let (Kind::Moving, Some(from), Some(to)) = (v.kind, v.owner, v.to) else {
            return Err(Illegal::Wrong { wanted: "a move", found: v.kind });
        };
        if applied.get(from).is_none_or(|a| a < fence_seq) || !self.names_every_owner(applied, to) {
            return Err(Illegal::NoPositions);
        }
        let mut cut = applied.clone();
        cut.set(from, fence_seq);
        cut.clear(to);
        Ok(Entry { kind: Kind::Own, owner: Some(to), ..self.beginning(epoch, cut) })
    }

    /// The epoch that the FENCE of the present move must have at least.
    pub fn move_fence(&self) -> Option<OwnerEpoch> {
        let v = self.view();
        (v.kind == Kind::Moving).then(|| v.epoch.next().begins())
    }

    /// A move or a take-over that is given up: the shard goes back, with a new owner epoch and the previous cut.
    pub fn abort(&self, epoch: MapEpoch) -> Result<Entry, Illegal> {
        let v = self.newest(epoch)?;
        let owner = match v.kind {
            Kind::Moving => v.owner,
            Kind::Lost => v.lost.map(|(z, _)| z),
            Kind::Own | Kind::Unlock => return Err(Illegal::Wrong { wanted: "a move or a take-over", found: v.kind }),
        };
        // Moving, Lost and Unlock carry the cut of the ownership that they followed.
        Ok(Entry { kind: Kind::Own, owner, ..self.beginning(epoch, v.cut.clone()) })
    }

    /// Step 1 of a take-over: what the loss of `zone` means for this shard; `None` if nothing.
    pub fn declare_lost(&self, zone: Zone, epoch: MapEpoch) -> Result<Option<Entry>, Illegal> {
        let v = self.newest(epoch)?;
        if v.kind == Kind::Lost {
            return Ok(None);
        }
        if v.owner == Some(zone) {
            let lost = Some((zone, v.owner_epoch));
            return Ok(Some(Entry { epoch, kind: Kind::Lost, owner: None, to: None, lost, ..v.clone() }));
        }
        if v.kind == Kind::Moving && v.to == Some(zone) {
            return self.abort(epoch).map(Some);
        }
        Ok(None)
    }

    /// Step 4 of a take-over: `owner` gets the shard; `cut` is what it reported.
    pub fn finish_take_over(&self, owner: Zone, cut: &Positions, epoch: MapEpoch) -> Result<Entry, Illegal> {
        let v = self.newest(epoch)?;
        let (Kind::Lost, Some((lost, _))) = (v.kind, v.lost) else {
            return Err(Illegal::Wrong { wanted: "a lost zone", found: v.kind });
        };
        if owner == lost {
            return Err(Illegal::SameZone(owner));
        }
        if cut.get(lost).is_none() || !self.names_every_owner(cut, owner) {
            return Err(Illegal::NoPositions);
        }
        let mut cut = cut.clone();
        cut.clear(owner);
        Ok(Entry { kind: Kind::Own, owner: Some(owner), lost: v.lost, ..self.beginning(epoch, cut) })
    }

    /// An operator opens the locks of every take-over so far.
    pub fn unlock(&self, epoch: MapEpoch) -> Result<Entry, Illegal> {
        let v = self.newest(epoch)?;
        if !matches!(v.kind, Kind::Own | Kind::Unlock) {
            return Err(Illegal::Wrong { wanted: "an owner", found: v.kind });
        }
        Ok(Entry { epoch, kind: Kind::Unlock, lost: None, ..v.clone() })
    }

    /// This history with one more entry.
    pub fn with(&self, entry: Entry) -> Result<History, Illegal> {
        let mut all = self.0.clone();
        all.push(entry);
        History::from_entries(all)
    }

    /// Is `next` this history, or this history and one legal entry more? (An older prefix may have been pruned.)
    pub fn may_become(&self, next: &History) -> Result<(), Illegal> {
        let newest = self.view();
        let Some(at) = next.0.iter().position(|e| e == newest) else { return Err(Illegal::Rewritten) };
        if !self.0.ends_with(&next.0[..=at]) {
            return Err(Illegal::Rewritten);
        }
        let mut seen = History(next.0[..=at].to_vec());
        for entry in &next.0[at + 1..] {
            seen.check_step(entry)?;
            seen = seen.with(entry.clone())?;
        }
        Ok(())
    }

    /// Could `entry` have been made by one of the transitions above?
    fn check_step(&self, entry: &Entry) -> Result<(), Illegal> {
        let (v, e) = (self.view(), entry.epoch);
        let same = |made: Result<Entry, Illegal>| {
            made.and_then(|m| if m == *entry { Ok(()) } else { Err(Illegal::Rewritten) })
        };
        match (v.kind, entry.kind) {
            (Kind::Own | Kind::Unlock, Kind::Moving) => same(self.begin_move(entry.to.ok_or(Illegal::Rewritten)?, e)),
            (Kind::Own | Kind::Unlock, Kind::Unlock) => same(self.unlock(e)),
            (Kind::Own | Kind::Unlock | Kind::Moving, Kind::Lost) => {
                same(self.declare_lost(v.owner.ok_or(Illegal::Rewritten)?, e)?.ok_or(Illegal::Rewritten))
            }
            (Kind::Moving, Kind::Own) if entry.owner == v.owner => same(self.abort(e)),
            (Kind::Moving, Kind::Own) => {
                let from = v.owner.ok_or(Illegal::Rewritten)?;
                same(self.commit_move(entry.cut.get(from).ok_or(Illegal::NoPositions)?, &entry.cut, e))
            }
            (Kind::Lost, Kind::Own) if entry.owner == v.lost.map(|l| l.0) => same(self.abort(e)),
            (Kind::Lost, Kind::Own) => {
                same(self.finish_take_over(entry.owner.ok_or(Illegal::Rewritten)?, &entry.cut, e))
            }
            (_, found) => Err(Illegal::Wrong { wanted: "a legal successor", found }),
        }
    }

    /// Does `cut` name every earlier owner's log but `owner`'s own? One that is left out would have no cut, and what it wrote
    /// could be overwritten unlisted.
    fn names_every_owner(&self, cut: &Positions, owner: Zone) -> bool {
        self.ownerships().filter_map(|e| e.owner).all(|zone| zone == owner || cut.get(zone).is_some())
    }

    fn ownerships(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.0.iter().filter(|e| e.kind == Kind::Own)
    }

    fn newest(&self, epoch: MapEpoch) -> Result<&Entry, Illegal> {
        let v = self.view();
        if epoch <= v.epoch { Err(Illegal::Epoch { newest: v.epoch, offered: epoch }) } else { Ok(v) }
    }

    /// An ownership that begins at `epoch`; its kind and owner are set by the caller.
    fn beginning(&self, epoch: MapEpoch, cut: Positions) -> Entry {
        Entry { epoch, kind: Kind::Own, owner: None, owner_epoch: epoch.begins(), to: None, lost: None, cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Zone = Zone(0);
    const B: Zone = Zone(1);
    const C: Zone = Zone(2);

    fn at(epoch: u64) -> MapEpoch {
        MapEpoch(epoch)
    }
    fn positions(of: &[(Zone, u64)]) -> Positions {
        of.iter().copied().collect()
    }
    /// A owns from 1, moves to B: moving at 3, committed at 4.
    fn moved() -> History {
        let h = History::new(A, at(1));
        let h = h.with(h.begin_move(B, at(3)).unwrap()).unwrap();
        h.with(h.commit_move(7, &positions(&[(A, 9), (C, 5)]), at(4)).unwrap()).unwrap()
    }
    /// A owns from 1, is lost at 2, B takes over at 5.
    fn taken_over() -> History {
        let h = History::new(A, at(1));
        let h = h.with(h.declare_lost(A, at(2)).unwrap().unwrap()).unwrap();
        h.with(h.finish_take_over(B, &positions(&[(A, 9), (B, 3)]), at(5)).unwrap()).unwrap()
    }

    /// `hostile` changes the newest entry of a legal history: reading it back must fail.
    fn refused(legal: &History, hostile: impl Fn(&mut Entry)) {
        let mut entries = legal.entries().to_vec();
        hostile(entries.last_mut().unwrap());
        assert!(History::from_entries(entries.clone()).is_err(), "accepted: {:?}", entries.last());
    }

    #[test]
    fn a_stored_history_is_read_back_as_it_was() {
        for h in [moved(), taken_over()] {
            assert_eq!(History::from_entries(h.entries().to_vec()), Ok(h));
        }
    }

    #[test]
    fn no_entry_or_entries_out_of_order_are_refused() {
        assert_eq!(History::from_entries(Vec::new()), Err(Illegal::Rewritten));
        let mut entries = moved().entries().to_vec();
        entries.swap(0, 1);
        assert!(matches!(History::from_entries(entries), Err(Illegal::Epoch { .. })));
        let twice = vec![Entry::first(A, at(1)), Entry::first(B, at(1))];
        assert!(matches!(History::from_entries(twice), Err(Illegal::Epoch { .. })));
    }

    #[test]
    fn a_history_that_does_not_begin_with_an_ownership_is_refused() {
        let tail = moved().entries()[1..2].to_vec();
        assert!(matches!(History::from_entries(tail), Err(Illegal::Wrong { found: Kind::Moving, .. })));
    }

    #[test]
    fn an_ownership_that_contradicts_itself_is_refused() {
        let h = taken_over();
        refused(&h, |e| e.owner = None);
        refused(&h, |e| e.owner = Some(Zone(15)));
        refused(&h, |e| e.owner = Some(A));
        refused(&h, |e| e.to = Some(C));
        refused(&h, |e| e.owner_epoch = OwnerEpoch(4));
        refused(&h, |e| e.lost = Some((A, OwnerEpoch(u64::MAX))));
        refused(&h, |e| e.lost = Some((Zone(200), OwnerEpoch(1))));
        refused(&h, |e| e.cut.set(B, 1));
        refused(&h, |e| (e.epoch, e.owner_epoch) = (at(u64::MAX), OwnerEpoch(u64::MAX)));
    }

    #[test]
    fn a_move_a_loss_and_an_unlock_that_contradict_themselves_are_refused() {
        let own = History::new(A, at(1));
        let moving = own.with(own.begin_move(B, at(3)).unwrap()).unwrap();
        refused(&moving, |e| e.to = None);
        refused(&moving, |e| e.to = Some(A));
        refused(&moving, |e| e.to = Some(Zone(99)));
        refused(&moving, |e| e.lost = Some((C, OwnerEpoch(0))));
        refused(&moving, |e| e.epoch = at(u64::MAX));
        let lost = own.with(own.declare_lost(A, at(2)).unwrap().unwrap()).unwrap();
        refused(&lost, |e| e.lost = None);
        refused(&lost, |e| e.owner = Some(B));
        refused(&lost, |e| e.lost = Some((A, OwnerEpoch(0))));
        let unlocked = own.with(own.unlock(at(2)).unwrap()).unwrap();
        refused(&unlocked, |e| e.owner = None);
        refused(&unlocked, |e| e.owner_epoch = OwnerEpoch(2));
    }

    #[test]
    fn a_history_may_become_itself_or_a_pruned_copy_or_grow_by_legal_steps() {
        let (first, h) = (History::new(A, at(1)), moved());
        assert_eq!(first.may_become(&first), Ok(()));
        assert_eq!(first.may_become(&h), Ok(()), "two maps behind");
        let pruned = History::from_entries(h.entries()[2..].to_vec()).unwrap();
        assert_eq!(h.may_become(&pruned), Ok(()));
        let on = pruned.with(pruned.begin_move(A, at(9)).unwrap()).unwrap();
        assert_eq!(h.may_become(&on), Ok(()));
        assert_eq!(h.may_become(&first), Err(Illegal::Rewritten), "back an epoch");
        assert_eq!(h.may_become(&taken_over()), Err(Illegal::Rewritten), "another past");
    }

    /// `hostile` changes the last entry of a history whose last step is legal: the step must then be refused.
    fn illegal_step(legal: &History, hostile: impl Fn(&mut Entry)) {
        let mut entries = legal.entries().to_vec();
        let before = History::from_entries(entries[..entries.len() - 1].to_vec()).unwrap();
        assert_eq!(before.may_become(legal), Ok(()));
        hostile(entries.last_mut().unwrap());
        let step = before.may_become(&History(entries.clone()));
        assert!(step.is_err(), "accepted: {:?}", entries.last());
    }

    #[test]
    fn a_commit_that_no_transition_makes_is_refused() {
        illegal_step(&moved(), |e| e.owner = Some(C));
        illegal_step(&moved(), |e| e.owner = None);
        illegal_step(&moved(), |e| e.cut = Positions::default());
        illegal_step(&moved(), |e| e.cut.set(B, 1));
        illegal_step(&moved(), |e| e.lost = Some((A, OwnerEpoch(1))));
        illegal_step(&moved(), |e| e.owner_epoch = OwnerEpoch(3));
        illegal_step(&moved(), |e| e.epoch = at(3));
        illegal_step(&moved(), |e| e.kind = Kind::Lost);
        illegal_step(&moved(), |e| e.kind = Kind::Unlock);
    }

    #[test]
    fn a_take_over_that_no_transition_makes_is_refused() {
        illegal_step(&taken_over(), |e| e.lost = None);
        illegal_step(&taken_over(), |e| e.lost = Some((C, OwnerEpoch(1))));
        illegal_step(&taken_over(), |e| e.lost = Some((A, OwnerEpoch(0))));
        illegal_step(&taken_over(), |e| e.cut = positions(&[(C, 9)]));
        illegal_step(&taken_over(), |e| e.owner = Some(A));
        illegal_step(&taken_over(), |e| e.kind = Kind::Moving);
    }

    #[test]
    fn an_abort_keeps_the_cut_even_of_a_move_that_followed_an_unlock() {
        let h = taken_over();
        let h = h.with(h.unlock(at(6)).unwrap()).unwrap();
        let h = h.with(h.begin_move(C, at(7)).unwrap()).unwrap();
        let aborted = h.abort(at(8)).unwrap();
        assert_eq!((aborted.owner, aborted.cut.get(A), aborted.owner_epoch), (Some(B), Some(9), OwnerEpoch(8)));
        assert_eq!(h.may_become(&h.with(aborted).unwrap()), Ok(()));
    }

    #[test]
    fn a_new_owner_without_a_position_in_the_old_owners_log_is_refused() {
        let own = History::new(A, at(1));
        let moving = own.with(own.begin_move(B, at(3)).unwrap()).unwrap();
        assert_eq!(moving.commit_move(7, &positions(&[(C, 9)]), at(4)), Err(Illegal::NoPositions));
        assert_eq!(moving.commit_move(7, &positions(&[(A, 6)]), at(4)), Err(Illegal::NoPositions));
        let lost = own.with(own.declare_lost(A, at(2)).unwrap().unwrap()).unwrap();
        assert_eq!(lost.finish_take_over(B, &positions(&[(C, 1)]), at(4)), Err(Illegal::NoPositions));
        assert_eq!(lost.finish_take_over(A, &positions(&[(A, 1)]), at(4)), Err(Illegal::SameZone(A)));
    }

    #[test]
    fn random_entries_are_refused_or_answer_every_question() {
        let mut x = 1u64;
        let mut dice = |n: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % n
        };
        let (mut read, mut told) = (0, 0);
        for _ in 0..20_000 {
            let number = |d: u64| if d == 9 { u64::MAX } else { d };
            let entries: Vec<Entry> = (0..=dice(2))
                .map(|i| {
                    let epoch = number(i * 4 + dice(10));
                    let zone = |d: u64| [Some(A), Some(B), None, Some(Zone(255))][d as usize];
                    Entry {
                        epoch: at(epoch),
                        kind: [Kind::Own, Kind::Moving, Kind::Lost, Kind::Unlock]
                            [dice(4) as usize * usize::from(i > 0)],
                        owner: zone(dice(4)),
                        owner_epoch: OwnerEpoch(if dice(2) == 0 { epoch } else { number(dice(10)) }),
                        to: zone(2 - dice(3)),
                        lost: zone(2 - dice(3)).map(|z| (z, OwnerEpoch(number(dice(10))))),
                        cut: positions(&[(A, number(dice(10)))]),
                    }
                })
                .collect();
            let Ok(h) = History::from_entries(entries) else { continue };
            read += 1;
            for z in [A, B, Zone(255)] {
                told += usize::from(h.may_write(z, OwnerEpoch(0), false).is_ok());
                told += usize::from(h.fence_due(z, OwnerEpoch(0)).is_some());
                told += usize::from(h.locked(z, OwnerEpoch(0), |_| OwnerEpoch(0)));
                told += usize::from(h.is_tail(OwnerEpoch(0), z, 1));
                let _ = (
                    h.begin_move(z, at(u64::MAX)),
                    h.abort(at(u64::MAX)),
                    h.declare_lost(z, at(u64::MAX)),
                    h.move_fence(),
                );
            }
            let _ = h.may_become(&h);
        }
        assert!(read > 100 && told > read, "only {read} of 20,000 could be read: the generator is too wild");
    }
}
