//! Makes a cluster's authority and the certificates that it signs: for tests, trials and small clusters.
//!
//! Keys are ECDSA P-256. Whoever runs an authority already (SPIRE, Vault, a company's CA) needs none of this: only the
//! names in the certificates count, see `identity`.

use super::certificates::Validity;
use super::identity::{self, Identity};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

/// Clocks differ: a certificate is valid from a little before it was made.
const BEFORE_S: u64 = 3600;
/// 9999-12-31, the last day that X.509 can say.
const LAST_S: u64 = 253_402_214_400;

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8: a secret.
    pub key: String,
}

/// For how long a certificate is made.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    from_s: u64,
    until_s: u64,
}

impl Period {
    /// For so many days from `now_s`, in seconds since 1970.
    pub fn days(now_s: u64, days: u32) -> Period {
        Period { from_s: now_s.saturating_sub(BEFORE_S), until_s: (now_s + u64::from(days) * 86_400).min(LAST_S) }
    }

    /// What a certificate made for it is valid for.
    pub fn validity(&self) -> Validity {
        Validity { from_s: self.from_s as i64, until_s: self.until_s as i64 }
    }
}

impl Made {
    /// A new authority of `cluster`.
    pub fn authority(cluster: &str, period: Period) -> Result<Made, String> {
        if !identity::is_cluster(cluster) {
            return Err(format!(
                "cluster \"{cluster}\": expected lower-case letters, digits, dots, dashes, underscores"
            ));
        }
        let mut params = params(&format!("{cluster} authority"), period);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&identity::authority_uri(cluster))?];
        let key = KeyPair::generate().map_err(said)?;
        let certificate = params.self_signed(&key).map_err(said)?;
        Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The cluster of which this is the authority.
    pub fn cluster(&self) -> Result<String, String> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|e| format!("the authority's certificate: {e:?}"))?;
        identity::cluster_of(&certificate).map_err(|e| format!("the authority: {e}"))
    }

    /// Signs a certificate for a member of this authority's cluster: as a server and as a client.
    pub fn member(&self, who: &Identity, period: Period) -> Result<Made, String> {
        let cluster = self.cluster()?;
        if let Identity::Zone(name) = who
            && !identity::is_zone(name)
        {
            return Err(format!("zone \"{name}\": expected letters, digits, dots, dashes, underscores"));
        }
        let common = match who {
            Identity::Zone(name) => format!("{cluster} zone {name}"),
            Identity::Edge => format!("{cluster} edge"),
        };
        let mut params = params(&common, period);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri(&who.uri(&cluster))?];
        self.sign(params)
    }

    /// Signs a certificate for a server with these DNS names and addresses, no member of the cluster.
    pub fn server(&self, names: &[String], period: Period) -> Result<Made, String> {
        let Some(first) = names.first() else { return Err("a server's certificate needs a name".into()) };
        let mut params = params(first, period);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names.iter().map(|n| dns_or_address(n)).collect::<Result<_, _>>()?;
        self.sign(params)
    }

    /// Signs a certificate for a client of this name, no member of the cluster.
    pub fn client(&self, name: &str, period: Period) -> Result<Made, String> {
        let mut params = params(name, period);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![dns_or_address(name)?];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Made, String> {
        let issuer_key = KeyPair::from_pem(&self.key).map_err(|e| format!("the authority's key: {e}"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, issuer_key)
            .map_err(|e| format!("the authority's certificate: {e}"))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(said)?;
        let certificate = params.signed_by(&key, &issuer).map_err(said)?;
        Ok(Made { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(common_name: &str, period: Period) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    // X.520: a common name has at most 64 characters; nobody reads it but people.
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.distinguished_name = name;
    let start = date_time_ymd(1970, 1, 1);
    params.not_before = start + Duration::from_secs(period.from_s);
    params.not_after = start + Duration::from_secs(period.until_s);
    params
}

fn uri(text: &str) -> Result<SanType, String> {
    Ok(SanType::URI(text.try_into().map_err(said)?))
}

fn dns_or_address(name: &str) -> Result<SanType, String> {
    if let Ok(ip) = name.parse() {
        return Ok(SanType::IpAddress(ip));
    }
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if name.len() > 253 || !rest.split('.').all(label) {
        return Err(format!("\"{name}\": expected a DNS name, also *.example.com, or an address"));
    }
    Ok(SanType::DnsName(name.to_ascii_lowercase().as_str().try_into().map_err(said)?))
}

fn said(e: rcgen::Error) -> String {
    e.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    #[test]
    fn a_members_certificate_names_it_and_its_cluster() {
        let ca = Made::authority("ezone", Period::days(NOW_S, 10)).unwrap();
        assert_eq!(ca.cluster().unwrap(), "ezone");
        for who in [Identity::Zone("bj".into()), Identity::Edge] {
            let made = ca.member(&who, Period::days(NOW_S, 1)).unwrap();
            let der = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
            assert_eq!(Identity::of(&der, "ezone"), Ok(who));
            assert!(Identity::of(&der, "other").unwrap_err().to_string().contains("expected spiffe://other/zone"));
        }
    }

    #[test]
    fn a_servers_certificate_is_no_members() {
        let ca = Made::authority("ezone", Period::days(NOW_S, 10)).unwrap();
        let made = ca.server(&["edge.example.com".into(), "127.0.0.1".into()], Period::days(NOW_S, 1)).unwrap();
        let der = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
        assert!(Identity::of(&der, "ezone").unwrap_err().to_string().starts_with("the certificate has 0 URI names"));
    }

    #[test]
    fn names_that_cannot_be_certified_are_refused() {
        let ca = Made::authority("ezone", Period::days(NOW_S, 10)).unwrap();
        let day = Period::days(NOW_S, 1);
        assert!(Made::authority("E/zone", day).is_err());
        assert!(ca.member(&Identity::Zone("a/../edge".into()), day).is_err());
        for name in ["", "a b", "a..b", "*.*.com", "-/x"] {
            assert!(ca.server(&[name.into()], day).is_err(), "{name:?}");
        }
        assert!(ca.server(&[], day).is_err());
    }
}
