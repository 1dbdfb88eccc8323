//! TLS on links: who the other side is was settled by certificates when the handshake was done; here bytes go in and come out.
//!
//! Control makes what handshakes go by (`dataplane`: whom to believe, which zone a certificate names) and replaces it when its files change. A zone
//! that connects does the handshake here; one that is connected to, in control, which hands the session over with the connection.

use bytes::Bytes;
use futures_lite::future::or;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;
use glommio::timer::sleep;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConnection, StreamOwned};
use shardmap::Zone;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// A handshake takes no longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// What the other side may send in it: a chain of certificates and a margin.
const HANDSHAKE_BYTES_MAX: usize = 32 * 1024;
/// How a TLS record begins: an alert, and version 3.x (RFC 8446 §5.1).
const ALERT: [u8; 2] = [21, 3];

/// How handshakes with other zones' logs are begun. Clones of an `Arc` of it see what `set` puts in the place of what was.
#[derive(Default, Debug)]
pub struct Towards(RwLock<BTreeMap<Zone, Arc<ClientConfig>>>);

impl Towards {
    /// From now on handshakes go by these; what is under way goes on.
    pub fn set(&self, all: BTreeMap<Zone, Arc<ClientConfig>>) {
        *self.0.write().expect("no one panics while holding it") = all;
    }

    fn get(&self, zone: Zone) -> Result<Arc<ClientConfig>, String> {
        let all = self.0.read().expect("no one panics while holding it");
        all.get(&zone)
            .cloned()
            .ok_or_else(|| format!("nothing is known by which zone {zone} could be told from another"))
    }

    fn begin(&self, zone: Zone, at: SocketAddr) -> Result<ClientConnection, String> {
        // Whose certificate it has to be is the configuration's affair; the name is not sent.
        let name = ServerName::IpAddress(at.ip().into());
        let mut tls = ClientConnection::new(self.get(zone)?, name).map_err(|e| e.to_string())?;
        tls.set_buffer_limit(None); // what waits is bounded by who sends
        Ok(tls)
    }
}

/// A session behind its handshake.
pub(super) struct Session(Connection);

impl Session {
    /// One that control has begun.
    pub fn of(tls: ServerConnection) -> Session {
        let mut tls = Connection::from(tls);
        tls.set_buffer_limit(None);
        Session(tls)
    }

    /// Begins one with `zone` at the other end of `socket`. The error says why there is none.
    pub async fn begin(
        towards: &Towards,
        zone: Zone,
        at: SocketAddr,
        socket: &mut TcpStream,
    ) -> Result<Session, String> {
        let tls = towards.begin(zone, at)?;
        let late = async {
            sleep(HANDSHAKE_MAX).await;
            Err(format!("no TLS handshake within {} s", HANDSHAKE_MAX.as_secs()))
        };
        or(handshake(tls, socket), late).await
    }

    /// Takes what was received; returns what it says. What it has to answer itself is to be taken by `take`.
    pub fn on_bytes(&mut self, mut bytes: &[u8]) -> Result<Vec<Bytes>, String> {
        let mut all = vec![];
        while !bytes.is_empty() {
            if self.0.read_tls(&mut bytes).map_err(|e| e.to_string())? == 0 {
                return Err("a TLS record that never ends".into());
            }
            let state = self.0.process_new_packets().map_err(|e| said(&e))?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            if !plain.is_empty() {
                self.0.reader().read_exact(&mut plain).map_err(|e| e.to_string())?;
                all.push(plain.into());
            }
            if state.peer_has_closed() {
                return if all.is_empty() { Err("the peer has ended its TLS session".into()) } else { Ok(all) };
            }
        }
        Ok(all)
    }

    /// Encrypts; with what it has to say itself before that.
    pub fn seal(&mut self, plain: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        // It has no limit to be over, and a Vec takes everything.
        let _ = self.0.writer().write_all(plain);
        while self.0.wants_write() && self.0.write_tls(&mut out).is_ok() {}
        out.into()
    }
}

async fn handshake(mut tls: ClientConnection, socket: &mut TcpStream) -> Result<Session, String> {
    let (mut part, mut read) = (vec![0; 4096], 0);
    loop {
        let out = left(&mut tls);
        let sent = if out.is_empty() { Ok(()) } else { socket.write_all(&out).await };
        if !tls.is_handshaking() {
            sent.map_err(|e| e.to_string())?;
            return Ok(Session(tls.into()));
        }
        let n = socket.read(&mut part).await.map_err(|e| gone(&e.to_string()))?;
        read += n;
        if let Err(why) = on_handshake(&mut tls, &part[..n], read) {
            // Its alert tells the peer's operator why; if it does not get there, there is nobody to tell.
            let _ = socket.write_all(&left(&mut tls)).await;
            return Err(why);
        }
    }
}

/// What a session has to send.
fn left(tls: &mut ClientConnection) -> Vec<u8> {
    let mut out = vec![];
    while tls.wants_write() && tls.write_tls(&mut out).is_ok() {}
    out
}

/// Takes a piece of a handshake; `read` bytes came so far.
fn on_handshake(tls: &mut ClientConnection, mut bytes: &[u8], read: usize) -> Result<(), String> {
    if bytes.is_empty() {
        return Err(gone("it was closed"));
    }
    if read > HANDSHAKE_BYTES_MAX {
        return Err(format!("a TLS handshake of {read} bytes, at most {HANDSHAKE_BYTES_MAX}"));
    }
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes).map_err(|e| e.to_string())?;
        tls.process_new_packets().map_err(|e| said(&e))?;
    }
    Ok(())
}

fn gone(how: &str) -> String {
    format!(
        "the connection ended in its TLS handshake ({how}): does that zone's log have [cluster], and does its listen speak TLS?"
    )
}

/// What our own check of a certificate says, by itself.
fn said(e: &rustls::Error) -> String {
    match e {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.to_string(),
        rustls::Error::AlertReceived(alert) => {
            format!("the peer refuses this zone by a TLS alert: {alert:?}; its log says why")
        }
        other => other.to_string(),
    }
}

/// What a plain link is answered by a peer that speaks TLS, if that is what came first.
pub(super) fn plain_to_tls(bytes: &[u8]) -> Option<String> {
    let text = "the peer speaks TLS and this node does not: give it [cluster] with its certificates";
    bytes.starts_with(&ALERT).then(|| text.to_owned())
}

/// A connection for a thread that may block.
pub(super) enum Socket {
    /// Without TLS.
    Plain(StdStream),
    /// Of a zone that connected.
    In(Box<StreamOwned<ServerConnection, StdStream>>),
    /// To a zone.
    Out(Box<StreamOwned<ClientConnection, StdStream>>),
}

impl Socket {
    /// What control has handed over.
    pub fn adopted(socket: StdStream, tls: Option<Box<ServerConnection>>) -> Socket {
        match tls {
            Some(tls) => Socket::In(Box::new(StreamOwned::new(*tls, socket))),
            None => Socket::Plain(socket),
        }
    }

    /// Connects to `zone`; no step takes longer than `patience`, and a handshake no longer than a few.
    pub fn connect(towards: Option<&Towards>, zone: Zone, at: SocketAddr, patience: Duration) -> io::Result<Socket> {
        let mut socket = StdStream::connect_timeout(&at, patience)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        socket.set_nodelay(true)?;
        let Some(towards) = towards else { return Ok(Socket::Plain(socket)) };
        let mut tls = towards.begin(zone, at).map_err(io::Error::other)?;
        let (until, mut part, mut read) = (Instant::now() + patience.min(HANDSHAKE_MAX), [0; 4096], 0);
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut socket)?;
            }
            if !tls.is_handshaking() {
                return Ok(Socket::Out(Box::new(StreamOwned::new(tls, socket))));
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let n = socket.read(&mut part)?;
            read += n;
            if let Err(why) = on_handshake(&mut tls, &part[..n], read) {
                let _ = socket.write_all(&left(&mut tls)); // as above
                return Err(io::Error::other(why));
            }
        }
    }

    /// For its options.
    pub fn tcp(&self) -> &StdStream {
        match self {
            Socket::Plain(socket) => socket,
            Socket::In(tls) => &tls.sock,
            Socket::Out(tls) => &tls.sock,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(socket) => socket.read(to),
            Socket::In(tls) => tls.read(to),
            Socket::Out(tls) => tls.read(to),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(socket) => socket.write(from),
            Socket::In(tls) => tls.write(from),
            Socket::Out(tls) => tls.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Plain(socket) => socket.flush(),
            Socket::In(tls) => tls.flush(),
            Socket::Out(tls) => tls.flush(),
        }
    }
}
