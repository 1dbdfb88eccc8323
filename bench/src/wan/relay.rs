//! The same link for machines without root: a relay of TCP connections with delay, rate and cuts.
//!
//! TCP ends at the relay and begins anew, so that nothing can be lost in it: what a cut holds up waits, and connections stay open. A
//! connection is accepted at once; its first byte travels when the target has been reached. An error at one end is an end at the other.

use super::cut::Cuts;
use super::line::Settings;
use super::options::Options;
use crate::random::Random;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes read at once, and how many such pieces may be on their way in one direction of a connection: 16 MiB.
const PIECE_BYTES_MAX: usize = 16 << 10;
const PIECES_MAX: usize = 1024;
const CONNECTIONS_MAX: usize = 256;
/// How often a delivery that a cut by hand holds up looks again.
const LOOK: Duration = Duration::from_millis(5);
/// A corrupted segment is one in so many bytes.
const SEGMENT_BYTES: usize = 1448;

/// `LISTEN=TARGET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub listen: SocketAddr,
    pub target: SocketAddr,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Route, String> {
        let wrong = || format!("{text:?}: expected LISTEN=TARGET, as in 127.0.0.1:7000=127.0.0.1:7001");
        let (listen, target) = text.split_once('=').ok_or_else(wrong)?;
        let address = |text: &str| text.parse().map_err(|_| wrong());
        Ok(Route { listen: address(listen)?, target: address(target)? })
    }
}

/// One direction of all connections: they share its rate.
pub struct Pipe {
    pub settings: Settings,
    pub cuts: Cuts,
    random: Random,
    free_at_ns: u64,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    pub bytes: u64,
    pub corrupted: u64,
}

impl Pipe {
    fn new(settings: Settings, cuts: Cuts, seed: u64) -> Pipe {
        Pipe { settings, cuts, random: Random(seed), free_at_ns: 0, counters: Counters::default() }
    }

    /// Takes bytes, may flip bits of them, and says when they arrive.
    fn on_bytes(&mut self, bytes: &mut [u8], now_ns: u64) -> u64 {
        self.counters.bytes += bytes.len() as u64;
        if self.settings.corrupt > 0.0 {
            for segment in bytes.chunks_mut(SEGMENT_BYTES) {
                if self.random.fraction() < self.settings.corrupt {
                    let at = self.random.below(segment.len() as u64) as usize;
                    segment[at] ^= 1 << self.random.below(8);
                    self.counters.corrupted += 1;
                }
            }
        }
        let takes = self.settings.rate_bits_per_s.map_or(0, |rate| bytes.len() as u64 * 8_000_000_000 / rate.max(1));
        self.free_at_ns = self.free_at_ns.max(self.cuts.over_at(now_ns)) + takes;
        let late_ns = self.settings.delay_ns + self.random.below(self.settings.jitter_ns + 1);
        self.cuts.over_at(self.free_at_ns + late_ns)
    }
}

/// What all threads share.
struct Shared {
    pipes: Mutex<[Pipe; 2]>,
    open: AtomicUsize,
    begun: Instant,
}

impl Shared {
    fn pipes(&self) -> MutexGuard<'_, [Pipe; 2]> {
        self.pipes.lock().expect("no thread of the relay panics")
    }

    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }
}

/// A relay at work; its threads end with the program.
pub struct Relay {
    shared: Arc<Shared>,
}

impl Relay {
    /// Listens on every route; also where: port 0 is any.
    pub fn start(routes: &[Route], options: &Options) -> Result<(Relay, Vec<SocketAddr>), String> {
        let pipes = [options.seed, !options.seed].map(|seed| Pipe::new(options.settings(), options.cuts(), seed));
        let shared = Shared { pipes: Mutex::new(pipes), open: AtomicUsize::new(0), begun: Instant::now() };
        let shared = Arc::new(shared);
        let mut at = Vec::new();
        for route in routes {
            let said = |e: io::Error| format!("--relay: cannot listen on {}: {e}", route.listen);
            let listener = TcpListener::bind(route.listen).map_err(said)?;
            at.push(listener.local_addr().map_err(said)?);
            let (shared, target) = (Arc::clone(&shared), route.target);
            thread::spawn(move || accept(&listener, target, &shared));
        }
        Ok((Relay { shared }, at))
    }

    /// Changes both directions from now on.
    pub fn set(&self, change: impl Fn(&mut Settings)) {
        self.shared.pipes().iter_mut().for_each(|p| change(&mut p.settings));
    }

    pub fn cut(&self, cut: bool) {
        self.shared.pipes().iter_mut().for_each(|p| p.cuts.by_hand = cut);
    }

    /// Forward and back.
    pub fn seen(&self) -> [Counters; 2] {
        let pipes = self.shared.pipes();
        [pipes[0].counters, pipes[1].counters]
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else {
            thread::sleep(LOOK); // out of descriptors, most likely
            continue;
        };
        if shared.open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            eprintln!("ezbench wan: a connection is refused: {CONNECTIONS_MAX} are open");
            continue;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A target that cannot be reached, or goes, ends this connection alone: the client sees its end.
            let _ = connection(&client, target, &shared);
            let _ = client.shutdown(Shutdown::Both);
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn connection(client: &TcpStream, target: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let due_ns = shared.pipes()[0].on_bytes(&mut [], shared.now_ns());
    wait(shared, 0, due_ns);
    let server = TcpStream::connect(target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        for (way, from, to) in [(0, client, &server), (1, &server, client)] {
            let (queue, arrivals) = sync_channel(PIECES_MAX);
            scope.spawn(move || take(from, &queue, &shared.pipes, way, shared.begun));
            scope.spawn(move || {
                if deliver(to, &arrivals, shared, way).is_err() {
                    // The other three threads wait on these sockets.
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                }
            });
        }
    });
    Ok(())
}

type Piece = (u64, io::Result<Vec<u8>>);

/// Reads until the end, which travels as an empty piece, or an error, which travels as itself.
fn take(mut from: &TcpStream, queue: &SyncSender<Piece>, pipes: &Mutex<[Pipe; 2]>, way: usize, begun: Instant) {
    let mut buffer = vec![0; PIECE_BYTES_MAX];
    loop {
        let read = match from.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            read => read.map(|n| buffer[..n].to_vec()),
        };
        let mut piece = read;
        let mut none = Vec::new();
        let bytes = piece.as_mut().unwrap_or(&mut none);
        let now_ns = begun.elapsed().as_nanos() as u64;
        let due_ns = pipes.lock().expect("no thread of the relay panics")[way].on_bytes(bytes, now_ns);
        let last = bytes.is_empty();
        if queue.send((due_ns, piece)).is_err() || last {
            return;
        }
    }
}

fn deliver(mut to: &TcpStream, arrivals: &Receiver<Piece>, shared: &Shared, way: usize) -> io::Result<()> {
    for (due_ns, piece) in arrivals {
        wait(shared, way, due_ns);
        let bytes = piece?;
        if bytes.is_empty() {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(&bytes)?;
    }
    Ok(())
}

/// Until it is due and nobody cuts by hand.
fn wait(shared: &Shared, way: usize, due_ns: u64) {
    loop {
        let now_ns = shared.now_ns();
        if now_ns < due_ns {
            thread::sleep(Duration::from_nanos(due_ns - now_ns));
        } else if shared.pipes()[way].cuts.by_hand {
            thread::sleep(LOOK);
        } else {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pipe(cuts: &[&str], corrupt: f64) -> Pipe {
        let settings = Settings {
            rate_bits_per_s: Some(8_000_000), // a byte a microsecond
            delay_ns: 10 * MS,
            jitter_ns: 0,
            loss: 0.0,
            corrupt,
            queue_bytes: 0,
        };
        Pipe::new(settings, Cuts { scheduled: cuts.iter().map(|c| c.parse().unwrap()).collect(), by_hand: false }, 5)
    }

    #[test]
    fn bytes_arrive_after_the_delay_at_the_rate_that_all_share() {
        let mut pipe = pipe(&[], 0.0);
        let due = [(1000, 0), (2000, 0), (1000, 50 * MS)].map(|(n, now)| pipe.on_bytes(&mut vec![0; n], now) / MS);
        assert_eq!((due, pipe.counters.bytes), ([11, 13, 61], 4000));
    }

    #[test]
    fn a_cut_holds_up_what_is_taken_and_what_would_arrive_in_it() {
        let mut pipe = pipe(&["20ms-60ms"], 0.0);
        let due = [5, 11, 30, 59, 60].map(|at| pipe.on_bytes(&mut [], at * MS) / MS);
        assert_eq!(due, [15, 60, 70, 70, 70]);
    }

    #[test]
    fn flipped_bits_are_as_many_as_the_chance_says_and_are_counted() {
        let mut pipe = pipe(&[], 0.5);
        let mut bytes = vec![0; SEGMENT_BYTES * 1000];
        pipe.on_bytes(&mut bytes, 0);
        let bits: u64 = bytes.iter().map(|b| u64::from(b.count_ones())).sum();
        assert_eq!(bits, pipe.counters.corrupted);
        assert!((400..600).contains(&bits), "{bits}");
    }

    #[test]
    fn a_route_is_two_addresses() {
        let route: Route = "127.0.0.1:0=127.0.0.1:9".parse().unwrap();
        assert_eq!((route.listen.port(), route.target.port()), (0, 9));
        for wrong in ["", "127.0.0.1:0", "a=b", "127.0.0.1=127.0.0.1:1"] {
            assert!(wrong.parse::<Route>().is_err(), "{wrong:?} was taken");
        }
    }
}
