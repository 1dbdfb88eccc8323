//! Where the map has its home: what a store has to do, and those that do it.

pub mod etcd;
pub mod memory;
pub mod sqlite;

use crate::api::AuditView;
use crate::change::{Change, Held, Unstored};
use shardmap::map::Map;

/// A store: every change is a compare-and-set, durable before it is answered.
pub trait Store {
    /// All that it holds; `None`: it is empty.
    fn load(&mut self) -> Result<Option<Held>, Unstored>;
    /// Puts the first map into an empty store, or another map, newer than all, into any: `audit` says who and why.
    fn adopt(&mut self, map: &Map, audit: &AuditView) -> Result<(), Unstored>;
    /// Stores a change if nothing else has happened since it was made; both map and operation, or neither.
    fn commit(&mut self, change: &Change) -> Result<(), Unstored>;
    /// The changes after the one that made map `after`, oldest first, at most `max`.
    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored>;
    /// From now on changes are those of a leader with this token, where several services share the store: refused when another one leads.
    fn lead(&mut self, _token: i64) {}
}

impl<S: Store + ?Sized> Store for Box<S> {
    fn load(&mut self) -> Result<Option<Held>, Unstored> {
        (**self).load()
    }

    fn adopt(&mut self, map: &Map, audit: &AuditView) -> Result<(), Unstored> {
        (**self).adopt(map, audit)
    }

    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        (**self).commit(change)
    }

    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        (**self).audit(after, max)
    }

    fn lead(&mut self, token: i64) {
        (**self).lead(token);
    }
}
