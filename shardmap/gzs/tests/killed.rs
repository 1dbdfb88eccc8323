//! A service is killed just before and just after each of its changes is stored, on every store; another one goes on from there, and what the
//! dead one still had on its way is refused where stores know leaders.
//!
//! On etcd: `cargo test -p gzs --test killed -- --ignored` (Debian's `etcd-server`).

mod kit;

use gzs::api::{ReportAsk, ShardTold, What};
use gzs::change::{Change, Unstored};
use gzs::service::{Service, Settings};
use gzs::store::Store;
use gzs::store::etcd::{Election, Etcd, Standing, Who};
use gzs::store::memory::Memory;
use gzs::store::sqlite::Sqlite;
use kit::etcd::{Http, Server};
use kit::{NAMES, ask, first_audit, log, router, settings};
use shardmap::{Shard, Zone};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Services over one store, one after the other.
trait Fleet {
    /// The next one's store; the one before is dead.
    fn next(&mut self) -> Box<dyn Store>;
    /// Is a dead one's change refused because of who sends it?
    fn knows_leaders(&self) -> bool {
        false
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Memory>>);

impl Store for Shared {
    fn load(&mut self) -> Result<Option<gzs::change::Held>, Unstored> {
        self.0.lock().unwrap().load()
    }
    fn adopt(&mut self, map: &shardmap::map::Map, audit: &gzs::api::AuditView) -> Result<(), Unstored> {
        self.0.lock().unwrap().adopt(map, audit)
    }
    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        self.0.lock().unwrap().commit(change)
    }
    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<gzs::api::AuditView>, Unstored> {
        self.0.lock().unwrap().audit(after, max)
    }
}

impl Fleet for Shared {
    fn next(&mut self) -> Box<dyn Store> {
        Box::new(self.clone())
    }
}

impl Fleet for PathBuf {
    fn next(&mut self) -> Box<dyn Store> {
        Box::new(Sqlite::open(self).unwrap())
    }
}

/// In etcd, under a prefix.
struct Elected {
    etcd: Http,
    prefix: String,
    lease: Option<i64>,
}

impl Fleet for Elected {
    fn next(&mut self) -> Box<dyn Store> {
        let election = Election::new(&self.prefix, Who::default(), 60);
        if let Some(lease) = self.lease {
            election.resign(&mut self.etcd, lease).unwrap();
        }
        let Standing::Leads { lease, token } = election.stand(&mut self.etcd).unwrap() else { panic!("nobody leads") };
        self.lease = Some(lease);
        let mut store = Etcd::new(self.etcd.clone(), &self.prefix);
        store.lead(token);
        Box::new(store)
    }

    fn knows_leaders(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dies {
    Before,
    After,
}

struct Run<'a> {
    fleet: &'a mut dyn Fleet,
    store: Option<Box<dyn Store>>,
    service: Service,
    now: u64,
    stored: usize,
    dies: Option<(usize, Dies)>,
    lost: Option<&'static str>,
}

impl<'a> Run<'a> {
    fn new(fleet: &'a mut dyn Fleet, dies: Option<(usize, Dies)>) -> Run<'a> {
        let mut store = fleet.next();
        store.adopt(&kit::map_with_users(), &first_audit()).unwrap();
        let service = new(&mut store, 1_000_000);
        Run { fleet, store: Some(store), service, now: 1_000_000, stored: 0, dies, lost: None }
    }

    fn store(&mut self, change: Change) {
        self.stored += 1;
        let dies = self.dies.filter(|(at, _)| *at == self.stored).map(|(_, how)| how);
        let store = self.store.as_mut().unwrap();
        if dies != Some(Dies::Before) {
            store.commit(&change).unwrap();
        }
        if dies.is_none() {
            return self.service.on_stored(change);
        }
        let mut dead = self.store.take();
        if !self.fleet.knows_leaders() {
            dead = None; // its file is locked as long as it lives
        }
        let mut store = self.fleet.next();
        if let Some(dead) = &mut dead {
            assert!(
                matches!(dead.commit(&change), Err(Unstored::Overtaken { .. })),
                "a dead leader's change: {dies:?}"
            );
        }
        self.now += 1500;
        self.service = new(&mut store, self.now);
        self.store = Some(store);
    }

    fn drain(&mut self) {
        while let Some(change) = self.service.next_change(self.now) {
            self.store(change);
            assert!(self.stored < 1000, "it changes for ever");
        }
    }

    /// Every node that is there tells how it is, and does what it is asked.
    fn all_tell(&mut self) {
        let lost = self.lost;
        for zone in NAMES.iter().filter(|zone| lost != Some(**zone)) {
            let epoch = self.service.map().epoch().0;
            self.service.on_told(router(zone, epoch), self.now).unwrap();
            let asked = self.service.on_told(log(zone, epoch), self.now).unwrap();
            let mut told = log(zone, epoch);
            told.log.as_mut().unwrap().reports = asked.asks.iter().flat_map(reports).collect();
            self.service.on_told(told, self.now).unwrap();
            self.drain();
        }
    }

    /// Asks until it is done, as a person does who got no answer.
    fn does(&mut self, what: &What) {
        let before = self.service.ops(true).iter().map(|op| op.id).max().unwrap_or(0);
        for _ in 0..100 {
            self.now += 100;
            self.all_tell();
            let begun = self.service.ops(true).into_iter().find(|op| op.id > before);
            match begun.map(|op| (op.id, op.state)) {
                None => {
                    let change = self.service.begin(&ask(what.clone()), self.now).unwrap();
                    self.store(change);
                }
                Some((_, state)) if state == "done" => return,
                Some((id, state)) => assert_eq!(state, "running", "operation {id}, {what:?}"),
            }
        }
        panic!("{what:?} is not done: {:?}", self.service.ops(false));
    }

    /// Every kind of operation; who owns what in the end.
    fn all_kinds(&mut self) -> Vec<Option<Zone>> {
        let bj = || "bj".to_owned();
        self.does(&What::Move { shards: vec![0], to: "sh".into() });
        self.does(&What::Evacuate { zone: "sh".into(), to: Some("gz".into()) });
        self.does(&What::Restore { zone: "sh".into() });
        self.does(&What::Move { shards: vec![0], to: bj() });
        self.lost = Some("bj");
        self.now += 5000;
        self.does(&What::TakeOver { zone: bj(), to: Some("gz".into()) });
        self.does(&What::Unlock { shards: vec![0, 3] });
        let held = self.store.as_mut().unwrap().load().unwrap().unwrap();
        assert_eq!(held.map.digest(), self.service.map().digest());
        let audit = self.store.as_mut().unwrap().audit(0, 1000).unwrap();
        let epochs: Vec<u64> = audit.iter().map(|a| a.epoch).collect();
        assert_eq!(epochs, (1..=held.map.epoch().0).collect::<Vec<_>>(), "each map was made once");
        (0..6).chain([1024]).map(|s| held.map.owner(Shard(s))).collect()
    }
}

fn new(store: &mut Box<dyn Store>, now: u64) -> Service {
    let settings = Settings {
        silence_ms: 0,
        cool_down_ms: 0,
        move_limit_ms: 60_000,
        requests_per_s_max: BTreeMap::new(),
        ..settings()
    };
    let held = store.load().unwrap().unwrap();
    // What was under way may go on only once the nodes are heard.
    Service::new(held, vec![], settings, now - 1200)
}

fn reports(ask: &ReportAsk) -> Vec<ShardTold> {
    let applied: BTreeMap<u8, u64> = (0..3).map(|zone| (zone, 20)).collect();
    let one = |shard: &u16| ShardTold {
        shard: *shard,
        map_epoch: ask.map_epoch,
        take_over: ask.take_over,
        fence_seq: (!ask.take_over).then_some(12),
        applied: applied.clone(),
    };
    ask.shards.iter().map(one).collect()
}

fn killed_everywhere(mut fleet: impl FnMut(usize) -> Box<dyn Fleet>) {
    let mut undisturbed = fleet(0);
    let mut run = Run::new(undisturbed.as_mut(), None);
    let expected = run.all_kinds();
    let changes = run.stored;
    assert!(changes > 15, "{changes} changes of six operations");
    for at in 1..=changes {
        for (nth, how) in [Dies::Before, Dies::After].into_iter().enumerate() {
            let mut fleet = fleet(2 * at + nth);
            let mut run = Run::new(fleet.as_mut(), Some((at, how)));
            assert_eq!(run.all_kinds(), expected, "killed {how:?} change {at}");
            assert!(run.stored > changes || how == Dies::After, "nobody was killed");
        }
    }
}

#[test]
fn in_memory() {
    killed_everywhere(|_| Box::new(Shared::default()));
}

#[test]
fn in_sqlite() {
    let dir = std::env::temp_dir().join(format!("ezone-gzs-killed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    killed_everywhere(|nth| Box::new(dir.join(nth.to_string())));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
#[ignore = "needs etcd (Debian: apt-get install etcd-server)"]
fn in_etcd() {
    let server = Server::start(std::env::temp_dir().join(format!("ezone-gzs-killed-etcd-{}", std::process::id())));
    killed_everywhere(|nth| Box::new(Elected { etcd: server.gateway(), prefix: format!("{nth}/"), lease: None }));
}
