//! Which member of a cluster a certificate names: a SPIFFE ID in its subject's alternative names.
//!
//! `spiffe://<cluster>/zone/<name>` is a router or log of that zone, `spiffe://<cluster>/edge` a router of no zone,
//! `spiffe://<cluster>` the cluster's authority. A certificate carries exactly one (SPIFFE X.509-SVID §2), so that nobody
//! can be two.

use rustls::pki_types::CertificateDer;
use shardmap::names::is_segment;
use std::fmt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SCHEME: &str = "spiffe://";
/// SPIFFE ID §2.1: a trust domain is at most this long.
const CLUSTER_BYTES_MAX: usize = 255;
const ZONE_BYTES_MAX: usize = 255;

/// A member of a cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Identity {
    /// A node of the zone of this name.
    Zone(String),
    /// A router of no zone.
    Edge,
}

/// Why a certificate is not the member that it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It names nobody, or several.
    #[error("the certificate has {seen} URI names{list}, expected one: spiffe://{cluster}/zone/NAME or spiffe://{cluster}/edge", list = listed(names))]
    NotOne {
        /// How many.
        seen: usize,
        /// Which.
        names: Vec<String>,
        /// Our cluster.
        cluster: String,
    },
    /// Its one name is not of a member of our cluster.
    #[error("the certificate is of \"{seen}\", expected spiffe://{cluster}/zone/NAME or spiffe://{cluster}/edge")]
    NotMember {
        /// The name.
        seen: String,
        /// Our cluster.
        cluster: String,
    },
    /// It is of a member that we do not know.
    #[error("the certificate is of {seen}, which this configuration does not know: it knows {known}")]
    Unknown {
        /// Who it is.
        seen: Identity,
        /// Whom we know.
        known: String,
    },
    /// It is of another member than we meant to reach.
    #[error("the certificate is of {seen}, expected {expected}")]
    Other {
        /// Who it is.
        seen: Identity,
        /// Whom we meant.
        expected: Identity,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Zone(name) => write!(f, "zone {name}"),
            Identity::Edge => write!(f, "an edge"),
        }
    }
}

impl Identity {
    /// Its name in the certificates of `cluster`.
    pub fn uri(&self, cluster: &str) -> String {
        match self {
            Identity::Zone(name) => format!("{SCHEME}{cluster}/zone/{name}"),
            Identity::Edge => format!("{SCHEME}{cluster}/edge"),
        }
    }

    /// The member of `cluster` that `certificate` names. Says nothing of whether the certificate is to be believed.
    pub fn of(certificate: &CertificateDer<'_>, cluster: &str) -> Result<Identity, Wrong> {
        let names = uris(certificate)?;
        let cluster = cluster.to_string();
        let [name] = &names[..] else { return Err(Wrong::NotOne { seen: names.len(), names, cluster }) };
        Identity::parse(name, &cluster).ok_or_else(|| Wrong::NotMember { seen: name.clone(), cluster })
    }

    fn parse(uri: &str, cluster: &str) -> Option<Identity> {
        match uri.strip_prefix(SCHEME)?.strip_prefix(cluster)?.strip_prefix('/')? {
            "edge" => Some(Identity::Edge),
            path => path.strip_prefix("zone/").filter(|z| is_zone(z)).map(|z| Identity::Zone(z.into())),
        }
    }
}

/// The name of an authority in its own certificate.
pub fn authority_uri(cluster: &str) -> String {
    format!("{SCHEME}{cluster}")
}

/// The cluster whose authority `certificate` says it is.
pub fn cluster_of(certificate: &CertificateDer<'_>) -> Result<String, Wrong> {
    let names = uris(certificate)?;
    match &names[..] {
        [name] if name.strip_prefix(SCHEME).is_some_and(is_cluster) => Ok(name[SCHEME.len()..].to_string()),
        _ => Err(Wrong::NotOne { seen: names.len(), names, cluster: "CLUSTER".into() }),
    }
}

/// May a cluster be called so? SPIFFE ID §2.1: lower-case letters, digits, dots, dashes, underscores.
pub fn is_cluster(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=CLUSTER_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// May a zone be called so in a certificate? SPIFFE ID §2.2: one segment of a path.
pub fn is_zone(name: &str) -> bool {
    is_segment(name, ZONE_BYTES_MAX)
}

fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Wrong> {
    let unreadable = |e: String| Wrong::Unreadable(e);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| unreadable(e.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|e| unreadable(e.to_string()))?;
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(uri.to_string()),
        _ => None,
    };
    Ok(names.map_or(vec![], |names| names.value.general_names.iter().filter_map(uri).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_from_its_uri_and_nothing_else_is_one() {
        for identity in [Identity::Zone("bj".into()), Identity::Zone("eu-west.1".into()), Identity::Edge] {
            assert_eq!(Identity::parse(&identity.uri("ezone"), "ezone"), Some(identity));
        }
        for wrong in [
            "spiffe://ezone",
            "spiffe://ezone/",
            "spiffe://ezone/zone",
            "spiffe://ezone/zone/",
            "spiffe://ezone/zone/bj/x",
            "spiffe://ezone/zone/..",
            "spiffe://ezone/zone/b j",
            "spiffe://ezone/zone/bj?",
            "spiffe://ezone/edge/",
            "spiffe://ezone/Edge",
            "spiffe://ezone2/edge",
            "spiffe://ezon/edge",
            "spiffe://user@ezone/edge",
            "spiffe://ezone:1/edge",
            "SPIFFE://ezone/edge",
            "https://ezone/edge",
            "",
        ] {
            assert_eq!(Identity::parse(wrong, "ezone"), None, "{wrong}");
        }
    }

    #[test]
    fn names_that_a_uri_cannot_carry_are_refused() {
        assert!(is_cluster("ezone-1.test") && !is_cluster("") && !is_cluster("Ezone") && !is_cluster("a/b"));
        assert!(
            is_zone("bj") && is_zone("BJ_1") && !is_zone("") && !is_zone("..") && !is_zone("a/b") && !is_zone("北京")
        );
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        let wrong = Identity::of(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]), "ezone").unwrap_err();
        assert!(matches!(wrong, Wrong::Unreadable(_)), "{wrong}");
    }
}
