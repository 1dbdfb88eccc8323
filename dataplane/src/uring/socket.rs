//! Makes the sockets: listeners that share a port, one for each core; connections to upstreams, peers and log ports.

use crate::router::Side;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;

/// Connections that the kernel keeps until a core accepts them.
const BACKLOG: i32 = 4096;

/// One core's listening socket.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: Socket,
    pub(super) side: Side,
}

impl Listener {
    /// Another handle of the same socket: closing one of several that share a port would lose its queue.
    pub fn try_clone(&self) -> io::Result<Listener> {
        Ok(Listener { socket: self.socket.try_clone()?, side: self.side })
    }

    /// Where it listens; useful after port 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a listener without an internet address"))
    }
}

/// Listens at `addr`. Several cores may listen at the same address; the kernel spreads connections over them.
pub fn listen(addr: SocketAddr, side: Side) -> io::Result<Listener> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen at {addr}: {e}"));
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).map_err(named)?;
    socket.set_reuse_address(true).map_err(named)?;
    socket.set_reuse_port(true).map_err(named)?;
    socket.set_tcp_nodelay(true).map_err(named)?;
    socket.bind(&SockAddr::from(addr)).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)?;
    Ok(Listener { socket, side })
}

/// A socket for a connection to `addr`.
pub(super) fn towards(addr: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(addr.domain(), Type::STREAM, None)?;
    if addr.as_socket().is_some() {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}
