//! Stands for election again and again, and keeps the lease of a leader: a thread of its own, so that nothing else delays it.

use super::desk::Elected;
use super::etcd::Http;
use crate::config::EtcdConfig;
use gzs::store::etcd::{Election, Standing, Who};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often one that follows looks whether there is a leader.
const LOOK: Duration = Duration::from_millis(100);

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

    /// Stands until `stop`; `tell` hears of each change. A lease is counted from the moment at which its renewal was sent, and one that may have
    /// ended is no lease, whatever etcd may say later.
    pub fn run(mut self, stop: &AtomicBool, tell: impl Fn(Elected)) {
        run(&self.election, &mut self.etcd, self.lease, stop, tell);
    }
}

fn run(election: &Election, etcd: &mut Http, lease: Duration, stop: &AtomicBool, tell: impl Fn(Elected)) {
    let mut said = None;
    let mut tell = |how: Elected| {
        if said.as_ref() != Some(&how) {
            tell(how.clone());
            said = Some(how);
        }
    };
    let mut failing = false;
    while !stop.load(Relaxed) {
        let sent = Instant::now();
        match election.stand(etcd) {
            Ok(Standing::Leads { lease: id, token }) => {
                tell(Elected::This(token));
                if hold(election, etcd, id, (sent, lease), stop) {
                    drop(election.resign(etcd, id)); // it ends by itself if this is not heard
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

/// Renews while it can: was it stopped? Else the lease has ended, or may have.
fn hold(election: &Election, etcd: &mut Http, id: i64, from: (Instant, Duration), stop: &AtomicBool) -> bool {
    let (mut kept, lease) = from;
    let mut next = kept + lease / 4;
    loop {
        if stop.load(Relaxed) {
            return true;
        }
        if kept.elapsed() >= lease {
            return false;
        }
        if Instant::now() < next {
            sleep(LOOK / 4);
            continue;
        }
        let sent = Instant::now();
        match election.renew(etcd, id) {
            Ok(true) => (kept, next) = (sent, sent + lease / 4),
            Ok(false) => return false,
            Err(e) => {
                tracing::warn!("the leader's lease was not renewed: {e}");
                next = Instant::now() + LOOK;
            }
        }
    }
}
