//! Stands between two zones on a connection by which one is seeded, and does to its frames what a test wants.

use bytes::{Bytes, BytesMut};
use replog::link::{Frame, put, take};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What becomes of a snapshot's parts on their way.
#[derive(Clone, Debug, Default)]
pub enum Tamper {
    /// Nothing.
    #[default]
    No,
    /// The connection ends behind so many.
    CutAfter(usize),
    /// A byte of this one is another; its frame's checksum fits.
    Garble(usize),
    /// This one is left out.
    Drop(usize),
    /// Nothing follows so many until the flag is set.
    Stall(usize, Arc<AtomicBool>),
}

/// What a site does to those who ask it for snapshots.
pub type Tampering = Arc<Mutex<Tamper>>;

/// The node's end of a connection whose other end is `peer`, through a proxy.
pub fn between(peer: TcpStream, tamper: Tamper) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inner = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (node, _) = listener.accept().unwrap();
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(None).unwrap();
    let (mut from_peer, mut to_node) = (peer.try_clone().unwrap(), inner.try_clone().unwrap());
    // Both end with the connection.
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_peer, &mut to_node);
        let _ = to_node.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        pump(&inner, &peer, &tamper);
        let _ = (peer.shutdown(Shutdown::Both), inner.shutdown(Shutdown::Both));
    });
    node
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, tamper: &Tamper) {
    let (mut inbox, mut buffer, mut count) = (BytesMut::new(), vec![0; 1 << 16], 0);
    loop {
        while let Ok(Some(frame)) = take(&mut inbox) {
            let Some(frame) = tampered(frame, count, tamper) else { return };
            let mut out = BytesMut::new();
            frame.into_iter().for_each(|f| put(&mut out, &f));
            if to.write_all(&out).is_err() {
                return;
            }
            count += 1;
        }
        match from.read(&mut buffer) {
            Ok(n @ 1..) => inbox.extend_from_slice(&buffer[..n]),
            Ok(_) | Err(_) => return,
        }
    }
}

/// `None`: the connection ends here.
fn tampered(frame: Frame, count: usize, tamper: &Tamper) -> Option<Option<Frame>> {
    match (tamper, &frame) {
        (Tamper::CutAfter(n), _) if count >= *n => return None,
        (Tamper::Drop(n), _) if count == *n => return Some(None),
        (Tamper::Garble(n), Frame::Part(part)) if count == *n => {
            let mut bytes = part.to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            return Some(Some(Frame::Part(Bytes::from(bytes))));
        }
        (Tamper::Stall(n, on), _) if count >= *n => {
            while !on.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        (Tamper::No | Tamper::CutAfter(_) | Tamper::Garble(_) | Tamper::Drop(_) | Tamper::Stall(..), _) => {}
    }
    Some(Some(frame))
}
