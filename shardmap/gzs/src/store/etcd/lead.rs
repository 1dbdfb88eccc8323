//! One leader among several services: who holds the key `leader`, which goes with its lease.
//!
//! The key's create revision is the leader's **token**: every later leader's is higher, and every change that a leader stores compares it. So one
//! that lost its lease without knowing (it slept, its clock stood still) changes nothing any more.

use super::wire::{Gateway, Granted, Kept, Txn, ask, b64, is, read_in_txn, txn};
use crate::change::Unstored;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A service, as the others see it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Who {
    /// Its name, unique among them.
    pub name: String,
    /// Where nodes and people reach it.
    pub url: String,
}

/// How the election stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// This one leads: by this lease, with this token.
    Leads {
        /// The lease that it has to keep alive.
        lease: i64,
        /// What its changes carry.
        token: i64,
    },
    /// This one does.
    Follows(Who),
}

/// The election of one cluster of services.
#[derive(Clone, Debug)]
pub struct Election {
    key: String,
    me: Who,
    ttl_s: u64,
}

impl Election {
    /// Under the store's `prefix`; a leader that is not heard for `ttl_s` is one no more.
    pub fn new(prefix: &str, me: Who, ttl_s: u64) -> Election {
        Election { key: leader(prefix), me, ttl_s }
    }

    /// Becomes the leader if there is none.
    pub fn stand(&self, etcd: &mut impl Gateway) -> Result<Standing, Unstored> {
        if let Some(who) = self.leader(etcd)? {
            return Ok(Standing::Follows(who));
        }
        let granted: Granted = ask(etcd, "/v3/lease/grant", &json!({"TTL": self.ttl_s.to_string()}))?;
        let me = serde_json::to_vec(&self.me).map_err(|e| Unstored::Failed(e.to_string()))?;
        let mut put = super::wire::put(&self.key, &me);
        put["request_put"]["lease"] = json!(granted.id.to_string());
        let nobody = is("CREATE", "create_revision", &self.key, 0);
        let asked = txn(&[nobody], &[put], &[read_in_txn(&self.key)]);
        let stood: Txn = ask(etcd, "/v3/kv/txn", &asked)?;
        if stood.succeeded {
            return Ok(Standing::Leads { lease: granted.id, token: stood.header.revision });
        }
        // Someone was faster; the lease that is not used ends by itself.
        Ok(Standing::Follows(who(stood)?.unwrap_or_default()))
    }

    /// Who leads now.
    pub fn leader(&self, etcd: &mut impl Gateway) -> Result<Option<Who>, Unstored> {
        let read: Txn = ask(etcd, "/v3/kv/txn", &txn(&[], &[read_in_txn(&self.key)], &[]))?;
        who(read)
    }

    /// Keeps the lease alive: is it still? Then etcd's revision.
    pub fn renew(&self, etcd: &mut impl Gateway, lease: i64) -> Result<Option<i64>, Unstored> {
        let kept: Kept = ask(etcd, "/v3/lease/keepalive", &by_id(lease))?;
        Ok((kept.result.ttl > 0).then_some(kept.result.header.revision))
    }

    /// Lets go what etcd keeps of before `revision`, of everybody's: it keeps all, and is full one day, unless it was told otherwise.
    pub fn compact(&self, etcd: &mut impl Gateway, revision: i64) -> Result<(), Unstored> {
        ask::<Value>(etcd, "/v3/kv/compaction", &json!({"revision": revision.to_string()})).map(drop)
    }

    /// Lets another one lead at once.
    pub fn resign(&self, etcd: &mut impl Gateway, lease: i64) -> Result<(), Unstored> {
        ask::<Value>(etcd, "/v3/lease/revoke", &by_id(lease)).map(drop)
    }
}

pub(super) fn leader(prefix: &str) -> String {
    format!("{prefix}leader")
}

/// Is this leader still it?
pub(super) fn leads(prefix: &str, token: i64) -> Value {
    json!({"target": "CREATE", "result": "EQUAL", "key": b64(leader(prefix).as_bytes()), "create_revision": token.to_string()})
}

fn by_id(lease: i64) -> Value {
    json!({"ID": lease.to_string()})
}

fn who(read: Txn) -> Result<Option<Who>, Unstored> {
    let Some(pair) = read.ranges().flat_map(|r| r.kvs).next() else { return Ok(None) };
    let seen = || Unstored::Foreign("the key \"leader\" in etcd was not written by a Global Zone Service".into());
    serde_json::from_slice(&pair.value).map(Some).map_err(|_| seen())
}
