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
