//! A GZS as a log sees it: the newest map, by long poll. What maps there are is a test's word.

use crate::process_kit::{map, read_head};
use shardmap::map::Map;
use shardmap::ownership::{Entry, History, Illegal};
use shardmap::{MapEpoch, Shard};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Ends with the test program.
pub struct Gzs {
    pub at: SocketAddr,
    newest: Arc<Mutex<Arc<Map>>>,
}

impl Gzs {
    /// With the map that otherwise never changes.
    pub fn start() -> Gzs {
        let (path, listener) = (map(), TcpListener::bind("127.0.0.1:0").unwrap());
        let beside = |name: &str| fs::read_to_string(path.with_file_name(name)).map_err(|e| e.to_string());
        let (first, _) = Map::from_toml(&fs::read_to_string(&path).unwrap(), beside).unwrap();
        let gzs = Gzs { at: listener.local_addr().unwrap(), newest: Arc::new(Mutex::new(Arc::new(first))) };
        let newest = gzs.newest.clone();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let newest = newest.clone();
                spawn(move || while answer(&stream, &newest).is_some() {});
            }
        });
        gzs
    }

    pub fn newest(&self) -> Arc<Map> {
        self.newest.lock().unwrap().clone()
    }

    /// Makes the next map: `step` for each of `shards`.
    pub fn next(
        &self,
        shards: &[Shard],
        step: impl Fn(Shard, &History, MapEpoch) -> Result<Entry, Illegal>,
    ) -> Arc<Map> {
        let map = self.newest();
        let epoch = map.epoch().next();
        let entries = shards.iter().map(|s| (*s, step(*s, map.history(*s).unwrap(), epoch).unwrap())).collect();
        let next = Arc::new(map.with_entries(entries).unwrap());
        *self.newest.lock().unwrap() = next.clone();
        next
    }
}

/// One poll; `None`: whoever asked is gone.
fn answer(mut stream: &TcpStream, newest: &Mutex<Arc<Map>>) -> Option<()> {
    let head = read_head(&mut stream)?;
    let number = |name: &str| {
        let rest = head.split_once(name).unwrap().1;
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap()
    };
    let (after, until) = (number("after="), Instant::now() + Duration::from_millis(number("wait_ms=")));
    loop {
        let map = newest.lock().unwrap().clone();
        if map.epoch().0 > after {
            let body = map.encode();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).ok()?;
            return stream.write_all(&body).ok();
        }
        if Instant::now() >= until {
            return stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok();
        }
        sleep(Duration::from_millis(10));
    }
}
