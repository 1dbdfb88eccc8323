//! TLS before the service's HTTP: handshakes go on beside each other, so that a silent visitor holds up nobody else.

use crate::config::{KeyFiles, file};
use crate::control::visit::{Visit, Visitors};
use crate::tls::certificates::FILE_BYTES_MAX;
use crate::tls::{Makers, Pair};
use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// What is shown to visitors; another may take its place.
#[derive(Clone)]
pub struct Shown(Arc<Mutex<TlsAcceptor>>);

impl Shown {
    /// The certificate and key in these files.
    pub fn read(files: &KeyFiles) -> Result<Shown, String> {
        acceptor(files).map(|a| Shown(Arc::new(Mutex::new(a))))
    }

    /// Reads them again; handshakes from now on go by what is found.
    pub fn renew(&self, files: &KeyFiles) -> Result<(), String> {
        *self.0.lock().expect("no one panics while holding it") = acceptor(files)?;
        Ok(())
    }
}

fn acceptor(files: &KeyFiles) -> Result<TlsAcceptor, String> {
    let read =
        |path: &std::path::Path| file::read(path, FILE_BYTES_MAX).map_err(|e| format!("{}: {e}", path.display()));
    let (certificate, key) = (read(&files.certificate)?, read(&files.key)?);
    let makers = Makers::new()?;
    let pair = Pair::read(&certificate, &key, makers.provider());
    let pair = pair.map_err(|e| format!("{} with {}: {e}", files.certificate.display(), files.key.display()))?;
    pair.warnings.iter().for_each(|w| tracing::warn!("{}: {w}", files.certificate.display()));
    Ok(TlsAcceptor::from(makers.clients(&[pair])?))
}

/// Visitors whose handshake is done.
pub struct Shaken {
    done: mpsc::Receiver<(TlsStream<Visit>, SocketAddr)>,
    at: SocketAddr,
}

impl Shaken {
    /// Of these visitors.
    pub fn of(mut visitors: Visitors, shown: Shown) -> io::Result<Shaken> {
        let at = visitors.local_addr()?;
        let (tell, done) = mpsc::channel(64);
        // Bounded by the visitors' places: a handshake holds one.
        tokio::spawn(async move {
            while !tell.is_closed() {
                let (visit, from) = visitors.accept().await;
                let (tell, acceptor) = (tell.clone(), shown.0.lock().expect("no one panics while holding it").clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(visit)).await {
                        Ok(Ok(stream)) => drop(tell.send((stream, from)).await), // the service may be ending
                        Ok(Err(e)) => tracing::debug!("{from}: no TLS: {e}"),
                        Err(_) => tracing::debug!("{from}: no TLS within {HANDSHAKE_MAX:?}"),
                    }
                });
            }
        });
        Ok(Shaken { done, at })
    }
}

impl Listener for Shaken {
    type Io = TlsStream<Visit>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TlsStream<Visit>, SocketAddr) {
        match self.done.recv().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenFile;
    use crate::control::gzs::auth::Callers;
    use crate::control::gzs::desk::Desk;
    use crate::control::gzs::pages;
    use crate::control::gzs_client::{Denied, GzsClient};
    use crate::control::maps::from_file;
    use crate::tls::authority::{Made, Period};
    use gzs::api::{AuditView, Role};
    use gzs::service::Settings;
    use gzs::store::Store;
    use gzs::store::sqlite::Sqlite;
    use std::path::Path;

    fn settings() -> Settings {
        let requests_per_s_max = Default::default();
        Settings {
            cluster: "t".into(),
            silence_ms: 0,
            cool_down_ms: 0,
            move_limit_ms: 1000,
            requests_per_s_max,
            lease_ms: 3000,
        }
    }

    #[tokio::test]
    async fn who_believes_the_certificate_and_shows_a_token_gets_in_and_nobody_else() {
        let dir = std::env::temp_dir().join(format!("ezone-gzs-tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        let period = Period::days(crate::control::wall_ms() / 1000, 30);
        let authority = Made::authority("t", period).unwrap();
        let own = authority.server(&["127.0.0.1".into()], period).unwrap();
        write("ca.pem", &authority.certificate);
        write("gzs.pem", &own.certificate);
        write("gzs.key", &own.key);
        write("token", "0123456789abcdef\n");
        let files = KeyFiles { certificate: dir.join("gzs.pem"), key: dir.join("gzs.key") };
        let token = TokenFile { name: "alice".into(), role: Role::Read, file: dir.join("token") };
        let mut store = Sqlite::open(&dir.join("gzs.db")).unwrap();
        let china = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china.toml");
        store.adopt(&from_file(&china).unwrap(), &AuditView { epoch: 1, ..AuditView::default() }).unwrap();
        let held = store.load().unwrap().unwrap();
        let callers = Callers::read(std::slice::from_ref(&token)).unwrap();
        let (desk, _) = Desk::new(held, Box::new(store), settings(), callers, true).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let shown = Shown::read(&files).unwrap();
        let visitors = Shaken::of(Visitors::many(listener, 16), shown.clone()).unwrap();
        tokio::spawn(async move { axum::serve(visitors, pages::pages(desk)).await });

        // A visitor who says nothing holds up nobody.
        let _silent = tokio::net::TcpStream::connect(at).await.unwrap();
        let url = format!("https://{at}");
        let client = |token: &str| {
            let token = Some(token.to_owned()).filter(|t| !t.is_empty());
            GzsClient::believing(&url, token, Some(&dir.join("ca.pem"))).unwrap()
        };
        let known = client("0123456789abcdef");
        assert_eq!(known.state().await.unwrap().cluster, "t");
        let stranger = client("").state().await.unwrap_err();
        assert!(matches!(stranger, Denied::Refused { status: 401, .. }), "{stranger}");
        let other = Made::authority("t", period).unwrap();
        write("ca.pem", &other.certificate);
        let cheated = client("0123456789abcdef").state().await.unwrap_err();
        assert!(matches!(&cheated, Denied::Unreachable { .. }), "{cheated}");
        let plain = GzsClient::new(&format!("http://{at}"), None).unwrap().state().await.unwrap_err();
        assert!(matches!(&plain, Denied::Unreachable { .. }), "{plain}");

        // Another certificate takes its place, a bad one does not.
        let next = other.server(&["127.0.0.1".into()], period).unwrap();
        write("gzs.pem", &next.certificate);
        assert!(shown.renew(&files).is_err(), "its key is another");
        write("gzs.key", &next.key);
        shown.renew(&files).unwrap();
        assert_eq!(client("0123456789abcdef").state().await.unwrap().cluster, "t");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
