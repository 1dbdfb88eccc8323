//! Reads and judges certificates and keys in PEM: do they belong together, whose are they, for how long.

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate that ends sooner than this is warned of.
pub const WARN_BEFORE_S: u64 = 14 * 24 * 3600;
/// A file of certificates or a key is at most this long.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates in one chain.
const CHAIN_MAX: usize = 10;

/// A chain of certificates with the key of the first.
#[derive(Clone, Debug)]
pub struct Pair {
    /// For rustls.
    pub certified: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case; wildcards as they stand.
    pub names: Vec<String>,
    /// What it is valid for, in seconds since 1970.
    pub validity: Validity,
    /// It works, but not everywhere: why.
    pub warnings: Vec<String>,
}

/// From when to when, in seconds since 1970; both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// From then ..
    pub from_s: i64,
    /// .. to then.
    pub until_s: i64,
}

/// The authorities that are trusted for some purpose.
#[derive(Clone, Debug)]
pub struct Roots {
    /// For rustls.
    pub store: Arc<RootCertStore>,
    /// When the first of them ends.
    pub until_s: i64,
}

impl Validity {
    /// What is wrong with it at `now_s`, or will be soon; `None`: nothing.
    pub fn trouble(&self, now_s: u64) -> Option<String> {
        let now = i64::try_from(now_s).unwrap_or(i64::MAX);
        let days = |seconds: i64| seconds / 86_400;
        match () {
            () if now > self.until_s => Some(format!("has ended {} days ago", days(now - self.until_s))),
            () if now < self.from_s => Some(format!(
                "is not valid before {} days and {} s from now",
                days(self.from_s - now),
                (self.from_s - now) % 86_400
            )),
            () if now + WARN_BEFORE_S as i64 > self.until_s => {
                Some(format!("ends in {} days", days(self.until_s - now)))
            }
            () => None,
        }
    }

    /// Is it valid at `now_s`?
    pub fn holds(&self, now_s: u64) -> bool {
        (self.from_s..=self.until_s).contains(&i64::try_from(now_s).unwrap_or(i64::MAX))
    }
}

impl Pair {
    /// Reads a chain, the server's own certificate first, and its key (PKCS#8, PKCS#1 or SEC1), both in PEM.
    ///
    /// The error says which of the two files is wrong, and how.
    pub fn read(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<Pair, String> {
        let chain = certificates(chain).map_err(|e| format!("certificate: {e}"))?;
        if chain.len() > CHAIN_MAX {
            return Err(format!("certificate: a chain of {}, at most {CHAIN_MAX}", chain.len()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("key: {}", of_pem(&e, "PRIVATE KEY")))?;
        let first = parse(&chain[0]).map_err(|e| format!("certificate: {e}"))?;
        let (names, validity) = (dns_names(&first)?, validity(&first));
        let warnings = out_of_order(&chain)?;
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => "key: it is not the key of this certificate".to_string(),
            e => format!("key: {e}"),
        })?;
        Ok(Pair { certified: Arc::new(certified), names, validity, warnings })
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certified.cert[0]
    }
}

impl Roots {
    /// Reads the certificates of authorities in PEM.
    pub fn read(text: &[u8]) -> Result<Roots, String> {
        let (mut store, mut until_s) = (RootCertStore::empty(), i64::MAX);
        for (i, certificate) in certificates(text)?.into_iter().enumerate() {
            let parsed = parse(&certificate)?;
            if !parsed.is_ca() {
                let subject = parsed.subject();
                return Err(format!(
                    "certificate {} (\"{subject}\") is not of an authority (basicConstraints CA)",
                    i + 1
                ));
            }
            until_s = until_s.min(validity(&parsed).until_s);
            store.add(certificate).map_err(|e| format!("certificate {}: {e}", i + 1))?;
        }
        Ok(Roots { store: Arc::new(store), until_s })
    }

    /// What this machine trusts. The error says why that is nothing.
    pub fn system() -> Result<Roots, String> {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (taken, _) = store.add_parsable_certificates(found.certs);
        if taken == 0 {
            let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            return Err(format!("this machine has no root certificates (package ca-certificates): {}", why.join(", ")));
        }
        Ok(Roots { store: Arc::new(store), until_s: i64::MAX })
    }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let all = all.map_err(|e| of_pem(&e, "CERTIFICATE"))?;
    if all.is_empty() {
        return Err("no PEM section \"-----BEGIN CERTIFICATE-----\" in it".into());
    }
    Ok(all)
}

fn of_pem(e: &pem::Error, section: &str) -> String {
    match e {
        pem::Error::NoItemsFound => format!("no PEM section \"-----BEGIN {section}-----\" in it"),
        e => format!("not readable as PEM: {e:?}"),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|e| format!("not readable as X.509: {e}"))
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let v = certificate.validity();
    Validity { from_s: v.not_before.timestamp(), until_s: v.not_after.timestamp() }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let names = certificate.subject_alternative_name().map_err(|e| format!("certificate: its names: {e}"))?;
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    Ok(names.map_or(vec![], |names| names.value.general_names.iter().filter_map(dns).collect()))
}

/// RFC 8446 §4.4.2: each certificate should be followed by that of its issuer; many clients insist.
fn out_of_order(chain: &[CertificateDer<'_>]) -> Result<Vec<String>, String> {
    let parsed: Vec<_> = chain.iter().map(parse).collect::<Result<_, _>>().map_err(|e| format!("certificate: {e}"))?;
    let broken = parsed.windows(2).enumerate().filter(|(_, two)| two[0].issuer() != two[1].subject());
    let said = broken.map(|(i, two)| {
        let (issuer, next) = (two[0].issuer(), two[1].subject());
        format!(
            "certificate {} of the chain is of \"{next}\", expected the issuer of the one before, \"{issuer}\"",
            i + 2
        )
    });
    Ok(said.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::{Made, Period};
    use rustls::crypto::ring::default_provider;

    const NOW_S: u64 = 1_800_000_000;

    fn made() -> (Made, Made) {
        let ca = Made::authority("ezone", Period::days(NOW_S, 100)).unwrap();
        let server = ca.server(&["Example.com".into(), "*.example.org".into()], Period::days(NOW_S, 10)).unwrap();
        (ca, server)
    }

    #[test]
    fn a_pair_says_its_names_and_its_end() {
        let (_, server) = made();
        let pair = Pair::read(server.certificate.as_bytes(), server.key.as_bytes(), &default_provider()).unwrap();
        assert_eq!(pair.names, ["example.com", "*.example.org"]);
        assert!(pair.validity.holds(NOW_S) && !pair.validity.holds(NOW_S + 11 * 86_400));
        assert_eq!(pair.validity.trouble(NOW_S).unwrap(), "ends in 10 days");
        assert!(pair.validity.trouble(NOW_S + 12 * 86_400).unwrap().starts_with("has ended"));
        assert!(pair.validity.trouble(NOW_S - 3 * 86_400).unwrap().starts_with("is not valid before 2 days"));
        assert_eq!(pair.warnings, Vec::<String>::new());
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused_with_the_reason() {
        let ((ca, server), (_, other)) = (made(), made());
        let read =
            |chain: &str, key: &str| Pair::read(chain.as_bytes(), key.as_bytes(), &default_provider()).unwrap_err();
        assert_eq!(read(&server.certificate, &other.key), "key: it is not the key of this certificate");
        assert!(read(&server.key, &server.key).starts_with("certificate: no PEM section \"-----BEGIN CERTIFICATE"));
        assert!(read(&server.certificate, &server.certificate).starts_with("key: no PEM section"));
        assert!(read("", "").starts_with("certificate: no PEM"));
        let cut = &server.certificate[..server.certificate.len() / 2];
        assert!(read(cut, &server.key).starts_with("certificate: not readable as PEM"));
        let long = server.certificate.repeat(11);
        assert_eq!(read(&long, &server.key), "certificate: a chain of 11, at most 10");
        assert!(Roots::read(server.certificate.as_bytes()).unwrap_err().contains("is not of an authority"));
        assert!(Roots::read(ca.certificate.as_bytes()).is_ok());
    }

    #[test]
    fn a_chain_out_of_order_is_warned_of() {
        let (ca, server) = made();
        let read = |chain: String| Pair::read(chain.as_bytes(), server.key.as_bytes(), &default_provider()).unwrap();
        assert!(read(server.certificate.clone() + &ca.certificate).warnings.is_empty());
        let said = read(server.certificate.clone() + &server.certificate).warnings;
        assert!(said[0].starts_with("certificate 2 of the chain"), "{said:?}");
    }
}
