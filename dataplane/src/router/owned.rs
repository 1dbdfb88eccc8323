//! What `/ownership` tells, as JSON: the state of every shard, and the events that lie between two states.

use super::Settings;
use replog::stand::{May, Stand, Standing};
use serde_json::{Value, json};
use shardmap::ownership::Kind;
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};
use std::sync::Arc;

/// How all shards stand: one part for each log core.
pub(super) type All = Vec<Arc<Standing>>;

/// What happened to one ownership of this zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Nothing more is written under it.
    Block,
    /// And nothing of it is on its way any more.
    Lose,
    /// It is written from now on.
    Gain,
}

/// The map of which everything has been told: no part goes by an older one.
pub(super) fn epoch(all: &All) -> MapEpoch {
    all.iter().map(|part| part.map_epoch).min().unwrap_or_default()
}

/// The state, without what kind of line it is. `own`: of the shards that this zone owns. Of a global service, `left`: milliseconds of this
/// zone's lease; `global`: what it is called.
pub(super) fn state(
    all: &All,
    own: bool,
    settings: &Settings,
    left: impl Fn(Shard) -> u64,
    global: impl Fn(Shard) -> Option<String>,
) -> Value {
    let name = |zone: Option<Zone>| zone.map(|z| settings.name(Some(z)).to_owned());
    let mut stands: Vec<&Stand> = all.iter().flat_map(|part| &part.stands).collect();
    stands.retain(|s| !own || (s.owner.is_some() && s.owner == settings.zone));
    stands.sort_unstable_by_key(|s| s.shard);
    let shard = |s: &&Stand| {
        let mut told = json!({
            "shard": s.shard.0,
            "owner": name(s.owner),
            "owner_epoch": s.owner_epoch.0,
            "kind": kind(s.kind),
            "to": name(s.to),
            "writes": s.may == May::Writes && (!s.shard.is_global() || left(s.shard) > 0),
        });
        if s.shard.is_global() {
            told["global"] = global(s.shard).into();
            told["lease_ms"] = left(s.shard).into();
        }
        told
    };
    json!({
        "zone": settings.name(settings.zone),
        "map_epoch": epoch(all).0,
        "shards": stands.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Own => "own",
        Kind::Moving => "moving",
        Kind::Lost => "lost",
        Kind::Unlock => "unlock",
    }
}

/// The lines of what happened between two states.
pub(super) fn between(old: &All, new: &All) -> Vec<u8> {
    let mut lines = vec![];
    for (old, new) in old.iter().zip(new).filter(|(old, new)| !Arc::ptr_eq(old, new)) {
        let gone = old.stands.iter().filter(|s| same(s, &new.stands).is_none()).map(|s| (Some(s), None));
        let there = new.stands.iter().map(|s| (same(s, &old.stands), Some(s)));
        for (was, is) in there.chain(gone) {
            let Some(shard) = is.or(was).map(|s| s.shard.0) else { continue };
            for (event, of) in events(was, is) {
                let line = json!({
                    "event": event.name(), "shard": shard, "owner_epoch": of.0, "map_epoch": new.map_epoch.0,
                });
                lines.extend_from_slice(format!("{line}\n").as_bytes());
            }
        }
    }
    lines
}

/// The same shard in a rising list.
fn same<'a>(stand: &Stand, among: &'a [Stand]) -> Option<&'a Stand> {
    among.binary_search_by_key(&stand.shard, |s| s.shard).ok().map(|at| &among[at])
}

/// What happened to one shard, each with the owner epoch of the ownership that it happened to. Steps that lie between two looks are told all
/// the same: no ownership is lost without a block, and none follows another without a lose.
fn events(was: Option<&Stand>, is: Option<&Stand>) -> Vec<(Event, OwnerEpoch)> {
    let of = |s: Option<&Stand>| s.map_or((May::Nothing, OwnerEpoch(0)), |s| (s.may, s.own_epoch));
    let ((before, old), (now, new)) = (of(was), of(is));
    let (block, lose, gain) = ((Event::Block, old), (Event::Lose, old), (Event::Gain, new));
    match (before, now, old == new) {
        (May::Writes, May::Writes, true) | (May::Halted, May::Halted, true) => vec![],
        (May::Writes, May::Writes, false) => vec![block, lose, gain],
        (May::Writes, May::Halted, true) => vec![block],
        (May::Writes, May::Halted, false) | (May::Writes, May::Nothing, _) => vec![block, lose],
        (May::Halted, May::Writes, true) => vec![gain],
        (May::Halted, May::Writes, false) => vec![lose, gain],
        (May::Halted, May::Halted, false) | (May::Halted, May::Nothing, _) => vec![lose],
        (May::Nothing, May::Writes, _) => vec![gain],
        (May::Nothing, May::Halted | May::Nothing, _) => vec![],
    }
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Event::Block => "block",
            Event::Lose => "lose",
            Event::Gain => "gain",
        }
    }
}

/// Said at least every few seconds, and at once when a newer map has been told whole.
pub(super) fn beat(all: &All) -> Vec<u8> {
    let line = json!({ "event": "beat", "map_epoch": epoch(all).0 });
    format!("{line}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(shard: u16, may: May, own_epoch: u64) -> Stand {
        let (owner, own_epoch) = (Some(Zone(0)), OwnerEpoch(own_epoch));
        Stand {
            shard: Shard(shard),
            kind: Kind::Own,
            owner,
            owner_epoch: own_epoch,
            to: None,
            may,
            own_epoch,
            lease_ms: 0,
        }
    }

    fn all(map_epoch: u64, stands: Vec<Stand>) -> All {
        vec![Arc::new(Standing { revision: map_epoch, map_epoch: MapEpoch(map_epoch), stands })]
    }

    #[test]
    fn each_ownership_is_gained_blocked_and_lost_in_this_order_whatever_lies_between_two_looks() {
        let ways = [(May::Writes, 3), (May::Halted, 3), (May::Nothing, 3), (May::Writes, 9), (May::Halted, 9)];
        // Every path over three looks: of each ownership no event comes twice, nor a later one before an earlier one.
        for path in (0..125).map(|n| [ways[n / 25], ways[n / 5 % 5], ways[n % 5]]) {
            if !path.is_sorted_by_key(|(may, e)| {
                (*e, [May::Writes, May::Halted, May::Nothing].iter().position(|m| m == may))
            }) {
                continue;
            }
            let [first, rest @ ..] = path;
            let mut told = vec![];
            let mut was = stand(1, first.0, first.1);
            for (may, e) in rest {
                let is = stand(1, may, e);
                told.extend(events(Some(&was), Some(&is)));
                was = is;
            }
            let of = |e: u64| told.iter().filter(|(_, o)| o.0 == e).map(|(event, _)| *event).collect::<Vec<_>>();
            let begun: &[Event] = match first.0 {
                May::Writes => &[Event::Block, Event::Lose],
                May::Halted => &[Event::Lose],
                May::Nothing => &[],
            };
            if first.1 == 3 {
                let ended = path[2].1 == 9 || path[2].0 == May::Nothing;
                let halted = path[2].0 == May::Halted;
                let expected = if ended { begun } else { &begun[..usize::from(halted && first.0 == May::Writes)] };
                assert_eq!(of(3), expected, "{path:?}");
                let writes = path[1..].contains(&(May::Writes, 9));
                let nine: &[Event] = match (writes, path[2].0) {
                    (false, _) => &[],
                    (true, May::Halted) => &[Event::Gain, Event::Block],
                    (true, May::Writes | May::Nothing) => &[Event::Gain],
                };
                assert_eq!(of(9), nine, "{path:?}");
            }
        }
        assert_eq!(events(None, Some(&stand(1, May::Writes, 4))), [(Event::Gain, OwnerEpoch(4))], "a new shard");
        let lost = [(Event::Block, OwnerEpoch(4)), (Event::Lose, OwnerEpoch(4))];
        assert_eq!(events(Some(&stand(1, May::Writes, 4)), None), lost, "one that the map does not know any more");
        let opened = events(Some(&stand(1, May::Halted, 4)), Some(&stand(1, May::Writes, 4)));
        assert_eq!(opened, [(Event::Gain, OwnerEpoch(4))], "a log that restarted");
    }

    #[test]
    fn lines_name_the_shard_the_ownership_and_the_map() {
        let old = all(4, vec![stand(1, May::Writes, 2), stand(5, May::Nothing, 0), stand(7, May::Writes, 1)]);
        let new = all(6, vec![stand(1, May::Halted, 2), stand(5, May::Writes, 6), stand(7, May::Writes, 1)]);
        let lines = String::from_utf8(between(&old, &new)).unwrap();
        let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            lines,
            [
                json!({ "event": "block", "shard": 1, "owner_epoch": 2, "map_epoch": 6 }),
                json!({ "event": "gain", "shard": 5, "owner_epoch": 6, "map_epoch": 6 })
            ]
        );
        assert!(between(&new, &new).is_empty());
    }
}
