//! Decides how far back a log is kept: what nobody needs may go, and on a volume that fills up, what only an absent peer needs.
//!
//! ```text
//! never beyond     the store's durable applied position, and what is still looked through for a cut
//! not beyond       what each peer has applied, until the volume is as full as `Policy::peers_until` says
//! not even then    the newest `keep_bytes`, until the volume is that full: for those who look back
//! ```

/// How much room a log may take for others.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Policy {
    /// Bytes of sealed segments that are kept though nobody needs them.
    pub keep_bytes: u64,
    /// A peer that is behind holds the log back until this share of the volume is used, 0 to 1; then it is left behind.
    pub peers_until: f64,
}

/// What is known of one log.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Known {
    /// The store's durable applied position.
    pub applied: u64,
    /// The next seq of a scan under way.
    pub scan: Option<u64>,
    /// The lowest applied position of all who are to have a copy; `None`: nobody is.
    pub peers: Option<u64>,
    /// The last seq of the oldest segment.
    pub oldest: u64,
    /// The share of the volume that is used, 0 to 1.
    pub used: f64,
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

/// What may go now. A full volume takes one segment at a time from those who are behind.
pub fn release(policy: Policy, known: Known) -> Release {
    let safe = known.scan.map_or(known.applied, |from| known.applied.min(from.saturating_sub(1)));
    let shared = known.peers.map_or(safe, |peers| safe.min(peers));
    let is_full = known.used >= policy.peers_until;
    let keep_bytes = if is_full { 0 } else { policy.keep_bytes };
    if is_full && known.oldest > shared && known.oldest <= safe {
        return Release { below: known.oldest + 1, keep_bytes, leaves_behind: true };
    }
    Release { below: shared + 1, keep_bytes, leaves_behind: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { keep_bytes: 100, peers_until: 0.7 };
    const KNOWN: Known = Known { applied: 50, scan: None, peers: Some(30), oldest: 20, used: 0.5 };

    fn check(known: Known, below: u64, keep_bytes: u64, leaves_behind: bool) {
        assert_eq!(release(POLICY, known), Release { below, keep_bytes, leaves_behind }, "{known:?}");
    }

    #[test]
    fn what_anyone_needs_stays() {
        check(KNOWN, 31, 100, false);
        check(Known { applied: 10, ..KNOWN }, 11, 100, false);
        check(Known { scan: Some(5), ..KNOWN }, 5, 100, false);
        check(Known { scan: Some(0), ..KNOWN }, 1, 100, false);
        check(Known { peers: None, ..KNOWN }, 51, 100, false);
        check(Known { peers: Some(0), ..KNOWN }, 1, 100, false);
    }

    #[test]
    fn a_volume_that_fills_up_takes_what_is_kept_for_looking_back_before_it_leaves_a_peer_behind() {
        check(Known { used: 0.7, ..KNOWN }, 31, 0, false);
        check(Known { used: 0.9, oldest: 30, ..KNOWN }, 31, 0, false);
        check(Known { used: 0.9, oldest: 40, ..KNOWN }, 41, 0, true);
        check(Known { used: 0.69, oldest: 40, ..KNOWN }, 31, 100, false);
    }

    #[test]
    fn a_full_volume_takes_nothing_that_the_store_has_not_applied() {
        check(Known { used: 1.0, oldest: 51, ..KNOWN }, 31, 0, false);
        check(Known { used: 1.0, oldest: 40, scan: Some(35), ..KNOWN }, 31, 0, false);
    }
}
