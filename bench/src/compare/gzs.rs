//! Stands in for the Global Zone Service: hands out a map by long poll, as `ezone` asks for it, and publishes the next one
//! when told to, or every so often.

use crate::request;
use crate::sys;
use shardmap::fence::{Fence, Fences};
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::History;
use shardmap::point::Point;
use shardmap::{MapEpoch, Shard, Zone};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Shards of the made map; all are bj's.
const SHARDS: u16 = 1000;
/// The longest that a poll may wait.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The newest map as bytes, and its number.
type Newest = (Mutex<(u64, Arc<Vec<u8>>)>, Condvar);

/// Serves until dropped.
pub struct Gzs {
    address: SocketAddr,
    newest: Arc<Newest>,
    publishing: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Drop for Gzs {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.newest.1.notify_all();
        let _ = TcpStream::connect(self.address); // so that the listener looks up
    }
}

impl Gzs {
    /// Hands out `map`; while `publish(true)`, a new one `every` so often. Its threads run only when nothing else would.
    pub fn start(map: Map, every: Duration) -> Result<Gzs, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("the GZS finds no port: {e}"))?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let newest: Arc<Newest> = Arc::new((Mutex::new((map.epoch().0, Arc::new(map.encode()))), Condvar::new()));
        let gzs = Gzs { address, newest: newest.clone(), publishing: Arc::default(), ended: Arc::default() };
        let ended = gzs.ended.clone();
        thread::spawn(move || {
            let _ = sys::run_last(); // a refusal costs accuracy, not correctness
            for stream in listener.incoming().flatten().take_while(|_| !ended.load(Ordering::Relaxed)) {
                let (newest, ended) = (newest.clone(), ended.clone());
                thread::spawn(move || drop(serve(stream, &newest, &ended)));
            }
        });
        let (newest, publishing, ended) = (gzs.newest.clone(), gzs.publishing.clone(), gzs.ended.clone());
        thread::spawn(move || {
            let _ = sys::run_last();
            publish(map, every, &newest, &publishing, &ended);
        });
        Ok(gzs)
    }

    /// `gzs = ".."`, as a configuration names it.
    pub fn source(&self) -> String {
        format!("gzs = \"http://{}\"", self.address)
    }

    /// Whether new maps are to come.
    pub fn publish(&self, on: bool) {
        self.publishing.store(on, Ordering::Relaxed);
    }

    /// The number of the newest map.
    pub fn epoch(&self) -> u64 {
        self.newest.0.lock().expect("no one panics while holding it").0
    }
}

/// Each next map differs from the last in one shard's entry: a move that begins, and one that is called off. Nobody asks
/// for that shard. It is made ahead, so that it is published on time.
fn publish(mut map: Map, every: Duration, newest: &Newest, publishing: &AtomicBool, ended: &AtomicBool) {
    let mut due = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let next = successor(&map);
        let bytes = Arc::new(next.encode());
        while !publishing.load(Ordering::Relaxed) || Instant::now() < due {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            if !publishing.load(Ordering::Relaxed) {
                due = Instant::now();
            }
            thread::sleep(Duration::from_millis(2));
        }
        due += every;
        map = next;
        *newest.0.lock().expect("no one panics while holding it") = (map.epoch().0, bytes);
        newest.1.notify_all();
    }
}

fn successor(map: &Map) -> Map {
    let (shard, epoch) = (Shard(SHARDS - 1), map.epoch().next());
    let history = map.history(shard).expect("the made map has this shard");
    let entry = history.begin_move(Zone(1), epoch).or_else(|_| history.abort(epoch));
    let entry = entry.expect("a shard that is not moving may begin to, and one that is may stop");
    map.with_entries(vec![(shard, entry)]).expect("one legal entry is a legal map")
}

fn serve(mut stream: TcpStream, newest: &Newest, ended: &AtomicBool) -> std::io::Result<()> {
    let (mut bytes, mut buffer) = (vec![], [0; 4096]);
    stream.set_nodelay(true)?;
    loop {
        while request::parse(&bytes).is_ok_and(|head| head.is_none()) {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
        let Ok(Some(head)) = request::parse(&bytes) else { return Ok(()) };
        let line = String::from_utf8_lossy(&bytes[..head.used]).into_owned();
        bytes.drain(..head.used);
        let after = number_of(&line, "after=").unwrap_or(0);
        let wait = Duration::from_millis(number_of(&line, "wait_ms=").unwrap_or(0)).min(WAIT_MAX);
        let held = newest.0.lock().expect("no one panics while holding it");
        let old = |seen: &mut (u64, Arc<Vec<u8>>)| seen.0 <= after && !ended.load(Ordering::Relaxed);
        let (held, _) = newest.1.wait_timeout_while(held, wait, old).expect("no one panics while holding it");
        let (epoch, map) = held.clone();
        drop(held);
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        if epoch > after {
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", map.len()).as_bytes())?;
            stream.write_all(&map)?;
        } else {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        }
    }
}

fn number_of(line: &str, name: &str) -> Option<u64> {
    let rest = &line[line.find(name)? + name.len()..];
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// A map of so many fences, all of them squares side by side, and so many shops placed by number.
pub fn made_map(fences: usize, shops: usize) -> Result<Map, String> {
    let list = (0..fences).map(square).collect::<Option<Vec<_>>>().ok_or("a fence beyond the globe")?;
    let zones = [(0, "bj"), (1, "sh")].map(|(id, name)| ZoneInfo { id: Zone(id), name: name.into() });
    let parts = Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(Shard(0)),
        zones: zones.to_vec(),
        histories: (0..SHARDS).map(|n| (Shard(n), History::new(Zone(0), MapEpoch(1)))).collect(),
        globals: Default::default(),
        exceptions: Exceptions {
            orders: vec![],
            shops: (0..shops as u64).map(|n| (shop(n), Shard((n % u64::from(SHARDS - 1)) as u16))).collect(),
        },
        fences: Arc::new(Fences::new(list, 0, 20).map_err(|e| e.to_string())?),
    };
    Map::from_parts(parts).map_err(|all| all.iter().map(|p| format!("{p}\n")).collect())
}

/// The number of the `n`th shop: none is an id of our own.
pub fn shop(n: u64) -> u64 {
    100_000_000 + n * 7
}

/// A tenth of a degree wide, forty in a row, in China's middle.
fn square(n: usize) -> Option<Fence> {
    let (lng, lat) = (1_000_000_000 + (n % 40) as i32 * 1_000_000, 250_000_000 + (n / 40) as i32 * 1_000_000);
    let corner = |east: i32, north: i32| Point::new(lng + east * 1_000_000, lat + north * 1_000_000);
    let ring = vec![corner(0, 0)?, corner(1, 0)?, corner(1, 1)?, corner(0, 1)?];
    Some(Fence { name: format!("square {n}"), shard: Shard((n % usize::from(SHARDS - 1)) as u16), rings: vec![ring] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    #[test]
    fn a_made_map_places_its_shops_and_points_and_has_successors() {
        let map = made_map(100, 5000).unwrap();
        let shard = |text: &str| {
            let tag = shardmap::tag::Tag::parse(text.as_bytes());
            map.route(&tag, false, 1_790_000_000_000).unwrap().shard
        };
        assert_eq!(shard(&format!("shopid={}", shop(4999))), Shard((4999 % 999) as u16));
        assert_eq!(shard("loc=100.15,25.05"), Shard(1));
        let (second, third) = (successor(&map), successor(&successor(&map)));
        assert_eq!((second.epoch().0, third.epoch().0), (2, 3));
        assert_eq!(Map::decode_after(&third.encode(), &map).unwrap().digest(), third.digest());
    }

    #[test]
    fn a_poll_waits_for_the_next_map_and_gets_it() {
        let gzs = Gzs::start(made_map(10, 10).unwrap(), Duration::from_millis(5)).unwrap();
        let mut stream = TcpStream::connect(gzs.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut ask = |after: u64, wait_ms: u64| {
            write!(stream, "GET /v1/map?after={after}&wait_ms={wait_ms} HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
            let mut from = std::io::BufReader::new(&stream);
            let (mut first, mut line, mut len) = (String::new(), String::new(), 0);
            from.read_line(&mut first).unwrap();
            while from.read_line(&mut line).unwrap() > 2 {
                len = number_of(&line, "content-length: ").unwrap_or(len);
                line.clear();
            }
            let mut body = vec![0; len as usize];
            from.read_exact(&mut body).unwrap();
            (first[9..12].to_owned(), Map::decode(&body).ok().map(|m| m.epoch().0))
        };
        assert_eq!(ask(0, 0), ("200".into(), Some(1)));
        assert_eq!(ask(1, 20), ("204".into(), None));
        gzs.publish(true);
        assert!(matches!(ask(1, 10_000), (status, Some(2..)) if status == "200"));
    }
}
