//! An authority, members and sessions for the tests of TLS; certificates are judged by a clock that the test sets.
#![allow(dead_code, reason = "each test program uses some of it")]

use dataplane::tls::authority::{Made, Period};
use dataplane::tls::{Cluster, Fault, Identity, Makers, Outgoing, Pair, Progress, Roots, Session};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const DAY_S: u64 = 86_400;

/// The time that certificates are judged by.
#[derive(Debug)]
pub struct Clock(pub AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Relaxed))))
    }
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A cluster of test.
pub struct Kit {
    pub ca: Made,
    pub clock: Arc<Clock>,
    pub makers: Makers,
}

impl Kit {
    pub fn new() -> Kit {
        let clock = Arc::new(Clock(AtomicU64::new(now_s())));
        let makers = Makers::at(clock.clone()).unwrap();
        Kit { ca: Made::authority("ezone", Period::days(now_s(), 100)).unwrap(), clock, makers }
    }

    pub fn roots(&self) -> Roots {
        Roots::read(self.ca.certificate.as_bytes()).unwrap()
    }

    /// `who` as one that knows zones bj and sh, and edges.
    pub fn member(&self, who: Identity) -> Cluster {
        self.member_by(who, &self.ca)
    }

    /// The same, with a certificate of another authority.
    pub fn member_by(&self, who: Identity, ca: &Made) -> Cluster {
        let made = ca.member(&who, Period::days(now_s(), 10)).unwrap();
        Cluster {
            name: "ezone".into(),
            own: who,
            roots: self.roots(),
            pair: pair(&made),
            known: vec![zone("bj"), zone("sh"), Identity::Edge],
        }
    }

    pub fn server_pair(&self, names: &[&str]) -> Pair {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        pair(&self.ca.server(&names, Period::days(now_s(), 10)).unwrap())
    }

    /// A listener for clients, called localhost and 127.0.0.1.
    pub fn listener(&self) -> Arc<ServerConfig> {
        self.makers.clients(&[self.server_pair(&["localhost", "127.0.0.1"])]).unwrap()
    }

    /// A client of it.
    pub fn client(&self) -> Outgoing {
        self.makers.upstream(&self.roots(), None, Some("localhost")).unwrap()
    }

    /// Client and server of one handshake between routers: `from` means to reach `to`.
    pub fn peers(&self, from: &Cluster, to: &Cluster, meant: &Identity) -> (Session, Session) {
        let how = self.makers.towards(from, meant.clone()).unwrap();
        sessions(&how, &self.makers.peers(to).unwrap())
    }
}

pub fn zone(name: &str) -> Identity {
    Identity::Zone(name.into())
}

pub fn pair(made: &Made) -> Pair {
    Pair::read(made.certificate.as_bytes(), made.key.as_bytes(), &default_provider()).unwrap()
}

pub fn sessions(client: &Outgoing, server: &Arc<ServerConfig>) -> (Session, Session) {
    (Session::outgoing(client, HERE).unwrap(), Session::incoming(server).unwrap())
}

/// A client that trusts the kit's authority, changed by `change`.
pub fn changed(how: &Outgoing, change: impl FnOnce(&mut ClientConfig)) -> Outgoing {
    let mut config = (*how.config).clone();
    change(&mut config);
    Outgoing { config: Arc::new(config), name: how.name.clone() }
}

/// A client that has no certificate to show.
#[derive(Debug)]
pub struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

/// What came of carrying bytes between two sessions until neither has more to say.
pub struct Carried {
    pub client: Result<Progress, Fault>,
    pub server: Result<Progress, Fault>,
    /// Plaintext that came out at the client.
    pub at_client: Vec<u8>,
    /// Plaintext that came out at the server.
    pub at_server: Vec<u8>,
}

impl Carried {
    /// Both sides have done their handshake.
    pub fn both(&self) -> bool {
        self.client.as_ref().is_ok_and(|p| p.established) && self.server.as_ref().is_ok_and(|p| p.established)
    }
}

/// Carries what waits, in pieces of `piece` bytes, until there is nothing left or someone has failed and said so.
pub fn carry(client: &mut Session, server: &mut Session, piece: usize) -> Carried {
    let ok = Ok(Progress::default());
    let mut c = Carried { client: ok.clone(), server: ok, at_client: vec![], at_server: vec![] };
    loop {
        let (mut up, mut down) = (vec![], vec![]);
        client.take(&mut up);
        server.take(&mut down);
        if up.is_empty() && down.is_empty() {
            return c;
        }
        feed(server, &up, piece, &mut c.at_server, &mut c.server);
        feed(client, &down, piece, &mut c.at_client, &mut c.client);
    }
}

/// Hands over `bytes` in pieces and adds up what they changed; after a fault nothing more is handed over.
pub fn feed(to: &mut Session, bytes: &[u8], piece: usize, plain: &mut Vec<u8>, sum: &mut Result<Progress, Fault>) {
    for part in bytes.chunks(piece) {
        let Ok(progress) = sum else { return };
        match to.on_bytes(part, plain) {
            Ok(p) => {
                progress.established |= p.established;
                progress.ended |= p.ended;
            }
            Err(fault) => *sum = Err(fault),
        }
    }
}
