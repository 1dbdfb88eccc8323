//! Makes the sockets: listeners that share a port, one for each core; connections to upstreams, peers and log ports.

use crate::router::Side;
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

    /// A listening socket that another process handed over.
    pub fn adopt(fd: OwnedFd, side: Side) -> io::Result<Listener> {
        let socket = Socket::from(fd);
        if !socket.is_listener()? || socket.r#type()? != Type::STREAM || socket.local_addr()?.as_socket().is_none() {
            return Err(io::Error::other("expected a TCP socket that listens"));
        }
        Ok(Listener { socket, side })
    }

    /// For whom it listens.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Answers no new handshake from now on; those under way are finished, and their connections can be accepted. Closing a
    /// listener resets what is in its queue, and what is about to be: after a while of this there is nothing.
    pub(super) fn quench(&self) -> io::Result<()> {
        // The filter sees a segment from its TCP header on: 13 is the byte of flags; SYN without ACK is dropped.
        let (load, and, equal, back) = (0x30, 0x54, 0x15, 0x06); // BPF_LD|B|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
        self.socket.attach_filter(&[
            SockFilter::new(load, 0, 0, 13),
            SockFilter::new(and, 0, 0, 0x12),
            SockFilter::new(equal, 0, 1, 0x02),
            SockFilter::new(back, 0, 0, 0),
            SockFilter::new(back, 0, 0, u32::MAX),
        ])
    }

    /// The next connection of its queue, if there is one. Only for a listener that ends here: it stays non-blocking.
    pub(super) fn next(&self) -> Option<Socket> {
        self.socket.set_nonblocking(true).ok()?;
        let (socket, _) = self.socket.accept().ok()?;
        // A ring waits by itself only for blocking sockets; accepted ones do not take this flag from their listener.
        Some(socket)
    }

    /// Where it listens; useful after port 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a listener without an internet address"))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes descriptor `fd`, which whoever started this process left open for it (systemd's socket activation); `side` tells for
/// whom an address is.
pub fn inherited(fd: RawFd, side: impl Fn(SocketAddr) -> Option<Side>) -> io::Result<Listener> {
    // SAFETY: only looks at the descriptor's flags, which is harmless for any number.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (see above), and the protocol by which its number was learnt says that it is this process's own;
    // this is called once for each number, before anything else opens or takes descriptors.
    let mut listener = Listener::adopt(unsafe { OwnedFd::from_raw_fd(fd) }, Side::Client)?;
    let at = listener.local_addr()?;
    listener.side = side(at).ok_or_else(|| io::Error::other(format!("{at} is not in the configuration")))?;
    // A ring waits by itself only for blocking sockets.
    listener.socket.set_nonblocking(false)?;
    Ok(listener)
}

/// Does nobody listen at `addr`? A port that cores share could also be shared with a stranger: a plain bind tells.
pub fn is_free(addr: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(addr))
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
