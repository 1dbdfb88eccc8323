//! What the core orders, as entries of the ring.

use super::{Driver, Op, Sock, sock};
use crate::router::{ConnId, Order, Target};
use crate::uring::socket;
use io_uring::{opcode, types};
use socket2::SockAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

impl Driver {
    pub(super) fn orders(&mut self) {
        while let Some(order) = self.core.next_order() {
            match order {
                Order::Send(id) => {
                    let buffer = self.core.take_out(id);
                    match sock(&mut self.socks, id) {
                        Some(sock) if sock.secure.is_none() => {
                            (sock.buffer, sock.sent) = (buffer, 0);
                            self.send(id);
                        }
                        Some(_) => self.hand_over(id, buffer, self.now()),
                        None => {}
                    }
                }
                Order::Connect(id, target) => self.connect(id, target),
                Order::Pause(id) => self.pause(id),
                Order::Resume(id) => {
                    self.want(id, true);
                    self.arm_recv(id);
                }
                Order::Shutdown(id) => match sock(&mut self.socks, id) {
                    Some(Sock { secure: None, socket: Some(socket), .. }) => {
                        // It fails only if the other side is gone already, which the receive tells.
                        let _ = socket.shutdown(std::net::Shutdown::Write);
                    }
                    Some(_) => self.end(id),
                    None => {}
                },
                Order::Close(id) => self.close(id),
                Order::Reset(id) => self.reset(id),
            }
        }
    }

    pub(in crate::uring) fn send(&mut self, id: ConnId) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        let Some(socket) = &sock.socket else { return };
        let rest = &sock.buffer[sock.sent..];
        let fd = types::Fd(socket.as_raw_fd());
        let entry =
            opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        sock.sending = true;
        self.begin(entry.build(), Op::Send.on(id));
    }

    pub(super) fn connect(&mut self, id: ConnId, target: Target) {
        let now = self.now();
        let (addr, secure) = match target {
            Target::Tcp(addr) => (Ok(SockAddr::from(addr)), None),
            Target::Tls(addr, tls) => match self.session_to(addr, tls) {
                Ok(secure) => (Ok(SockAddr::from(addr)), Some(secure)),
                Err(fault) => {
                    self.tell(&fault, now);
                    return self.core.on_insecure(id, fault.reason, now);
                }
            },
            Target::Port(port) => (SockAddr::unix(&self.settings.log_ports[port]), None),
        };
        match addr.and_then(|a| socket::towards(&a).map(|s| (a, s))) {
            Ok((addr, socket)) => {
                let addr = Box::new(addr);
                let fd = types::Fd(socket.as_raw_fd());
                let entry = opcode::Connect::new(fd, addr.as_ptr().cast(), addr.len()).build();
                self.place(id, socket);
                if let Some(sock) = sock(&mut self.socks, id) {
                    sock.connecting = Some(addr);
                    sock.wanted = false;
                    sock.secure = secure;
                }
                self.begin(entry, Op::Connect.on(id));
            }
            Err(e) => {
                tracing::warn!("cannot connect to {target:?}: {e}");
                self.core.on_failed(id, now);
            }
        }
    }

    pub(in crate::uring) fn pause(&mut self, id: ConnId) {
        self.want(id, false);
        if sock(&mut self.socks, id).is_some_and(|s| s.receiving) {
            let entry = opcode::AsyncCancel::new(Op::Recv.on(id)).build().user_data(Op::Cancel.on(id));
            self.submit(entry);
        }
    }

    pub(super) fn close(&mut self, id: ConnId) {
        self.part(id);
        let Some(sock) = sock(&mut self.socks, id) else { return self.core.on_closed(id) };
        sock.closing = true;
        // Each by its own name: to find what a descriptor has under way the kernel looks at every operation of the ring.
        let under_way =
            [(sock.receiving, Op::Recv), (sock.sending, Op::Send), (sock.connecting.is_some(), Op::Connect)];
        for (_, op) in under_way.into_iter().filter(|(is, _)| *is) {
            self.submit(opcode::AsyncCancel::new(op.on(id)).build().user_data(Op::Cancel.on(id)));
        }
        self.end_if_done(id);
    }

    fn reset(&mut self, id: ConnId) {
        if let Some(socket) = sock(&mut self.socks, id).and_then(|s| s.socket.as_ref()) {
            let _ = socket.set_linger(Some(Duration::ZERO)); // then its end is an orderly one, as it would have been
        }
        self.close(id);
    }

    /// Closes a closing socket once none of its operations is under way.
    pub(in crate::uring) fn end_if_done(&mut self, id: ConnId) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        if sock.closing && !sock.receiving && !sock.sending && sock.connecting.is_none() {
            *sock = Sock::default();
            self.core.on_closed(id);
        }
    }
}
