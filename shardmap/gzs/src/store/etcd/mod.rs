//! A store in etcd, for several services of which one leads.
//!
//! ```text
//! <prefix>head              {"schema", "map", "base"}: what the newest map is made of, by digests
//! <prefix>epoch             its number, as text: what each change compares
//! <prefix>map/<digest>/<n>  a map without its fences, in parts   ┐ written before the change that makes them the map, and deleted
//! <prefix>base/<digest>/<n> a whole map with the same fences     ┘ by the one that makes another
//! <prefix>op/<id>           an operation; its version, which etcd counts, is its revision. A large one (new fences) names its parts:
//! <prefix>oppart/<id>/<revision>-<unique>/<n>
//! <prefix>marks, grants     of all shards
//! <prefix>digest/<epoch>, <prefix>audit/<epoch>
//! <prefix>leader            see `lead`
//! ```
//!
//! A change is one transaction: it compares `epoch`, the operation's version and the leader's token, and writes all or nothing. Parts are
//! named by what is in them, so that writing them twice, or by two services, changes nothing. Reads are of one revision.

mod lead;
mod wire;

pub use lead::{Election, Standing, Who};
pub use wire::Gateway;

use super::Store;
use crate::api::AuditView;
use crate::change::{Change, Grant, Held, Mark, Unstored};
use crate::limits::{DIGESTS_MAX, OPS_SHOWN_MAX};
use crate::op::Op;
use crate::service::hex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardmap::Shard;
use shardmap::map::Map;
use std::collections::BTreeMap;
use wire::{PART_BYTES_MAX, Put, Range, Txn, ask, b64};

const SCHEMA: u64 = 1;
/// A read that meets a compaction is asked again so often.
const TRIES: usize = 5;
/// Two MiB in one answer.
const PARTS_A_PAGE: usize = 4;
/// An operation of all shards has 100 KiB, most have one.
const OPS_A_PAGE: usize = 20;
/// etcd takes 128 in one transaction.
const DELETES_A_TXN: usize = 100;

/// A store in etcd.
pub struct Etcd<G> {
    etcd: G,
    prefix: String,
    /// What the leader's changes carry; `None`: nobody was elected, as where one service uses it alone.
    token: Option<i64>,
    /// The digests of the fences that are stored, and of the map that they are stored with.
    base: Option<([u8; 32], String)>,
    /// Operations that were written in parts.
    written: u64,
}

#[derive(Serialize, Deserialize)]
struct Head {
    schema: u64,
    map: String,
    base: String,
}

/// What lies at `op/<id>`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Record {
    Parts { parts: String },
    Whole(Box<Op>),
}

impl<G: Gateway> Etcd<G> {
    /// The store under `prefix`, which ends with `/`.
    pub fn new(etcd: G, prefix: &str) -> Etcd<G> {
        Etcd { etcd, prefix: prefix.into(), token: None, base: None, written: 0 }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, path: &str, body: &Value) -> Result<T, Unstored> {
        ask(&mut self.etcd, path, body)
    }

    fn range(&mut self, asked: &Value) -> Result<Range, Unstored> {
        self.ask("/v3/kv/range", asked)
    }

    fn one(&mut self, name: &str, revision: i64) -> Result<Option<wire::Pair>, Unstored> {
        let asked = wire::range(&self.key(name), revision);
        Ok(self.range(&asked)?.kvs.into_iter().next())
    }

    /// What one key holds of all shards, and the comparison that it is so still.
    fn by_shard<T: serde::de::DeserializeOwned>(
        &mut self,
        name: &str,
        at: i64,
    ) -> Result<(BTreeMap<Shard, T>, Value), Unstored> {
        let held = self.one(name, at)?;
        let all: Vec<(u16, T)> = held.as_ref().map_or(Ok(vec![]), |pair| json(&pair.value))?;
        let unchanged = wire::is("MOD", "mod_revision", &self.key(name), held.map_or(0, |p| p.mod_revision));
        Ok((all.into_iter().map(|(shard, one)| (Shard(shard), one)).collect(), unchanged))
    }

    fn put_by_shard<T: Serialize>(&self, name: &str, all: &BTreeMap<Shard, T>) -> Result<Value, Unstored> {
        let all: Vec<(u16, &T)> = all.iter().map(|(shard, one)| (shard.0, one)).collect();
        Ok(wire::put(&self.key(name), &written(&all)?))
    }

    /// The values below `name`, by key, read `page` at a time.
    fn below(&mut self, name: &str, revision: i64, page: usize) -> Result<Vec<wire::Pair>, Unstored> {
        let mut asked = wire::all(&self.key(name), revision);
        asked["limit"] = json!(page.to_string());
        let mut found: Vec<wire::Pair> = vec![];
        loop {
            let read = self.range(&asked)?.kvs;
            let more = read.len() == page;
            found.extend(read);
            match found.last() {
                Some(last) if more => asked["key"] = json!(b64(&[&last.key[..], b"\0"].concat())),
                Some(_) | None => return Ok(found),
            }
        }
    }

    fn read(&mut self) -> Result<Option<Held>, Unstored> {
        let asked = wire::range(&self.key("head"), 0);
        let head = self.range(&asked)?;
        let at = head.header.revision;
        let Some(head) = head.kvs.first() else { return Ok(None) };
        let head: Head = json(&head.value)?;
        if head.schema != SCHEMA {
            let what = format!("schema {}, this program knows schema {SCHEMA}", head.schema);
            return Err(Unstored::Foreign(format!("etcd, {}: {what}", self.prefix)));
        }
        let base = self.parts(&format!("base/{}/", head.base), at)?;
        let base = Map::decode(&base).map_err(|e| Unstored::Foreign(format!("the stored fences: {e}")))?;
        let map = self.parts(&format!("map/{}/", head.map), at)?;
        let map = Map::decode_after(&map, &base).map_err(|e| Unstored::Foreign(format!("the stored map: {e}")))?;
        let mut ops = vec![];
        for pair in self.below("op/", at, OPS_A_PAGE)? {
            ops.push(match json(&pair.value)? {
                Record::Whole(op) => *op,
                Record::Parts { parts } => json(&self.parts(&parts, at)?)?,
            });
        }
        self.forget_ops(&mut ops)?;
        let (marks, _) = self.by_shard::<Mark>("marks", at)?;
        let (grants, _) = self.by_shard::<Grant>("grants", at)?;
        let mut newest = wire::all(&self.key("digest/"), at);
        (newest["sort_order"], newest["limit"]) = (json!("DESCEND"), json!(DIGESTS_MAX.to_string()));
        let digests = self.range(&newest)?.kvs;
        let digests = digests.iter().map(|pair| json::<(u64, [u8; 32])>(&pair.value)).collect::<Result<_, _>>()?;
        self.base = Some((map.fences_digest(), head.base));
        Ok(Some(Held { map, ops, marks: marks.into_iter().collect(), grants: grants.into_iter().collect(), digests }))
    }

    /// Of operations that have ended, only the newest are kept: nobody changes one again that no service shows.
    fn forget_ops(&mut self, ops: &mut Vec<Op>) -> Result<(), Unstored> {
        let ended: Vec<u64> = ops.iter().filter(|op| !op.is_running()).map(|op| op.id).collect();
        let old = &ended[..ended.len().saturating_sub(OPS_SHOWN_MAX)];
        ops.retain(|op| !old.contains(&op.id));
        let Some(token) = self.token.filter(|_| !old.is_empty()) else { return Ok(()) };
        for some in old.chunks(DELETES_A_TXN) {
            let deletes: Vec<Value> = some.iter().map(|id| wire::delete(&self.key(&op_name(*id)))).collect();
            self.ask::<Txn>("/v3/kv/txn", &wire::txn(&[lead::leads(&self.prefix, token)], &deletes, &[]))?;
        }
        Ok(())
    }

    fn parts(&mut self, name: &str, revision: i64) -> Result<Vec<u8>, Unstored> {
        Ok(self.below(name, revision, PARTS_A_PAGE)?.into_iter().flat_map(|pair| pair.value).collect())
    }

    fn put_parts(&mut self, name: &str, bytes: &[u8]) -> Result<(), Unstored> {
        for (nth, part) in bytes.chunks(PART_BYTES_MAX).enumerate() {
            let put = wire::put(&self.key(&format!("{name}{nth:06}")), part);
            self.ask::<Put>("/v3/kv/put", &put["request_put"])?;
        }
        Ok(())
    }

    /// What is written for an operation, and where its parts are, which are written now.
    fn record(&mut self, op: &Op) -> Result<(Vec<u8>, Option<String>), Unstored> {
        let whole = written(op)?;
        if whole.len() <= PART_BYTES_MAX {
            return Ok((whole, None));
        }
        // Never a name that was used before: what lies there may be of another ask, or of a change whose answer was lost.
        self.written += 1;
        let (token, pid, nth) = (self.token.unwrap_or(0), std::process::id(), self.written);
        let parts = format!("oppart/{:020}/{}-{token}-{pid}-{nth}/", op.id, op.revision);
        self.put_parts(&parts, &whole)?;
        Ok((written(&Record::Parts { parts: parts.clone() })?, Some(parts)))
    }

    /// Writes a map's parts; what makes them the map.
    fn map(&mut self, map: &Map, audit: &AuditView) -> Result<Vec<Value>, Unstored> {
        let (name, epoch) = (hex(&map.digest()), map.epoch().0);
        self.put_parts(&format!("map/{name}/"), &map.encode_without_fences())?;
        let known = self.base.as_ref().filter(|(fences, _)| *fences == map.fences_digest()).map(|(_, at)| at.clone());
        let base = match &known {
            Some(base) => base.clone(),
            None => {
                self.put_parts(&format!("base/{name}/"), &map.encode())?;
                name.clone()
            }
        };
        let head = Head { schema: SCHEMA, map: name.clone(), base: base.clone() };
        let mut does = vec![
            wire::put(&self.key("head"), &written(&head)?),
            wire::put(&self.key("epoch"), epoch.to_string().as_bytes()),
            wire::put(&self.key(&format!("audit/{epoch:020}")), &written(audit)?),
            wire::put(&self.key(&format!("digest/{epoch:020}")), &written(&(epoch, map.digest()))?),
        ];
        does.extend(wire::delete_all_but(&self.key("map/"), &self.key(&format!("map/{name}/"))));
        if known.is_none() {
            does.extend(wire::delete_all_but(&self.key("base/"), &self.key(&format!("base/{base}/"))));
        }
        Ok(does)
    }

    /// All of `does` if everything compares; else what is there instead.
    fn all_or_nothing(&mut self, compare: &[Value], does: &[Value], expected: String, op: u64) -> Result<(), Unstored> {
        let looks =
            [self.key("epoch"), lead::leader(&self.prefix), self.key(&op_name(op))].map(|k| wire::read_in_txn(&k));
        let done: Txn = self.ask("/v3/kv/txn", &wire::txn(compare, does, &looks))?;
        if done.succeeded {
            return Ok(());
        }
        let mut seen = done.ranges().map(|r| r.kvs.into_iter().next());
        let mut next = || seen.next().flatten();
        let epoch = next().map_or("no map".into(), |p| format!("map {}", String::from_utf8_lossy(&p.value)));
        let leader = next().map_or("no leader".into(), |p| format!("a leader of token {}", p.create_revision));
        let revision = next().map_or(0, |p| p.version);
        Err(Unstored::Overtaken {
            holds: format!("{epoch}, {leader}, operation {op} at revision {revision}"),
            expected,
        })
    }
}

fn op_name(id: u64) -> String {
    format!("op/{id:020}")
}

impl<G: Gateway> Store for Etcd<G> {
    fn load(&mut self) -> Result<Option<Held>, Unstored> {
        let mut tried = self.read();
        for _ in 1..TRIES {
            match &tried {
                Err(Unstored::Failed(why)) if why.contains("compacted") => tried = self.read(),
                Ok(_) | Err(_) => break,
            }
        }
        tried
    }

    fn adopt(&mut self, map: &Map, audit: &AuditView) -> Result<(), Unstored> {
        let held = self.one("epoch", 0)?;
        let holds: u64 = match &held {
            Some(pair) => String::from_utf8_lossy(&pair.value).parse().map_err(|_| foreign("epoch"))?,
            None => 0,
        };
        if map.epoch().0 <= holds {
            let expected = format!("one older than {}", map.epoch());
            return Err(Unstored::Overtaken { holds: format!("map {holds}"), expected });
        }
        self.base = None;
        let does = self.map(map, audit)?;
        let unchanged = wire::is("MOD", "mod_revision", &self.key("epoch"), held.map_or(0, |p| p.mod_revision));
        self.all_or_nothing(&[unchanged], &does, format!("map {holds}"), 0)?;
        self.base = None;
        Ok(())
    }

    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        let mut compare = vec![wire::holds(&self.key("epoch"), change.from_epoch.to_string().as_bytes())];
        let mut expected = format!("map {}", change.from_epoch);
        if let Some(token) = self.token {
            compare.push(lead::leads(&self.prefix, token));
            expected += &format!(", this one's token {token}");
        }
        let mut does = vec![];
        if let Some(op) = &change.op {
            let (key, revision) = (self.key(&op_name(op.id)), op.revision.saturating_sub(1));
            compare.push(wire::is("VERSION", "version", &key, revision as i64));
            expected += &format!(", operation {} at revision {revision}", op.id);
            let (record, parts) = self.record(op)?;
            does.push(wire::put(&key, &record));
            // What an earlier revision had in parts goes.
            let all = self.key(&format!("oppart/{:020}/", op.id));
            match parts {
                Some(parts) => does.extend(wire::delete_all_but(&all, &self.key(&parts))),
                None => does.push(wire::delete_all(&all)),
            }
        }
        if !change.marks.is_empty() {
            let (mut marks, unchanged) = self.by_shard::<Mark>("marks", 0)?;
            marks.extend(change.marks.iter().copied());
            compare.push(unchanged);
            does.push(self.put_by_shard("marks", &marks)?);
        }
        if !change.grants.is_empty() {
            let (mut grants, unchanged) = self.by_shard::<Grant>("grants", 0)?;
            for (shard, grant) in &change.grants {
                let revision = grants.get(shard).map_or(0, |g| g.revision);
                if revision + 1 != grant.revision {
                    let of = |revision: u64| format!("the grant of shard {shard} at revision {revision}");
                    return Err(Unstored::Overtaken {
                        holds: of(revision),
                        expected: of(grant.revision.saturating_sub(1)),
                    });
                }
            }
            grants.extend(change.grants.iter().copied());
            compare.push(unchanged);
            does.push(self.put_by_shard("grants", &grants)?);
        }
        // Last, and seldom in vain: what changes the epoch.
        let base = change.map.as_ref().map(|map| (map.fences_digest(), hex(&map.digest())));
        if let (Some(map), Some(audit)) = (&change.map, &change.audit) {
            does.extend(self.map(map, audit)?);
        }
        let op = change.op.as_ref().map_or(0, |op| op.id);
        self.all_or_nothing(&compare, &does, expected, op)?;
        if let Some((fences, name)) = base.filter(|(fences, _)| self.base.as_ref().is_none_or(|(f, _)| f != fences)) {
            self.base = Some((fences, name));
        }
        Ok(())
    }

    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        let first = self.key(&format!("audit/{:020}", after.saturating_add(1)));
        let mut asked = wire::all(&self.key("audit/"), 0);
        asked["key"] = json!(b64(first.as_bytes()));
        asked["limit"] = json!(max.to_string());
        jsons(&self.range(&asked)?.kvs)
    }

    fn lead(&mut self, token: i64) {
        (self.token, self.base) = (Some(token), None);
    }
}

fn foreign(key: &str) -> Unstored {
    Unstored::Foreign(format!(
        "the key \"{key}\" in etcd was not written by a Global Zone Service: is [etcd] prefix right?"
    ))
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Unstored> {
    serde_json::from_slice(bytes)
        .map_err(|e| Unstored::Foreign(format!("a record in etcd that this program does not understand: {e}")))
}

fn jsons<T: serde::de::DeserializeOwned>(pairs: &[wire::Pair]) -> Result<Vec<T>, Unstored> {
    pairs.iter().map(|pair| json(&pair.value)).collect()
}

fn written(what: &impl Serialize) -> Result<Vec<u8>, Unstored> {
    serde_json::to_vec(what).map_err(|e| Unstored::Failed(format!("a record that cannot be written: {e}")))
}
