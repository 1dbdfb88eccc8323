//! Control's half of the router's listeners: bound anew or taken over from a predecessor, held so that a successor can have
//! them, let go when they end.

use super::reload::Place;
use crate::router::Side;
use crate::uring::{self, Listener};
use std::io::ErrorKind::AddrInUse;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A listener that was removed may stand in the way of a probe for so long.
const CLOSING: Duration = Duration::from_secs(2);

/// A handle of every listener. As long as one is held the kernel keeps the socket open, whatever the cores do.
#[derive(Default)]
pub struct Held {
    listeners: Vec<Listener>,
    closing: Vec<(SocketAddr, Instant)>,
}

/// What `bind` made: listeners for each core, and those of a predecessor that nobody wants any more.
#[derive(Default)]
pub struct Bound {
    /// By core.
    pub cores: Vec<Vec<Listener>>,
    /// To be accepted from until they are empty, then closed.
    pub unwanted: Vec<Listener>,
}

impl Held {
    /// One listener for each core and address: those in `inherited` first, spread over the cores, others bound anew.
    /// All or nothing; on an error nothing listens that did not before.
    pub fn bind(&mut self, cores: usize, wanted: &[Place], mut inherited: Vec<Listener>) -> Result<Bound, String> {
        let mut bound = Bound { cores: (0..cores).map(|_| vec![]).collect(), unwanted: vec![] };
        for Place { key, at, side } in wanted {
            let is = |l: &mut Listener| l.side() == *side && l.local_addr().is_ok_and(|own| own == *at);
            let own: Vec<Listener> = inherited.extract_if(.., is).collect();
            let all = self.each_core(cores, *at, *side, own).map_err(|e| taken(key, *at, &e))?;
            for (core, listener) in all.into_iter().enumerate() {
                bound.cores[core % cores].push(listener);
            }
        }
        bound.unwanted = inherited;
        let held: std::io::Result<Vec<_>> = bound.cores.iter().flatten().map(Listener::try_clone).collect();
        self.listeners.extend(held.map_err(|e| format!("listeners: {e}"))?);
        Ok(bound)
    }

    /// As many as there are cores, or more if more were inherited: to close one would reset what is in its queue.
    fn each_core(
        &self,
        cores: usize,
        at: SocketAddr,
        side: Side,
        own: Vec<Listener>,
    ) -> std::io::Result<Vec<Listener>> {
        let mut all = own;
        let inherited = all.len();
        if inherited == 0 && !self.closes(at) {
            // A port that cores share could also be shared with a stranger: one plain bind tells whether anyone is there.
            uring::is_free(at)?;
        }
        while all.len() < cores {
            all.push(match uring::listen(at, side) {
                // It was not made to be shared: this core accepts from the same queue.
                Err(e) if e.kind() == AddrInUse && inherited > 0 => all[all.len() % inherited].try_clone()?,
                made => made?,
            });
        }
        Ok(all)
    }

    fn closes(&self, at: SocketAddr) -> bool {
        self.closing.iter().any(|(own, since)| *own == at && since.elapsed() < CLOSING)
    }

    /// Lets go of the listeners at `removed`, but for those that were bound after it: the cores' handles are then the last.
    pub fn release(&mut self, removed: &[Place], before: usize) {
        let goes =
            |l: &Listener| removed.iter().any(|p| l.side() == p.side && l.local_addr().is_ok_and(|at| at == p.at));
        let newer = self.listeners.split_off(before);
        self.listeners.retain(|l| !goes(l));
        self.listeners.extend(newer);
        self.closing.retain(|(_, since)| since.elapsed() < CLOSING);
        self.closing.extend(removed.iter().map(|p| (p.at, Instant::now())));
    }

    /// Every listener.
    pub fn all(&self) -> &[Listener] {
        &self.listeners
    }
}

/// Why nothing can listen there.
pub fn taken(key: &str, at: SocketAddr, e: &std::io::Error) -> String {
    match e.kind() {
        AddrInUse => format!("[router] {key} = {at}: another process listens there (`ss -ltnp` names it)"),
        _ => format!("[router] {key} = {at}: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "127.0.0.1:0";

    fn bound(count: usize) -> (SocketAddr, Vec<Listener>) {
        let first = uring::listen(ANY.parse().unwrap(), Side::Client).unwrap();
        let at = first.local_addr().unwrap();
        let rest = (1..count).map(|_| uring::listen(at, Side::Client).unwrap());
        (at, std::iter::once(first).chain(rest).collect())
    }

    fn place(at: SocketAddr) -> Place {
        Place { key: "listen", at, side: Side::Client }
    }

    fn spread(cores: usize, inherited: usize) -> Vec<usize> {
        let (at, own) = bound(inherited);
        let bound = Held::default().bind(cores, &[place(at)], own).unwrap();
        bound.cores.iter().map(Vec::len).collect()
    }

    #[test]
    fn inherited_listeners_are_all_kept_whatever_the_number_of_cores() {
        assert_eq!(spread(2, 2), [1, 1]);
        assert_eq!(spread(1, 3), [3]);
        assert_eq!(spread(2, 3), [2, 1]);
        assert_eq!(spread(3, 1), [1, 1, 1], "bound anew beside it");
    }

    #[test]
    fn a_strangers_port_is_refused_and_so_is_everything_else_with_it() {
        let stranger = std::net::TcpListener::bind(ANY).unwrap();
        let (free, own) = bound(1);
        drop(own);
        let mut held = Held::default();
        let wanted = [place(free), Place { key: "peer_listen", at: stranger.local_addr().unwrap(), side: Side::Peer }];
        let why = held.bind(2, &wanted, vec![]).err().unwrap();
        assert!(why.starts_with("[router] peer_listen = ") && why.contains("another process"), "{why}");
        assert!(held.all().is_empty() && uring::is_free(free).is_ok());
    }

    #[test]
    fn an_address_that_is_not_wanted_any_more_is_given_back_to_be_emptied() {
        let (at, own) = bound(2);
        let bound = Held::default().bind(2, &[], own).unwrap();
        assert_eq!(bound.unwanted.len(), 2);
        assert!(bound.unwanted.iter().all(|l| l.local_addr().unwrap() == at));
    }
}
