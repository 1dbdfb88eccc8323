//! Certificates of links: what logs show each other, whose are believed, and which zone a connection is of.
//!
//! They are the routers' (`[cluster]`), for another protocol (ALPN), so that neither can be taken for the other. Files that change are read
//! again; what is no good changes nothing and is told (`secrets`).

use super::secrets::Secrets;
use crate::config::Config;
use crate::tls::{Fault, Identity, Reason};
use replog::link::Frame;
use replog::uring::secure::Towards;
use rustls::{ServerConfig, ServerConnection};
use shardmap::Zone;
use shardmap::map::Map;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;

/// The protocol between logs (RFC 7301).
const ALPN: &[u8] = b"ezone-link/1";
/// What the other side may send in a handshake: a chain of certificates and a margin.
const HANDSHAKE_BYTES_MAX: usize = 32 * 1024;
/// A TLS record begins with its type; a handshake has this one (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// A fatal alert, unexpected_message (RFC 8446 §6), for who has not begun to speak TLS.
const NO_TLS: [u8; 7] = [21, 3, 3, 0, 2, 2, 10];

/// How this zone's log lets others in, and how it goes to them.
pub struct Doors {
    /// What concerns links alone of the configuration.
    config: Config,
    cluster: String,
    zones: BTreeMap<String, Zone>,
    secrets: Mutex<Secrets>,
    incoming: Mutex<Arc<ServerConfig>>,
    towards: Arc<Towards>,
}

impl Doors {
    /// As `config` says; `None`: links are plain. The error says all that is wrong with the files.
    pub fn open(config: &Config, map: &Map) -> Result<Option<Doors>, String> {
        let plain = config.log.as_ref().is_none_or(|log| log.plain_links);
        if plain || config.cluster.is_none() {
            return Ok(None);
        }
        // The router's other certificates are its own affair.
        let config = Config { tls: vec![], services: vec![], router: None, ..config.clone() };
        let names = config.zones.iter().map(|z| &z.name).chain(&config.node.zone);
        let zones = names.filter_map(|name| Some((name.clone(), map.zone_named(name)?))).collect();
        let (mut secrets, towards) = (Secrets::default(), Arc::<Towards>::default());
        let incoming = Mutex::new(made(&mut secrets, &config, &zones, &towards)?);
        let cluster = config.node.cluster.clone();
        Ok(Some(Doors { config, cluster, zones, secrets: Mutex::new(secrets), incoming, towards }))
    }

    /// For the log's own connections.
    pub fn towards(&self) -> Arc<Towards> {
        self.towards.clone()
    }

    /// Goes by the files again if they have changed and are good.
    pub fn look(&self) {
        let mut secrets = self.secrets.lock().expect("no one panics while holding it");
        if !secrets.changed(&self.config, None) {
            return;
        }
        match made(&mut secrets, &self.config, &self.zones, &self.towards) {
            Ok(incoming) => {
                *self.incoming.lock().expect("no one panics while holding it") = incoming;
                tracing::info!("certificates were read again: new connections of links go by them");
            }
            Err(why) => tracing::error!("changed certificates are refused, those read before stay in use:\n{why}"),
        }
    }

    /// Does the handshake with whoever connected, and returns the session with the member that it is. The error says why it is let in no further.
    pub async fn greet(&self, socket: &TcpStream) -> Result<(ServerConnection, Identity), Fault> {
        let config = self.incoming.lock().expect("no one panics while holding it").clone();
        let mut tls = ServerConnection::new(config)?;
        tls.set_buffer_limit(None);
        let mut read = 0;
        while tls.is_handshaking() {
            let received = receive_after(&mut tls, socket, Some(read)).await;
            if received.as_ref().is_err_and(|fault| fault.reason == Reason::NotTls) {
                let _ = socket.try_write(&NO_TLS); // a log that speaks none knows it by this
            }
            flush(&mut tls, socket).await?; // an alert, too
            read += received?;
            if read > HANDSHAKE_BYTES_MAX {
                let text = format!("a TLS handshake of {read} bytes, at most {HANDSHAKE_BYTES_MAX}");
                return Err(Fault::new(Reason::TooLong, text));
            }
        }
        flush(&mut tls, socket).await?;
        let shown = tls.peer_certificates().and_then(|all| all.first());
        let shown = shown.ok_or_else(|| Fault::new(Reason::NoCertificate, "no certificate was shown"))?;
        let who = Identity::of(shown, &self.cluster).map_err(|e| Fault::new(Reason::WrongIdentity, e.to_string()))?;
        Ok((tls, who))
    }

    /// May `who` begin with this frame? The error says what it may say.
    pub fn judge(&self, who: &Identity, frame: &Frame) -> Result<(), String> {
        let own = match who {
            Identity::Zone(name) => self.zones.get(name).copied(),
            Identity::Edge => return Err("the certificate is of an edge, which has no log".into()),
        };
        let own = own.ok_or_else(|| format!("the certificate is of {who}, which is not in the map"))?;
        let said = match frame {
            Frame::Hello(h) => h.origin,
            Frame::Seed(s) => s.asker,
            // An ASK says whose log it wants, not who asks: every zone of the cluster may have a copy.
            _ => own,
        };
        match said == own {
            true => Ok(()),
            false => Err(format!(
                "the certificate is of {who} (number {own}), and it speaks as zone {said}: a certificate names one zone"
            )),
        }
    }
}

fn made(
    secrets: &mut Secrets,
    config: &Config,
    zones: &BTreeMap<String, Zone>,
    towards: &Towards,
) -> Result<Arc<ServerConfig>, String> {
    let contexts = secrets.contexts(config)?;
    let mut all = BTreeMap::new();
    for zone in &config.zones {
        let id = secrets.to_zone(config, &zone.name);
        if let (Some(how), Some(number)) = (id.and_then(|id| contexts.outgoing(id)), zones.get(&zone.name)) {
            let mut config = (*how.config).clone();
            config.alpn_protocols = vec![ALPN.to_vec()];
            all.insert(*number, Arc::new(config));
        }
    }
    let mut incoming = contexts.peers().map(|c| (**c).clone()).ok_or("no certificate for links")?;
    incoming.alpn_protocols = vec![ALPN.to_vec()];
    towards.set(all);
    Ok(Arc::new(incoming))
}

/// Takes what has come; returns how much it was.
pub async fn receive(tls: &mut ServerConnection, socket: &TcpStream) -> Result<usize, Fault> {
    receive_after(tls, socket, None).await
}

/// The same; `Some` of how many bytes came before in a handshake. Of all it is only the first byte that says whether this is TLS at all: how TCP
/// cuts what follows is its own affair.
async fn receive_after(tls: &mut ServerConnection, socket: &TcpStream, before: Option<usize>) -> Result<usize, Fault> {
    let gone = |why: String| Fault::new(Reason::Gone, why);
    let mut part = [0; 4096];
    let n = loop {
        socket.readable().await.map_err(|e| gone(e.to_string()))?;
        match socket.try_read(&mut part) {
            Ok(0) => return Err(gone("it ended before its HELLO".into())),
            Ok(n) => break n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(e.to_string())),
        }
    };
    let mut bytes = &part[..n];
    if before == Some(0) && bytes[0] != HANDSHAKE {
        let text = "no TLS at a port that speaks TLS: that zone's log has no [cluster], or it is a stranger";
        return Err(Fault::new(Reason::NotTls, text));
    }
    while !bytes.is_empty() {
        if tls.read_tls(&mut bytes).map_err(|e| gone(e.to_string()))? == 0 {
            return Err(Fault::new(Reason::Broken, "a TLS record that never ends"));
        }
        tls.process_new_packets()?;
    }
    Ok(n)
}

async fn flush(tls: &mut ServerConnection, socket: &TcpStream) -> Result<(), Fault> {
    let gone = |e: std::io::Error| Fault::new(Reason::Gone, e.to_string());
    let mut out = vec![];
    while tls.wants_write() {
        tls.write_tls(&mut out).map_err(gone)?;
    }
    let mut left = &out[..];
    while !left.is_empty() {
        socket.writable().await.map_err(gone)?;
        match socket.try_write(left) {
            Ok(n) => left = &left[n..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(e)),
        }
    }
    Ok(())
}
