//! What sessions of one kind have in common: versions, certificates, whom to trust, tickets. Made once, shared by all cores.
//!
//! | who | versions | our certificate | theirs |
//! |---|---|---|---|
//! | clients at `tls_listen` | 1.2, 1.3 | chosen by name (SNI), else the first | not asked for |
//! | routers at `peer_listen` | 1.3 | the cluster's | a member of the cluster that we know |
//! | another zone's router | 1.3 | the cluster's | that zone's, no other |
//! | upstreams | 1.2, 1.3 | if configured | of a trusted authority, for the upstream's name |
//!
//! Sessions with clients and upstreams are resumed by tickets. Those between routers are not: each one proves its
//! certificate afresh, so that a certificate taken out of use is not trusted by way of an old ticket.

use super::certificates::{Pair, Roots};
use super::identity::{Identity, Wrong};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The only protocol that we speak inside (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// Names what connections to destinations of one kind have in common. Within a process it is never given to another
/// kind, so that an old one finds either the same kind or nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TlsId(pub u32);

/// Everything that new handshakes go by. A newer one replaces it whole; sessions under way keep what they began with.
#[derive(Clone, Default)]
pub struct Contexts(Arc<All>);

#[derive(Default)]
struct All {
    expiries: Vec<Expiry>,
    clients: Option<Arc<ServerConfig>>,
    peers: Option<Arc<ServerConfig>>,
    outgoing: HashMap<TlsId, Outgoing>,
}

/// When a certificate ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Expiry {
    /// The file that it came from.
    pub file: String,
    /// In seconds since 1970.
    pub until_s: i64,
}

/// How connections of one kind are made.
#[derive(Clone)]
pub struct Outgoing {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// Whose certificate is expected; `None`: that of the address.
    pub name: Option<ServerName<'static>>,
}

/// A cluster as one of its members sees it.
#[derive(Clone)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Who we are in it.
    pub own: Identity,
    /// Its authorities.
    pub roots: Roots,
    /// Our certificate.
    pub pair: Pair,
    /// The members that we know, ourselves among them.
    pub known: Vec<Identity>,
}

/// Makes contexts; keeps what must outlive them: the keys of tickets.
pub struct Makers {
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

impl Contexts {
    /// `clients`: for `tls_listen`. `peers`: for `peer_listen`. `outgoing`: for destinations, by what they are called.
    pub fn new(
        clients: Option<Arc<ServerConfig>>,
        peers: Option<Arc<ServerConfig>>,
        outgoing: impl IntoIterator<Item = (TlsId, Outgoing)>,
    ) -> Contexts {
        Contexts(Arc::new(All { expiries: vec![], clients, peers, outgoing: outgoing.into_iter().collect() }))
    }

    /// With word of when the certificates end that it was made of.
    pub fn with_expiries(self, expiries: Vec<Expiry>) -> Contexts {
        let All { clients, peers, outgoing, .. } = &*self.0;
        let (clients, peers, outgoing) = (clients.clone(), peers.clone(), outgoing.clone());
        Contexts(Arc::new(All { expiries, clients, peers, outgoing }))
    }

    /// When the certificates end that it was made of.
    pub fn expiries(&self) -> &[Expiry] {
        &self.0.expiries
    }

    /// For clients.
    pub fn clients(&self) -> Option<&Arc<ServerConfig>> {
        self.0.clients.as_ref()
    }

    /// For routers of other zones, and edges.
    pub fn peers(&self) -> Option<&Arc<ServerConfig>> {
        self.0.peers.as_ref()
    }

    /// For destinations of the kind `id`.
    pub fn outgoing(&self, id: TlsId) -> Option<&Outgoing> {
        self.0.outgoing.get(&id)
    }
}

/// The same, if it is the very same: what is in it cannot be compared.
impl PartialEq for Contexts {
    fn eq(&self, other: &Contexts) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Contexts {}

impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (clients, peers) = (self.0.clients.is_some(), self.0.peers.is_some());
        write!(f, "Contexts {{ clients: {clients}, peers: {peers}, outgoing: {} }}", self.0.outgoing.len())
    }
}

impl Makers {
    /// Judges certificates by this machine's clock.
    pub fn new() -> Result<Makers, String> {
        Makers::at(Arc::new(DefaultTimeProvider))
    }

    /// Judges certificates by `clock`.
    pub fn at(clock: Arc<dyn TimeProvider>) -> Result<Makers, String> {
        let tickets = ring::Ticketer::new().map_err(|e| format!("no random numbers for the keys of tickets: {e}"))?;
        Ok(Makers { provider: Arc::new(ring::default_provider()), clock, tickets })
    }

    /// The cryptography that keys are read with.
    pub fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    /// For clients: the pair whose names fit the name that is asked for, else the first.
    pub fn clients(&self, pairs: &[Pair]) -> Result<Arc<ServerConfig>, String> {
        let by_name = Arc::new(ByName::new(pairs).ok_or("no certificate for clients")?);
        let builder = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&TLS12, &TLS13]).map_err(|e| e.to_string())?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(by_name);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ticketer = self.tickets.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// For routers that connect to us.
    pub fn peers(&self, cluster: &Cluster) -> Result<Arc<ServerConfig>, String> {
        let chain = WebPkiClientVerifier::builder_with_provider(cluster.roots.store.clone(), self.provider.clone())
            .build()
            .map_err(|e| format!("ca: {e}"))?;
        let rule = Rule { cluster: cluster.name.clone(), expected: Expected::AnyOf(cluster.known.clone()) };
        let builder = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(|e| e.to_string())?;
        let single = Arc::new(Single(cluster.pair.certified.clone()));
        let mut config =
            builder.with_client_cert_verifier(Arc::new(FromPeer { chain, rule })).with_cert_resolver(single);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Towards the routers of `who`, and of nobody else.
    pub fn towards(&self, cluster: &Cluster, who: Identity) -> Result<Outgoing, String> {
        let rule = Rule { cluster: cluster.name.clone(), expected: Expected::Only(who) };
        let verifier = ToPeer { roots: cluster.roots.clone(), provider: self.provider.clone(), rule };
        let builder = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&TLS13]).map_err(|e| e.to_string())?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = builder.with_client_cert_resolver(Arc::new(Single(cluster.pair.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Outgoing { config: Arc::new(config), name: None })
    }

    /// Towards upstreams: `roots` says whom to believe, `own` who we are, `name` whose certificate is expected
    /// (`None`: that of the endpoint's address).
    pub fn upstream(&self, roots: &Roots, own: Option<&Pair>, name: Option<&str>) -> Result<Outgoing, String> {
        let name = match name {
            Some(name) => Some(server_name(name)?),
            None => None,
        };
        let builder = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone());
        let builder = builder.with_protocol_versions(&[&TLS12, &TLS13]).map_err(|e| e.to_string())?;
        let builder = builder.with_root_certificates(roots.store.clone());
        let mut config = match own {
            Some(pair) => builder.with_client_cert_resolver(Arc::new(Single(pair.certified.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Outgoing { config: Arc::new(config), name })
    }
}

/// A name that a certificate may be for.
pub fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_string()).map_err(|_| format!("\"{name}\": expected a DNS name or an address"))
}

impl Cluster {
    /// Would the other members believe our own certificate? `Ok` carries what will be wrong soon, or is wrong with time.
    pub fn check(&self, now_s: u64, provider: &CryptoProvider) -> Result<Option<String>, String> {
        let seen = Identity::of(self.pair.certificate(), &self.name).map_err(|e| e.to_string())?;
        if seen != self.own {
            return Err(Wrong::Other { seen, expected: self.own.clone() }.to_string());
        }
        // A certificate that has ended may be of the right authority all the same: ask as of a time when it was valid.
        let from_s = self.pair.validity.from_s.max(0) as u64;
        let as_of = if self.pair.validity.holds(now_s) { now_s } else { from_s };
        let as_of = UnixTime::since_unix_epoch(std::time::Duration::from_secs(as_of));
        let chain = &self.pair.certified.cert;
        match chains(&chain[0], &chain[1..], &self.roots, as_of, provider) {
            Ok(()) | Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) => {}
            Err(e) => return Err(format!("certificate: not signed by an authority of ca: {e}")),
        }
        Ok(self.pair.validity.trouble(now_s).map(|t| format!("certificate: {t}")))
    }
}

fn chains(
    first: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let first = ParsedCertificate::try_from(first)?;
    let all = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&first, &roots.store, rest, now, all)
}

// ---- our certificates -----------------------------------------------------------------------------------------------

/// The pairs of a listener: by name, by wildcard, else the first (RFC 6066 §3, RFC 6125 §6.4.3).
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    fn new(pairs: &[Pair]) -> Option<ByName> {
        let mut names = HashMap::new();
        for pair in pairs {
            for name in &pair.names {
                names.entry(name.clone()).or_insert_with(|| pair.certified.clone());
            }
        }
        Some(ByName { names, first: pairs.first()?.certified.clone() })
    }

    fn find(&self, name: &str) -> &Arc<CertifiedKey> {
        // rustls gives the name in lower case, checked to be a DNS name.
        let wildcard = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(name).or_else(wildcard).unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(hello.server_name().map_or(&self.first, |name| self.find(name)).clone())
    }
}

/// The same certificate whoever asks.
#[derive(Debug)]
struct Single(Arc<CertifiedKey>);

impl ResolvesServerCert for Single {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Single {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

// ---- theirs ---------------------------------------------------------------------------------------------------------

/// Which members of a cluster are let in.
#[derive(Debug)]
struct Rule {
    cluster: String,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    AnyOf(Vec<Identity>),
    Only(Identity),
}

impl Rule {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let judged = Identity::of(certificate, &self.cluster).and_then(|seen| match &self.expected {
            Expected::Only(expected) if seen != *expected => Err(Wrong::Other { seen, expected: expected.clone() }),
            Expected::AnyOf(known) if !known.contains(&seen) => {
                let known = known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(Wrong::Unknown { seen, known })
            }
            Expected::Only(_) | Expected::AnyOf(_) => Ok(()),
        });
        judged.map_err(|e| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e)))))
    }
}

#[derive(Debug)]
struct FromPeer {
    chain: Arc<dyn ClientCertVerifier>,
    rule: Rule,
}

impl ClientCertVerifier for FromPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end, rest, now)?;
        self.rule.judge(end)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ToPeer {
    roots: Roots,
    provider: Arc<CryptoProvider>,
    rule: Rule,
}

impl ServerCertVerifier for ToPeer {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        chains(end, rest, &self.roots, now, &self.provider)?;
        self.rule.judge(end)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 between routers".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
