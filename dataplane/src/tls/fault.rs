//! Why a handshake or a session ended: one reason to count by, one sentence to read.

use super::identity::Wrong;
use rustls::{CertificateError, Error};

macro_rules! reasons {
    ($($(#[$doc:meta])* $case:ident = $name:literal),* $(,)?) => {
        /// What a failed handshake is counted under.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason { $($(#[$doc])* $case,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: [Reason; [$($name),*].len()] = [$(Reason::$case),*];

            /// As it is called in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$case => $name,)* }
            }
        }
    };
}

reasons! {
    /// What came is not TLS.
    NotTls = "not_tls",
    /// No version, cipher suite or protocol (ALPN) in common.
    Incompatible = "incompatible",
    /// The other side showed no certificate.
    NoCertificate = "no_certificate",
    /// Its certificate is not of an authority that we trust, or is broken.
    Untrusted = "untrusted",
    /// Its certificate is not valid now.
    Expired = "expired",
    /// Its certificate is of someone else than we meant to reach, or of nobody in the cluster.
    WrongIdentity = "wrong_identity",
    /// It refused us, by an alert.
    Refused = "refused",
    /// It broke the protocol.
    Broken = "broken",
    /// More bytes than a handshake takes.
    TooLong = "too_long",
    /// More time.
    Late = "late",
    /// It closed the connection.
    Gone = "gone",
    /// Too many handshakes were under way.
    Crowded = "crowded",
    /// We had nothing to speak TLS with: no certificate is configured for this.
    Unprepared = "unprepared",
}

/// The end of a session that was not asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    /// For the counters.
    pub reason: Reason,
    /// What was seen, and what was expected.
    pub text: String,
}

impl Fault {
    /// With these words.
    pub fn new(reason: Reason, text: impl Into<String>) -> Fault {
        Fault { reason, text: text.into() }
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        let reason = match &e {
            Error::InvalidMessage(_) => Reason::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Reason::Incompatible,
            Error::NoCertificatesPresented => Reason::NoCertificate,
            Error::InvalidCertificate(why) => of_certificate(why),
            Error::AlertReceived(_) => Reason::Refused,
            // The set is open: rustls may add to it. What is not named is a breach of the protocol.
            _ => Reason::Broken,
        };
        let text = match wrong(&e) {
            Some(wrong) => wrong.to_string(),
            None => e.to_string(),
        };
        Fault { reason, text }
    }
}

fn of_certificate(why: &CertificateError) -> Reason {
    match why {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::Expired,
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::Other(_) => Reason::WrongIdentity,
        // The set is open, see above.
        _ => Reason::Untrusted,
    }
}

/// What our own check of identities said.
fn wrong(e: &Error) -> Option<&Wrong> {
    match e {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_keep_their_numbers_and_names() {
        assert_eq!(Reason::ALL[Reason::Late as usize], Reason::Late);
        let names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert!(names.iter().enumerate().all(|(i, n)| !names[..i].contains(n)), "{names:?}");
    }
}
