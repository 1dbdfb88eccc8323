//! Commits in a seeded simulation: clients that race on a few rows while the store lags, and the log takes appends back now and then.
//!
//! The gate and the watches are the real ones; what drives them here does what `uring/commit.rs` does, one await at a time. At the end the
//! log is read in its order: each condition held where its commit stands, each idempotency key was done once, and nobody was told of
//! what is not there. `SEED=n` replays one, `SEEDS=n` runs more.

use bytes::Bytes;
use replog::commit::{ANSWERS, Commit, Condition, Made, Once, Seen, Step};
use replog::gate::{Found, Gate, Known, Ruling, Start};
use replog::lease::Now;
use replog::owners::Owners;
use replog::port::Refused;
use replog::watch::{RowKey, Watches};
use replog::{Hlc, Op, Record, Version};
use shardmap::ownership::History;
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const ZONE: Zone = Zone(0);
const S: Shard = Shard(1);
const NOW_MS: u64 = 1_790_000_000_000;

/// Leases play no part here.
fn moment(ms: u64) -> Now {
    Now { wall_ms: ms, steady_ms: ms }
}

#[derive(Debug)]
struct OneShard(History);

impl Owners for OneShard {
    fn epoch(&self) -> MapEpoch {
        MapEpoch(1)
    }
    fn history(&self, shard: Shard) -> Option<&History> {
        (shard == S).then_some(&self.0)
    }
    fn each(&self, visit: &mut dyn FnMut(Shard, &History)) {
        visit(S, &self.0);
    }
}

/// splitmix64
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A row as the store has it.
type Row = (Seen, u64, Bytes);

struct Hold {
    rows: Vec<RowKey>,
    refusals: u64,
    target: u64,
    stored: Option<Vec<Option<Row>>>,
}

struct Client {
    commit: Commit,
    hold: Option<Hold>,
    /// It has its records in the log up to this seq, and waits until they are durable.
    appended: Option<(u64, Vec<Made>)>,
    /// It has a ruling that goes by a record up to this seq, and waits until that is durable.
    judged: Option<(u64, Ruling)>,
}

struct World {
    rng: Rng,
    gate: Gate,
    watches: Watches,
    /// Seq 1 is the first.
    log: Vec<Record>,
    durable: u64,
    applied: u64,
    store: HashMap<RowKey, Row>,
    refusals: u64,
    clients: Vec<Client>,
    /// What clients were told: (commit, rows, replayed).
    done: Vec<(Commit, Vec<Made>, bool)>,
    unmet: Vec<Option<Version>>,
    /// The versions that clients know.
    known: Vec<Version>,
    asked: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let map: Arc<dyn Owners> = Arc::new(OneShard(History::new(ZONE, MapEpoch(1))));
        let (fences, fences_applied) = (vec![], vec![]);
        let mut gate =
            Gate::new(Start { zone: ZONE, stream: 0, streams: 1, map, fences, fences_applied, newest: Hlc(0) });
        gate.start_alone();
        World {
            rng: Rng(seed),
            gate,
            watches: Watches::new(ZONE, 0),
            log: vec![],
            durable: 0,
            applied: 0,
            store: HashMap::new(),
            refusals: 0,
            clients: vec![],
            done: vec![],
            unmet: vec![],
            known: vec![],
            asked: 0,
        }
    }

    fn run(&mut self) {
        for _ in 0..600 {
            match self.rng.below(12) {
                0 | 1 if self.clients.len() < 8 => {
                    let commit = self.commit();
                    self.clients.push(Client { commit, hold: None, appended: None, judged: None });
                }
                0..=5 if !self.clients.is_empty() => {
                    let at = self.rng.below(self.clients.len() as u64) as usize;
                    self.step(at);
                }
                6 | 7 => self.durable = (self.durable + 1 + self.rng.below(3)).min(self.log.len() as u64),
                8..=10 => self.apply(),
                11 if self.rng.below(6) == 0 => self.take_back(),
                _ => {}
            }
        }
        for _ in 0..100_000 {
            if self.clients.is_empty() {
                return;
            }
            self.durable = self.log.len() as u64;
            self.apply();
            let at = self.rng.below(self.clients.len() as u64) as usize;
            self.step(at);
        }
        panic!("a client is never answered");
    }

    fn commit(&mut self) -> Commit {
        self.asked += 1;
        let keys = 1 + self.rng.below(2);
        let first = self.rng.below(3);
        let steps = (0..keys).map(|i| {
            let key = Bytes::from(format!("k{}", (first + i) % 3));
            let only = match (self.rng.below(6), self.known.len() as u64) {
                (0 | 1, n @ 1..) => Condition::At(self.known[(n - 1 - self.rng.below(n.min(4))) as usize]),
                (2, _) => Condition::Absent,
                (3, _) => Condition::Present,
                _ => Condition::Any,
            };
            let value = (self.rng.below(4) > 0).then(|| Bytes::from(self.asked.to_string()));
            Step { table: "t".into(), key: Some(key), value, only }
        });
        let steps: Vec<Step> = steps.collect();
        // A few keys, each always with one request, as a client that repeats itself does.
        let key = self.rng.below(12);
        if key < 4 {
            let step = Step {
                table: "once".into(),
                key: Some(key.to_string().into()),
                value: Some("v".into()),
                only: Condition::Any,
            };
            let once = Some(Once { key: Bytes::from(key.to_string()), digest: [key as u8; 16] });
            return Commit { shard: S, map_epoch: MapEpoch(1), steps: vec![step], once, remote_ms: None };
        }
        Commit { shard: S, map_epoch: MapEpoch(1), steps, once: None, remote_ms: None }
    }

    fn apply(&mut self) {
        if self.applied < self.durable {
            self.applied += 1;
            let r = &self.log[self.applied as usize - 1];
            let version = Version { owner_epoch: r.owner_epoch, hlc: r.hlc, zone: ZONE, stream: 0 };
            let seen = if r.op == Op::Delete { Seen::Gone(version) } else { Seen::Row(version) };
            self.store.insert((r.table.clone(), r.key.clone()), (seen, self.applied, r.value.clone()));
        }
    }

    /// No room: everything that is not durable is taken back, whole transactions.
    fn take_back(&mut self) {
        while self.durable > 0
            && (self.durable as usize) < self.log.len()
            && self.log[self.durable as usize].transaction == self.log[self.durable as usize - 1].transaction
        {
            self.durable += 1;
        }
        if (self.durable as usize) < self.log.len() {
            self.log.truncate(self.durable as usize);
            self.refusals += 1;
            let durable = self.durable;
            // Those who wait for what was taken back are told so.
            self.clients.retain(|c| c.appended.as_ref().is_none_or(|(seq, _)| *seq <= durable));
        }
    }

    /// One client goes on to its next await.
    fn step(&mut self, at: usize) {
        let mut c = self.clients.swap_remove(at);
        if let Some((seq, rows)) = c.appended.take() {
            if seq > self.durable {
                c.appended = Some((seq, rows));
                return self.clients.push(c);
            }
            self.known.extend(rows.iter().map(|r| r.version));
            return self.done.push((c.commit, rows, false));
        }
        if c.hold.as_ref().is_some_and(|h| h.refusals != self.refusals) {
            self.release(&mut c);
            c.judged = None;
        }
        if let Some((seq, ruling)) = c.judged.take() {
            if seq > self.durable {
                c.judged = Some((seq, ruling));
                return self.clients.push(c);
            }
            self.release(&mut c);
            return self.told(c.commit, ruling);
        }
        if let Some(hold) = &mut c.hold
            && hold.stored.is_none()
        {
            if self.applied >= hold.target {
                hold.stored = Some(hold.rows.iter().map(|row| self.store.get(row).cloned()).collect());
            }
            return self.clients.push(c);
        }
        let known = c.hold.as_ref().map(|h| self.known_of(&c.commit, h));
        let ruling = self.gate.commit(&c.commit, known.as_ref().map(|k| &k.0), moment(NOW_MS + self.asked));
        match ruling {
            Ruling::Append(records) => {
                let first = self.log.len() as u64 + 1;
                let mut rows = vec![];
                for (mut record, seq) in records.into_iter().zip(first..) {
                    record.transaction = self.done.len() as u32 * 1000 + first as u32;
                    self.watches.on_append(seq, &record, self.refusals);
                    if record.op != Op::Answer {
                        let version =
                            Version { owner_epoch: record.owner_epoch, hlc: record.hlc, zone: ZONE, stream: 0 };
                        rows.push(Made { key: record.key.clone(), version, seq });
                    }
                    self.log.push(record);
                }
                self.release(&mut c);
                c.appended = Some((self.log.len() as u64, rows));
                self.clients.push(c);
            }
            Ruling::NeedRows => {
                self.release(&mut c);
                let rows = c.commit.rows();
                self.watches.hold(&rows);
                c.hold = Some(Hold { rows, refusals: self.refusals, target: self.log.len() as u64, stored: None });
                self.clients.push(c);
            }
            Ruling::WaitMap => panic!("there is one map"),
            Ruling::WaitLease(_) => panic!("there is no global service"),
            ruling => {
                let newest = known.map_or(0, |k| k.1);
                c.judged = Some((newest, ruling));
                self.clients.push(c);
            }
        }
    }

    fn release(&mut self, c: &mut Client) {
        if let Some(hold) = c.hold.take() {
            self.watches.release(&hold.rows);
        }
    }

    fn known_of(&self, commit: &Commit, hold: &Hold) -> (Known, u64) {
        let stored = hold.stored.as_ref().expect("read before it is judged");
        let mut newest = 0;
        let mut each: Vec<Row> = vec![];
        for (row, stored) in hold.rows.iter().zip(stored) {
            each.push(match self.watches.newest(row, hold.refusals) {
                Some(l) => {
                    newest = newest.max(l.seq);
                    (l.seen, l.seq, l.value.clone())
                }
                None => stored.clone().unwrap_or((Seen::Absent, 0, Bytes::new())),
            });
        }
        let found = |(seen, seq, value): Row| Some(Found { version: seen.version()?, seq, value });
        let once = commit.once.as_ref().and_then(|_| each.pop()).and_then(found);
        (Known { rows: each.into_iter().map(|(seen, ..)| seen).collect(), once }, newest)
    }

    fn told(&mut self, commit: Commit, ruling: Ruling) {
        match ruling {
            Ruling::Again(rows) => self.done.push((commit, rows, true)),
            Ruling::Refused(Refused::Unmet { seen, .. }) => self.unmet.push(seen),
            other => panic!("{other:?}"),
        }
    }

    /// Reads the log in its order.
    fn check(&self) {
        assert!(self.watches.is_empty(), "somebody still holds a row");
        let mut rows: HashMap<RowKey, Seen> = HashMap::new();
        let mut versions = BTreeMap::new();
        let mut at_seq: BTreeMap<u64, &Commit> = BTreeMap::new();
        for (commit, made, _) in self.done.iter().filter(|(.., replayed)| !replayed) {
            at_seq.insert(made[0].seq, commit);
        }
        for (record, seq) in self.log.iter().zip(1u64..) {
            if let Some(commit) = at_seq.get(&seq) {
                for step in &commit.steps {
                    let seen =
                        rows.get(&(step.table.clone(), step.key.clone().unwrap())).copied().unwrap_or(Seen::Absent);
                    assert!(step.only.holds(seen), "seq {seq}: {:?} over {seen:?}", step.only);
                }
            }
            let version = Version { owner_epoch: record.owner_epoch, hlc: record.hlc, zone: ZONE, stream: 0 };
            let seen = if record.op == Op::Delete { Seen::Gone(version) } else { Seen::Row(version) };
            rows.insert((record.table.clone(), record.key.clone()), seen);
            versions.insert(version, seq);
        }
        for seen in self.unmet.iter().flatten() {
            assert!(versions.contains_key(seen), "a client was told of {seen}, which was taken back");
        }
        let mut once: HashMap<Bytes, Vec<&Record>> = HashMap::new();
        self.log.iter().filter(|r| r.table == ANSWERS).for_each(|r| once.entry(r.key.clone()).or_default().push(r));
        assert!(once.values().all(|all| all.len() == 1), "done twice: {once:?}");
        for (commit, made, _) in self.done.iter().filter(|(c, ..)| c.once.is_some()) {
            let seq = versions.get(&made[0].version);
            assert_eq!(seq, Some(&made[0].seq), "{:?} was told of what is not there", commit.once);
        }
    }
}

#[test]
fn conditions_hold_where_their_commit_stands_and_each_key_is_done_once() {
    let seeds: Vec<u64> = match (std::env::var("SEED"), std::env::var("SEEDS")) {
        (Ok(seed), _) => vec![seed.parse().unwrap()],
        (_, seeds) => (1..=seeds.map_or(2000, |n| n.parse().unwrap())).collect(),
    };
    let (mut won, mut lost, mut again, mut refusals) = (0, 0, 0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let mut world = World::new(seed);
        world.run();
        world.check();
        again += world.done.iter().filter(|(.., replayed)| *replayed).count();
        (won, lost) = (won + world.done.len(), lost + world.unmet.len());
        refusals += world.refusals;
    }
    println!("{won} done, {again} of them told again, {lost} conditions did not hold, {refusals} times taken back");
    assert!(std::env::var("SEED").is_ok() || (again > 100 && lost > 100 && refusals > 100), "too little has happened");
}
