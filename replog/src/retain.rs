//! Decides how far back a log is kept: what nobody needs may go, and on a volume that fills up, what only an absent peer needs.
//!
//! ```text
//! never beyond     the store's durable applied position, and what is still looked through for a cut
//! nor              what a peer that is being seeded will ask for next
//! not beyond       what each peer has applied, until the volume is tight
//! not even then    the newest `keep_bytes`, until the volume is tight: for those who look back
//! ```
//!
//! A volume is tight when it is as full as `Policy::peers_until` says *and* the logs are part of the reason: on one that is full of
//! other people's files, a gap in a peer's copy would make no room worth having.

/// How much room a log may take for others.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Policy {
    /// Bytes of sealed segments that are kept though nobody needs them.
    pub keep_bytes: u64,
    /// A peer that is behind holds the log back until this share of the volume is used, 0 to 1; then it is left behind.
    pub peers_until: f64,
    /// But not while the logs together take less than this share of what is free: `WORTH`.
    pub worth: f64,
}

/// As free room shrinks, logs that are a tenth of it are what fills the volume next.
pub const WORTH: f64 = 0.1;

/// The volume that the logs are on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Volume {
    /// The share of it that is used, 0 to 1.
    pub used: f64,
    /// Bytes that are free for us.
    pub free_bytes: u64,
    /// Bytes of all logs and mirrors that are judged together.
    pub log_bytes: u64,
}

impl Volume {
    /// Is room wanted, and would segments make any?
    pub fn is_tight(&self, policy: Policy) -> bool {
        self.used >= policy.peers_until && self.log_bytes as f64 >= policy.worth * self.free_bytes as f64
    }
}

/// What is known of one log.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Known {
    /// The store's durable applied position.
    pub applied: u64,
    /// The next seq of a scan under way.
    pub scan: Option<u64>,
    /// A peer is being seeded, and will go on behind this seq.
    pub seeded: Option<u64>,
    /// The lowest applied position of all who are to have a copy; `None`: nobody is.
    pub peers: Option<u64>,
    /// The last seq of the oldest segment.
    pub oldest: u64,
    /// Where it is.
    pub volume: Volume,
}

/// What may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// Segments below this seq, for `Log::release`.
    pub below: u64,
    /// But for the newest so many bytes.
    pub keep_bytes: u64,
    /// Some peer still lacks what goes: it falls into a gap.
    pub leaves_behind: bool,
}

/// What may go now. A tight volume takes one segment at a time from those who are behind.
pub fn release(policy: Policy, known: Known) -> Release {
    let safe = known.scan.map_or(known.applied, |from| known.applied.min(from.saturating_sub(1)));
    let safe = known.seeded.map_or(safe, |seq| safe.min(seq));
    let shared = known.peers.map_or(safe, |peers| safe.min(peers));
    let is_tight = known.volume.is_tight(policy);
    let keep_bytes = if is_tight { 0 } else { policy.keep_bytes };
    if is_tight && known.oldest > shared && known.oldest <= safe {
        return Release { below: known.oldest + 1, keep_bytes, leaves_behind: true };
    }
    Release { below: shared + 1, keep_bytes, leaves_behind: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { keep_bytes: 100, peers_until: 0.7, worth: WORTH };
    const KNOWN: Known =
        Known { applied: 50, scan: None, seeded: None, peers: Some(30), oldest: 20, volume: used(0.5) };

    /// Logs that take all that is not free.
    const fn used(share: f64) -> Volume {
        Volume { used: share, free_bytes: ((1.0 - share) * 1e9) as u64, log_bytes: (share * 1e9) as u64 }
    }

    fn check(known: Known, below: u64, keep_bytes: u64, leaves_behind: bool) {
        assert_eq!(release(POLICY, known), Release { below, keep_bytes, leaves_behind }, "{known:?}");
    }

    #[test]
    fn what_anyone_needs_stays() {
        check(KNOWN, 31, 100, false);
        check(Known { applied: 10, ..KNOWN }, 11, 100, false);
        check(Known { scan: Some(5), ..KNOWN }, 5, 100, false);
        check(Known { seeded: Some(8), ..KNOWN }, 9, 100, false);
        check(Known { scan: Some(0), ..KNOWN }, 1, 100, false);
        check(Known { peers: None, ..KNOWN }, 51, 100, false);
        check(Known { peers: Some(0), ..KNOWN }, 1, 100, false);
    }

    #[test]
    fn a_volume_that_fills_up_takes_what_is_kept_for_looking_back_before_it_leaves_a_peer_behind() {
        check(Known { volume: used(0.7), ..KNOWN }, 31, 0, false);
        check(Known { volume: used(0.9), oldest: 30, ..KNOWN }, 31, 0, false);
        check(Known { volume: used(0.9), oldest: 40, ..KNOWN }, 41, 0, true);
        check(Known { volume: used(0.69), oldest: 40, ..KNOWN }, 31, 100, false);
    }

    /// Otherwise a zone that was down for a second fell into a gap on a disk that others had filled, for 4 MiB of 20 GB.
    #[test]
    fn nobody_is_left_behind_for_room_that_is_not_worth_it() {
        let volume = |log_bytes| Volume { used: 0.81, free_bytes: 20_000, log_bytes };
        check(Known { volume: volume(1999), oldest: 40, ..KNOWN }, 31, 100, false);
        check(Known { volume: volume(2000), oldest: 40, ..KNOWN }, 41, 0, true);
    }

    #[test]
    fn a_full_volume_takes_nothing_that_the_store_has_not_applied() {
        check(Known { volume: used(1.0), oldest: 51, ..KNOWN }, 31, 0, false);
        check(Known { volume: used(1.0), oldest: 40, scan: Some(35), ..KNOWN }, 31, 0, false);
        check(Known { volume: used(1.0), oldest: 40, seeded: Some(35), ..KNOWN }, 31, 0, false);
    }
}
