//! Stands for election again and again, and keeps the lease of a leader: a thread of its own, so that nothing else delays it.

use super::desk::Elected;
use super::etcd::Http;
use crate::config::EtcdConfig;
use gzs::store::etcd::{Election, Standing, Who};
use replog::uring::steady_ms;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

/// How often one that follows looks whether there is a leader.
const LOOK: Duration = Duration::from_millis(100);

/// etcd keeps every revision until someone lets it go, and refuses everything once it is full: a leader lets go what is older than so much.
const KEEP_MS: u64 = 5 * 60 * 1000;

/// What a candidate has to tell.
pub trait Hears {
    /// How the election stands.
    fn elected(&self, how: Elected);
    /// The lease lasts until then, by the steady clock.
    fn leads_until(&self, steady_ms: u64);
}

/// A service that wants to lead.
pub struct Candidate {
    election: Election,
    etcd: Http,
    lease: Duration,
}

impl Candidate {
    /// It does not stand yet.
    pub fn new(at: &EtcdConfig) -> Result<Candidate, String> {
        let me = Who { name: at.name.clone(), url: at.url.clone() };
        let lease = Duration::from_secs(at.lease_s);
        Ok(Candidate { election: Election::new(&at.prefix, me, at.lease_s), etcd: Http::new(at, lease / 4)?, lease })
    }

    /// Stands until `stop`; `desk` hears of each change. A lease is counted from the moment at which its renewal was sent, by a clock that goes on
    /// while the machine sleeps, and one that may have ended is no lease, whatever etcd may say later.
    pub fn run(mut self, stop: &AtomicBool, desk: &impl Hears) {
        let (mut said, mut failing) = (None, false);
        let mut tell = |how: Elected| {
            if said.as_ref() != Some(&how) {
                desk.elected(how.clone());
                said = Some(how);
            }
        };
        while !stop.load(Relaxed) {
            let sent_ms = steady_ms();
            match self.election.stand(&mut self.etcd) {
                Ok(Standing::Leads { lease, token }) => {
                    desk.leads_until(self.ends(sent_ms));
                    tell(Elected::This(token));
                    if self.hold(lease, sent_ms, stop, desk) {
                        drop(self.election.resign(&mut self.etcd, lease)); // it ends by itself if this is not heard
                        return;
                    }
                    tracing::warn!("this service does not lead any more: its lease has ended");
                    tell(Elected::Other(None));
                }
                Ok(Standing::Follows(who)) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!("etcd answers again");
                    }
                    tell(Elected::Other(Some(who)));
                }
                Err(e) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!("no election: {e}");
                    }
                    tell(Elected::Other(None));
                }
            }
            sleep(LOOK);
        }
    }

    fn ends(&self, sent_ms: u64) -> u64 {
        sent_ms + self.lease.as_millis() as u64
    }

    /// Renews while it can: was it stopped? Else the lease has ended, or may have.
    fn hold(&mut self, id: i64, from_ms: u64, stop: &AtomicBool, desk: &impl Hears) -> bool {
        let (mut kept_ms, quarter) = (from_ms, self.lease.as_millis() as u64 / 4);
        let (mut next_ms, mut seen) = (kept_ms + quarter, (from_ms, 0));
        loop {
            let now_ms = steady_ms();
            if stop.load(Relaxed) {
                return true;
            }
            if now_ms >= self.ends(kept_ms) {
                return false;
            }
            if now_ms < next_ms {
                sleep(LOOK / 4);
                continue;
            }
            match self.election.renew(&mut self.etcd, id) {
                Ok(Some(revision)) => {
                    (kept_ms, next_ms) = (now_ms, now_ms + quarter);
                    desk.leads_until(self.ends(kept_ms));
                    if now_ms.saturating_sub(seen.0) >= KEEP_MS {
                        self.compact(seen.1);
                        seen = (now_ms, revision);
                    }
                }
                Ok(None) => return false,
                Err(e) => {
                    tracing::warn!("the leader's lease was not renewed: {e}");
                    next_ms = steady_ms() + LOOK.as_millis() as u64;
                }
            }
        }
    }

    fn compact(&mut self, revision: i64) {
        if revision > 0
            && let Err(e) = self.election.compact(&mut self.etcd, revision)
        {
            tracing::debug!("not compacted: {e}"); // another one has, or the next time will
        }
    }
}
