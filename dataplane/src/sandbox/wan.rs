//! The WAN of a sandbox: a relay for each way that connections take between two sides, all of a pair cut, healed or slowed together.

use super::relay::Relay;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// An end of the WAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// A zone, by its number.
    Zone(usize),
    /// The Global Zone Service.
    Service,
    /// Who places orders: near the zones, so that their lines are no part of the WAN unless they are named.
    Clients,
}

/// Which lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lines {
    /// Those between these two.
    Between(Side, Side),
    /// Those of this side to everyone, but for its clients.
    Of(Side),
    /// All between zones: the service is reached, and clients reach the zones.
    Zones,
    /// All.
    All,
}

impl Lines {
    fn has(self, from: Side, to: Side) -> bool {
        match self {
            Lines::Between(a, b) => (from, to) == (a, b) || (from, to) == (b, a),
            Lines::Of(side) => (from == side || to == side) && (from != Side::Clients || side == Side::Clients),
            Lines::Zones => matches!((from, to), (Side::Zone(_), Side::Zone(_))),
            Lines::All => true,
        }
    }
}

/// Every relay. Dropped, it takes its connections along.
#[derive(Default)]
pub struct Wan {
    relays: Vec<(Side, Side, Relay)>,
}

impl Wan {
    /// One more way, for connections that `from` opens to `target`, which is at `to`; where to connect instead. Must be called within
    /// a tokio runtime.
    pub fn add(&mut self, from: Side, to: Side, target: SocketAddr, one_way: Duration) -> io::Result<SocketAddr> {
        let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], 0)), target, one_way)?;
        let address = relay.address();
        self.relays.push((from, to, relay));
        Ok(address)
    }

    fn each(&self, lines: Lines) -> impl Iterator<Item = &Relay> {
        self.relays.iter().filter(move |(from, to, _)| lines.has(*from, *to)).map(|(_, _, relay)| relay)
    }

    /// Resets every connection and each new one: the other end hears of it.
    pub fn cut(&self, lines: Lines) {
        self.each(lines).for_each(Relay::cut);
    }

    /// Delivers nothing and tells nobody, as a line does whose packets are lost.
    pub fn silence(&self, lines: Lines) {
        self.each(lines).for_each(Relay::silence);
    }

    /// Ends `cut` and `silence`.
    pub fn heal(&self, lines: Lines) {
        self.each(lines).for_each(Relay::heal);
    }

    /// From now on each way takes so long.
    pub fn set_one_way(&self, lines: Lines, one_way: Duration) {
        self.each(lines).for_each(|relay| relay.set_one_way(one_way));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_by_their_ends_in_either_direction() {
        let (a, b, c, s) = (Side::Zone(0), Side::Zone(1), Side::Zone(2), Side::Service);
        let check = |lines: Lines, expected: [bool; 4]| {
            let seen = [(a, b), (b, a), (b, c), (a, s)].map(|(from, to)| lines.has(from, to));
            assert_eq!(seen, expected, "{lines:?}: a-b, b-a, b-c, a-service");
        };
        check(Lines::Between(b, a), [true, true, false, false]);
        check(Lines::Of(c), [false, false, true, false]);
        check(Lines::Of(a), [true, true, false, true]);
        check(Lines::Of(s), [false, false, false, true]);
        check(Lines::Zones, [true, true, true, false]);
        check(Lines::All, [true; 4]);
        let clients = |lines: Lines| lines.has(Side::Clients, a);
        assert!(clients(Lines::Between(Side::Clients, a)) && clients(Lines::Of(Side::Clients)) && clients(Lines::All));
        assert!(!clients(Lines::Of(a)) && !clients(Lines::Zones));
    }
}
