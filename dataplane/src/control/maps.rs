//! Follows the map: asks the GZS by long poll, keeps each map on disk before anyone acts on it, never goes back.

use super::reach::{self, Asked, Reach, Said, root_cause};
use super::{Failed, durable};
use crate::config::{GzsAt, MapSource, file};
use crate::uring;
use gzs::service::hex;
use shardmap::MapEpoch;
use shardmap::map::Map;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long one poll waits at the GZS for a newer map: a service that froze, or whose host is gone, is noticed so much later ..
const POLL_WAIT: Duration = Duration::from_secs(5);
/// .. and where another one may lead meanwhile, this much: routers hold requests for a shard that is moving for 5 s.
const POLL_WAIT_OF_SEVERAL: Duration = Duration::from_secs(1);
/// An answer takes so much longer than it waits, at most.
const ANSWER: Duration = Duration::from_secs(1);
/// How long to wait after a poll that failed.
const RETRY: Duration = Duration::from_millis(200);
/// The largest map that is accepted.
const MAP_BYTES_MAX: usize = 64 << 20;
/// A map of so many bytes takes milliseconds to read.
const LARGE_BYTES: usize = 256 << 10;
/// Of a map's text, and of each file that it names.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What the follower has to tell.
pub enum News {
    /// A newer map, stored durably.
    Map(Arc<Map>),
    /// The GZS has answered: its newest map is this one, and this node has it.
    Reached(MapEpoch),
}

/// The newest map, and the file that holds it: shared by everyone who hears of maps.
#[derive(Clone)]
pub struct Kept {
    file: Arc<PathBuf>,
    newest: Arc<Mutex<Option<Arc<Map>>>>,
}

impl Kept {
    /// What `file` holds, if it exists.
    pub fn open(file: PathBuf) -> Result<Kept, String> {
        let newest = match std::fs::read(&file) {
            Ok(bytes) => match Map::decode(&bytes) {
                Ok(map) => Some(Arc::new(map)),
                Err(e) => return Err(format!("{}: {e}; move it away to start without a map", file.display())),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(format!("{}: {e}", file.display())),
        };
        Ok(Kept { file: Arc::new(file), newest: Arc::new(Mutex::new(newest)) })
    }

    /// The newest map that is on disk.
    pub fn newest(&self) -> Option<Arc<Map>> {
        self.newest.lock().expect("no one panics while holding it").clone()
    }

    /// Its epoch; 0: there is none.
    pub fn epoch(&self) -> MapEpoch {
        self.newest().map_or(MapEpoch(0), |m| m.epoch())
    }

    /// Stores the map in `bytes` durably if it is newer than what is there; an older one changes nothing.
    pub fn take(&self, bytes: &[u8]) -> Result<Option<Arc<Map>>, String> {
        let mut newest = self.newest.lock().expect("no one panics while holding it");
        // Fences seldom change: with the known map at hand their index is not built again.
        let decoded = match newest.as_ref() {
            Some(had) => Map::decode_after(bytes, had),
            None => Map::decode(bytes),
        };
        let map = Arc::new(decoded.map_err(|e| format!("a map is refused: {e}"))?);
        if let Some(had) = newest.as_ref() {
            if map.epoch() == had.epoch() && map.digest() != had.digest() {
                return Err(format!("two different maps {}: two GZS are at work, or one was restored", map.epoch()));
            }
            if map.epoch() <= had.epoch() {
                return Ok(None);
            }
        }
        // It may have come without the fences that were known.
        durable::replace(&self.file, &map.encode())
            .map_err(|e| format!("{} cannot be written: {e}", self.file.display()))?;
        *newest = Some(map.clone());
        Ok(Some(map))
    }
}

/// A follower of one GZS.
pub struct Follower {
    reach: Reach,
    wait: Duration,
    kept: Kept,
}

impl Follower {
    /// Follows the GZS at `at` from the newest map that is kept; `who`: as it names this node.
    pub fn new(at: &GzsAt, who: &str, kept: Kept) -> Result<Follower, String> {
        let wait = if at.urls.len() > 1 { POLL_WAIT_OF_SEVERAL } else { POLL_WAIT };
        Ok(Follower { reach: Reach::new(at, who, wait + ANSWER)?, wait, kept })
    }

    /// Asks until the task is dropped; each piece of news goes to `tell`.
    pub async fn run(self, mut tell: impl FnMut(News)) {
        let (mut said, mut reached) = (Said::default(), false);
        loop {
            // The first answer is asked for at once: a log that restarted waits for it.
            match self.poll(if reached { self.wait } else { Duration::ZERO }).await {
                Ok(map) => {
                    map.into_iter().for_each(|map| tell(News::Map(map)));
                    tell(News::Reached(self.kept.epoch()));
                    (said, reached) = (Said::default(), true);
                }
                Err(why) => {
                    if said.is_new(&why) {
                        let on =
                            if self.kept.newest().is_some() { "going on with the map on disk" } else { "trying again" };
                        tracing::warn!("no map from the GZS: {why}; {on}");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn poll(&self, wait: Duration) -> Result<Option<Arc<Map>>, String> {
        let (had, wait) = (self.kept.newest(), wait.as_millis());
        let (after, digest) =
            had.map_or((0, String::new()), |m| (m.epoch().0, format!("&digest={}", hex(&m.digest()))));
        let path = format!("/v1/map?after={after}{digest}&wait_ms={wait}");
        let mut answer = self.reach.ask(Asked { method: reqwest::Method::GET, path: &path, json: None }).await?;
        match answer.status().as_u16() {
            200 => {}
            204 => return Ok(None),
            other => {
                let said = answer.chunk().await.ok().flatten().unwrap_or_default();
                let said = String::from_utf8_lossy(&said[..said.len().min(600)]).trim().to_owned();
                return Err(format!("it answered {other}, expected 200 or 204: {said}"));
            }
        }
        let bytes = reach::body(&mut answer, MAP_BYTES_MAX).await.map_err(|e| root_cause(&e))?;
        let bytes = bytes.ok_or_else(|| format!("its map has more than {MAP_BYTES_MAX} bytes"))?;
        if bytes.len() < LARGE_BYTES {
            return self.kept.take(&bytes);
        }
        aside(self.kept.clone(), bytes).await
    }
}

/// A large map is read and stored by a thread of its own, which gives way: it takes a tenth of a second of a processor that a
/// router core may need at that moment.
async fn aside(kept: Kept, bytes: Vec<u8>) -> Result<Option<Arc<Map>>, String> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let work = move || {
        if let Err(e) = uring::give_way() {
            tracing::debug!("a large map is read at full priority: {e}");
        }
        drop(tell.send(kept.take(&bytes))); // nobody waits for it: the follower has ended
    };
    std::thread::Builder::new().name("map".into()).spawn(work).map_err(|e| format!("a thread for a map: {e}"))?;
    told.await.map_err(|_| "the thread that read a map has ended".to_owned())?
}

/// The map in the file at `path`, which an operator wrote; what it says of itself goes to the log.
pub fn from_file(path: &Path) -> Result<Arc<Map>, String> {
    let text = file::read_text(path, FILE_BYTES_MAX).map_err(|e| format!("{}: {e}", path.display()))?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let load = |name: &str| file::read_text(&beside.join(name), FILE_BYTES_MAX).map_err(|e| e.to_string());
    match Map::from_toml(&text, load) {
        Ok((map, notes)) => {
            tracing::info!("{}: map {}, {} notes", path.display(), map.epoch(), notes.len());
            Ok(Arc::new(map))
        }
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(|p| format!("{}: {p}", path.display())).collect();
            Err(lines.join("\n"))
        }
    }
}

/// The map to begin with: the file's, the one on disk, or the first that the GZS gives; from then on its news go to `news`.
pub async fn first(
    source: &MapSource,
    who: &str,
    kept: &Kept,
    news: mpsc::UnboundedSender<News>,
    newer: &mut mpsc::UnboundedReceiver<News>,
) -> Result<Arc<Map>, Failed> {
    let at = match source {
        MapSource::File(path) => return from_file(path).map_err(Failed::Input),
        MapSource::Gzs(at) => at,
    };
    let (follower, had) = (Follower::new(at, who, kept.clone()).map_err(Failed::Input)?, kept.newest());
    tokio::spawn(follower.run(move |n| drop(news.send(n)))); // whoever does not listen any more is ending
    if let Some(map) = had {
        return Ok(map);
    }
    tracing::info!("no map on disk: waiting for one from the GZS at {}", at.urls.join(", "));
    loop {
        match newer.recv().await {
            Some(News::Map(map)) => return Ok(map),
            Some(News::Reached(_)) => {}
            None => return Err(Failed::Fault("the follower of the GZS ended".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_is_read_aside_is_stored_and_a_bad_one_is_refused() {
        let china = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china.toml");
        let map = from_file(&china).unwrap();
        let dir = std::env::temp_dir().join(format!("ezone-maps-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let kept = Kept::open(dir.join("router.map")).unwrap();
        let runtime = super::super::runtime().unwrap();
        let taken = runtime.block_on(aside(kept.clone(), map.encode())).unwrap().expect("it is newer than none");
        assert_eq!(taken.digest(), map.digest());
        assert_eq!(Kept::open(dir.join("router.map")).unwrap().epoch(), map.epoch(), "it is on disk");
        assert!(
            runtime.block_on(aside(kept.clone(), map.encode())).unwrap().is_none(),
            "the same once more changes nothing"
        );
        let why = runtime.block_on(aside(kept, vec![7; LARGE_BYTES])).unwrap_err();
        assert!(why.starts_with("a map is refused"), "{why}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
