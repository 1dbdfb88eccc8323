//! Makes active checks: one prober for the whole process, on the control thread. `health` says when, and what follows.
//!
//! A check is a connection of its own, bounded in time and bytes: with the PROXY header and the TLS session that requests
//! would have, and a GET of which only the answer's head is read. Its verdicts reach the cores as new settings.

use super::health::{Ask, Change, Checks, Key, Outcome, Report, Seen, Wanted};
use crate::config::{Config, Probe, ProbeKind};
use crate::http::{parse_response, proxy, scan, slots};
use crate::router::{Endpoint, Settings};
use crate::tls::{Outgoing, Session};
use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

/// Of an answer, 1xx ones before it included.
const ANSWER_BYTES_MAX: usize = 8192;

/// What is known of each endpoint that is checked, for the pages.
pub type Reports = Arc<Mutex<BTreeMap<Key, Report>>>;

/// The prober.
pub struct Prober {
    checks: Checks,
    under_way: JoinSet<Seen>,
    /// Which check a task makes.
    asked: HashMap<tokio::task::Id, (Key, u64)>,
    began: Instant,
    reports: Reports,
}

impl Prober {
    /// With nothing to check.
    pub fn new() -> Prober {
        let seed = super::wall_ms() ^ u64::from(std::process::id()) << 32;
        let (under_way, asked) = (JoinSet::new(), HashMap::new());
        Prober { checks: Checks::new(seed), under_way, asked, began: Instant::now(), reports: Reports::default() }
    }

    /// What the pages show.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// The verdict; whoever is not checked is healthy.
    pub fn is_healthy(&self, key: &Key) -> bool {
        self.checks.is_healthy(key)
    }

    /// Checks these from now on.
    pub fn renew(&mut self, wanted: Vec<(Key, Wanted)>) {
        self.checks.renew(wanted, self.now_ms());
        *self.shown() = self.checks.reports().map(|(k, r)| (k.clone(), r.clone())).collect();
    }

    /// Checks until a verdict changes. May be dropped at any time, and called again.
    pub async fn next(&mut self) -> Change {
        loop {
            while let Some(Ask { key, round, wanted }) = self.checks.next_ask(self.now_ms()) {
                let task = self.under_way.spawn(async move { check(&wanted).await });
                self.asked.insert(task.id(), (key, round));
            }
            let wake = self.checks.deadline_ms().map(|at| self.began + Duration::from_millis(at));
            tokio::select! {
                Some(ended) = self.under_way.join_next_with_id() => {
                    if let Some(change) = self.ended(ended) {
                        return change;
                    }
                }
                () = tokio::time::sleep_until(wake.unwrap_or(self.began)), if wake.is_some() => {}
                else => pending().await,
            }
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Seen), JoinError>) -> Option<Change> {
        let (id, seen) = match ended {
            Ok(ended) => ended,
            Err(e) => (e.id(), Seen::new(Outcome::Malformed, format!("the check failed by itself: {e}"))),
        };
        let (key, round) = self.asked.remove(&id).expect("each task was written down when it began");
        let change = self.checks.on_seen(&key, round, seen, super::wall_ms());
        if let Some(report) = self.checks.report(&key) {
            self.shown().insert(key, report.clone());
        }
        change
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Report>> {
        self.reports.lock().expect("no holder of this lock can panic: it moves values")
    }
}

impl Default for Prober {
    fn default() -> Prober {
        Prober::new()
    }
}

/// Everything that is to be checked, of settings that were made of this configuration.
pub fn plan(config: &Config, settings: &Settings) -> Vec<(Key, Wanted)> {
    let mut all = vec![];
    let mut add = |name: &str, endpoints: &[Endpoint], probe: &Option<Probe>, named: Option<&str>| {
        let Some(probe) = probe else { return };
        for e in endpoints {
            let own = probe.port.is_none_or(|p| p == e.addr.port());
            let to = (e.addr.ip(), probe.port.unwrap_or(e.addr.port())).into();
            let tls = e.tls.filter(|_| own).and_then(|id| settings.tls.outgoing(id)).cloned();
            let host = match &probe.kind {
                ProbeKind::Http { host: Some(host), .. } => host.clone(),
                ProbeKind::Http { host: None, .. } | ProbeKind::Tcp => named.map_or_else(|| host_of(e), str::to_owned),
            };
            let wanted = Wanted { probe: probe.clone(), to, host, proxy_protocol: e.proxy_protocol && own, tls };
            all.push(((name.to_owned(), e.addr), wanted));
        }
    };
    for (of, s) in config.services.iter().zip(&settings.services) {
        let named = of.tls.as_ref().and_then(|t| t.server_name.as_deref());
        add(&s.name, &s.endpoints, &of.probe, named);
    }
    for p in &settings.peers {
        let zone = config.zones.iter().find(|z| p.name.strip_prefix("zone:") == Some(&z.name));
        add(&p.name, &p.endpoints, &zone.and_then(|z| z.probe.clone()), None);
    }
    all
}

/// What a client would say that it asks: the endpoint's name or address, with its port unless that is the protocol's own.
fn host_of(e: &Endpoint) -> String {
    let (text, own) =
        (e.name.as_deref().map_or(e.addr.to_string(), str::to_owned), if e.tls.is_some() { 443 } else { 80 });
    let (text, port) = (text.replace(".:", ":"), format!(":{own}")); // the dot of an absolute name is no part of it here
    text.strip_suffix(&port).map_or(text.clone(), |bare| bare.to_owned())
}

/// One check, within its time.
async fn check(w: &Wanted) -> Seen {
    let limit = Duration::from_millis(w.probe.timeout_ms);
    let done = tokio::time::timeout(limit, exchange(w)).await;
    done.unwrap_or_else(|_| Err(Seen::new(Outcome::Late, format!("not within {} ms", w.probe.timeout_ms))))
        .unwrap_or_else(|bad| bad)
}

/// Both ways a good `Seen`, or the bad one that ended it.
async fn exchange(w: &Wanted) -> Result<Seen, Seen> {
    let stream = TcpStream::connect(w.to).await.map_err(broken)?;
    let mut line = Line { stream, tls: None };
    if w.proxy_protocol {
        let mut header = vec![];
        proxy::write(&mut header, None, w.to);
        line.stream.write_all(&header).await.map_err(broken)?;
    }
    let mut read = vec![];
    if let Some(how) = &w.tls {
        line.secure(how, w, &mut read).await?;
    }
    let seen = match &w.probe.kind {
        ProbeKind::Tcp => Ok(Seen::new(Outcome::Good, "connected")),
        ProbeKind::Http { path, statuses, .. } => {
            line.send(get(path, &w.host).as_bytes()).await?;
            let status = line.status(read).await?;
            let good = statuses.iter().any(|s| s.contains(&status));
            Ok(Seen::new(if good { Outcome::Good } else { Outcome::Status }, status.to_string()))
        }
    };
    line.end().await;
    seen
}

fn get(path: &str, host: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: ezone-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    )
}

fn broken(e: io::Error) -> Seen {
    Seen::new(Outcome::Connect, e.to_string())
}

/// A connection of a check.
struct Line {
    stream: TcpStream,
    tls: Option<Session>,
}

impl Line {
    async fn secure(&mut self, how: &Outgoing, w: &Wanted, read: &mut Vec<u8>) -> Result<(), Seen> {
        let failed = |e: crate::tls::Fault| Seen::new(Outcome::Tls, e.to_string());
        let mut tls = Session::outgoing(how, w.to.ip()).map_err(failed)?;
        loop {
            let mut out = vec![];
            tls.take(&mut out);
            self.stream.write_all(&out).await.map_err(broken)?;
            if tls.is_established() {
                self.tls = Some(tls);
                return Ok(());
            }
            let bytes = self.receive().await?;
            if let Err(e) = tls.on_bytes(&bytes, read) {
                let mut alert = vec![];
                tls.take(&mut alert);
                let _ = self.stream.write_all(&alert).await; // what failed is told by the fault
                return Err(failed(e));
            }
        }
    }

    async fn send(&mut self, plain: &[u8]) -> Result<(), Seen> {
        let mut sealed = vec![];
        let out = match &mut self.tls {
            Some(tls) => {
                tls.seal(plain, &mut sealed);
                &sealed
            }
            None => plain,
        };
        self.stream.write_all(out).await.map_err(broken)
    }

    /// The status of the final answer, of which `read` has come.
    async fn status(&mut self, mut read: Vec<u8>) -> Result<u16, Seen> {
        let malformed = |why: &dyn std::fmt::Display| Seen::new(Outcome::Malformed, why.to_string());
        let (mut at, mut scanned) = (0, 0);
        loop {
            match scan(&read[at..], &mut scanned, ANSWER_BYTES_MAX).map_err(|f| malformed(&f.error))? {
                Some(n) => {
                    let status =
                        parse_response(&read[at..at + n], &mut slots()).map_err(|f| malformed(&f.error))?.status;
                    if status >= 200 || status == 101 {
                        return Ok(status);
                    }
                    (at, scanned) = (at + n, 0);
                }
                None if read.len() >= ANSWER_BYTES_MAX => {
                    return Err(malformed(&format!("no answer in {} bytes", read.len())));
                }
                None => {
                    let bytes = self.receive().await?;
                    match &mut self.tls {
                        Some(tls) => {
                            tls.on_bytes(&bytes, &mut read).map_err(|e| Seen::new(Outcome::Tls, e.to_string()))?;
                        }
                        None => read.extend_from_slice(&bytes),
                    }
                }
            }
        }
    }

    /// Some bytes as they came.
    async fn receive(&mut self) -> Result<Vec<u8>, Seen> {
        let mut bytes = vec![0; 4096];
        let n = self.stream.read(&mut bytes).await.map_err(broken)?;
        bytes.truncate(n);
        if n == 0 { Err(Seen::new(Outcome::Connect, "closed before an answer")) } else { Ok(bytes) }
    }

    /// Takes leave, where that is to be said.
    async fn end(mut self) {
        if let Some(tls) = &mut self.tls {
            let mut out = vec![];
            tls.end();
            tls.take(&mut out);
            let _ = self.stream.write_all(&out).await; // the verdict stands
        }
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
