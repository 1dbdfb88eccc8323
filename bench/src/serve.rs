//! One thread of the backend: a listener and its connections on one epoll.

use crate::body::Body;
use crate::manner::{Ask, Manner, Options, Then};
use crate::request;
use crate::sys::{Poller, READ, WRITE};
use crate::token::{Check, Token};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const CONNECTIONS_MAX: usize = 20_000;
/// Answers gather to about this size before they are written and reading pauses: bounds pipelining.
const OUT_BYTES_MAX: usize = 256 * 1024;
/// One read. Larger than a head may be, so that a whole head always fits.
const READ_BYTES: usize = 2 * request::HEAD_BYTES_MAX;

const LISTENER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum State {
    /// Reads a head, or the rest of the body that `Conn::body` tells of.
    Reading,
    /// Has a request whose answer is not due yet: nothing more is read.
    Waiting,
    /// The last answer is written or in `out`; what still comes is thrown away until the client ends.
    Ending,
}

struct Conn {
    stream: TcpStream,
    /// Tells this connection from an earlier one at the same place, in the list of delayed answers.
    serial: u64,
    state: State,
    /// Bytes read and not yet understood: less than a head, or what stands behind a pause.
    rest: Vec<u8>,
    body: Option<Body>,
    /// What to do once the body is drained.
    keep_alive: bool,
    is_head: bool,
    token: Option<Token>,
    /// Compares the request's body with the one that its token makes, of the length that it was made with.
    check: Option<(Check, u64)>,
    out: Vec<u8>,
    out_at: usize,
    /// Where the next piece of a slow answer ends.
    out_end: usize,
    /// A timer for the next piece is set.
    ticking: bool,
    answers: u64,
    interest: u32,
    /// Close once `out` is written, without waiting for the client.
    drop_after_out: bool,
}

/// What a timer is for.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Due {
    Answer,
    Piece,
    /// The connection ends if it has had just so many answers and is idle.
    Idle(u64),
}

/// What a server has done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Served {
    pub connections: u64,
    pub answers: u64,
    pub closed_idle: u64,
    /// Requests whose body was not the one that their token makes.
    pub wrong_bodies: u64,
}

impl Served {
    /// Both together.
    pub fn and(self, other: &Served) -> Served {
        Served {
            connections: self.connections + other.connections,
            answers: self.answers + other.answers,
            closed_idle: self.closed_idle + other.closed_idle,
            wrong_bodies: self.wrong_bodies + other.wrong_bodies,
        }
    }
}

pub struct Server {
    poller: Poller,
    listener: TcpListener,
    listening: bool,
    manner: Manner,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    /// When, for which place, and the serial that its connection had.
    timers: BinaryHeap<Reverse<(Instant, usize, u64, Due)>>,
    served: Served,
    buffer: Vec<u8>,
}

impl Server {
    /// A listener that shares its port with the other threads' listeners.
    pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    }

    /// Ends when `stop` becomes readable. `number`: which of several threads this is.
    pub fn new(listener: TcpListener, options: Options, number: u64, stop: &OwnedFd) -> io::Result<Server> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, READ)?;
        poller.add(stop, STOP, READ)?;
        Ok(Server {
            poller,
            listener,
            listening: true,
            manner: Manner::new(options, number),
            conns: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            served: Served::default(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Serves until told to stop or until `until`.
    pub fn run(&mut self, until: Option<Instant>) -> io::Result<Served> {
        let mut ready = Vec::new();
        loop {
            let next = self.timers.peek().map(|t| t.0.0).into_iter().chain(until).min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut ready, timeout)?;
            for &token in &ready {
                match token {
                    STOP => return Ok(self.served),
                    LISTENER => self.accept()?,
                    at => self.pump(at as usize, true)?,
                }
            }
            if next.is_some() {
                let now = Instant::now();
                if until.is_some_and(|until| now >= until) {
                    return Ok(self.served);
                }
                self.ring(now)?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            if self.conns.len() - self.free.len() >= CONNECTIONS_MAX {
                return self.set_listening(false);
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
                // Out of descriptors: the listener would be told as ready for ever, so look again after a close.
                Err(_) if self.conns.len() > self.free.len() => return self.set_listening(false),
                Err(e) => return Err(e),
            };
            stream.set_nonblocking(true)?;
            let _ = stream.set_nodelay(true); // fails only on a connection that is already gone
            let at = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            self.poller.add(&stream, at as u64, READ)?;
            self.served.connections += 1;
            self.conns[at] = Some(Conn::new(stream, self.served.connections));
        }
    }

    fn set_listening(&mut self, on: bool) -> io::Result<()> {
        if self.listening != on {
            self.poller.modify(&self.listener, LISTENER, if on { READ } else { 0 })?;
            self.listening = on;
        }
        Ok(())
    }

    /// Moves one connection on as far as it goes without waiting; `readable`: one read is worth its cost.
    fn pump(&mut self, at: usize, readable: bool) -> io::Result<()> {
        let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { return Ok(()) };
        if self.advance(&mut conn, at, readable).is_err() {
            return self.close(conn, at); // a reset by the client is its own business
        }
        let interest = conn.wanted();
        if interest != conn.interest {
            conn.interest = interest;
            self.poller.modify(&conn.stream, at as u64, interest)?;
        }
        self.conns[at] = Some(conn);
        Ok(())
    }

    fn close(&mut self, conn: Conn, at: usize) -> io::Result<()> {
        if self.manner.options().reset && conn.drop_after_out {
            let _ = socket2::SockRef::from(&conn.stream).set_linger(Some(Duration::ZERO)); // then it is gone already
        }
        drop(conn);
        self.free.push(at);
        self.set_listening(true)
    }

    /// An error means: this connection is over.
    fn advance(&mut self, conn: &mut Conn, at: usize, readable: bool) -> io::Result<()> {
        if readable && conn.interest == 0 {
            return Err(ErrorKind::ConnectionReset.into()); // nothing was asked for, so this is an error or a hang-up
        }
        conn.flush()?;
        self.take_rest(conn, at)?;
        if !readable || !conn.reads() && conn.state != State::Ending {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let kept = conn.rest.len();
        buffer[..kept].copy_from_slice(&conn.rest);
        let result = match conn.stream.read(&mut buffer[kept..]) {
            Ok(0) if !conn.out.is_empty() => {
                (conn.state, conn.drop_after_out) = (State::Ending, true);
                Ok(())
            }
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if conn.state == State::Ending => Ok(()),
            Ok(n) => {
                conn.rest.clear();
                self.take(conn, at, &buffer[..kept + n]);
                conn.flush().and_then(|()| self.take_rest(conn, at))
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(e),
        };
        self.buffer = buffer;
        result
    }

    /// Goes on with what a pause left behind. Afterwards `rest` is less than a head, or the connection pauses again.
    fn take_rest(&mut self, conn: &mut Conn, at: usize) -> io::Result<()> {
        while conn.reads() && !conn.rest.is_empty() {
            let rest = std::mem::take(&mut conn.rest);
            self.take(conn, at, &rest);
            conn.flush()?;
            if conn.rest.len() == rest.len() {
                break;
            }
        }
        Ok(())
    }

    /// Takes bytes as far as the state allows; what is left goes to `rest`.
    fn take(&mut self, conn: &mut Conn, at: usize, mut bytes: &[u8]) {
        while conn.reads() && !(bytes.is_empty() && conn.body.is_none()) {
            if conn.body.is_none() {
                match request::parse(bytes) {
                    Ok(None) => break,
                    Ok(Some(head)) => bytes = &bytes[conn.begin(&head)..],
                    Err(status) => return conn.refuse(status),
                }
            }
            let Some(body) = &mut conn.body else { continue };
            let mut check = conn.check.as_mut();
            match body.feed(bytes, &mut |data| check.iter_mut().for_each(|c| c.0.feed(data))) {
                Ok((used, done)) => {
                    bytes = &bytes[used..];
                    if !done {
                        break; // all bytes are used
                    }
                }
                Err(_) => return conn.refuse(400),
            }
            conn.body = None;
            match self.manner.options().delay {
                Duration::ZERO => self.answer(conn, at),
                delay => {
                    conn.state = State::Waiting;
                    self.wake_in(delay, at, conn.serial, Due::Answer);
                }
            }
        }
        if conn.state != State::Ending {
            conn.rest.extend_from_slice(bytes);
        }
    }

    fn wake_in(&mut self, delay: Duration, at: usize, serial: u64, due: Due) {
        self.timers.push(Reverse((Instant::now() + delay, at, serial, due)));
    }

    fn answer(&mut self, conn: &mut Conn, at: usize) {
        conn.answers += 1;
        self.served.answers += 1;
        let wrong_body = conn.check.take().is_some_and(|(check, made)| check.verdict(Some(made)).is_err());
        self.served.wrong_bodies += u64::from(wrong_body);
        let Conn { token, is_head, keep_alive, answers, .. } = *conn;
        let then = self.manner.answer(&Ask { token, is_head, keep_alive, wrong_body, answers }, &mut conn.out);
        match then {
            Then::Stay => {
                if let Some(limit) = self.manner.idle_limit() {
                    self.wake_in(limit, at, conn.serial, Due::Idle(answers));
                }
            }
            Then::Announced | Then::Stall => conn.state = State::Ending,
            Then::Drop => (conn.state, conn.drop_after_out) = (State::Ending, true),
        }
        let Options { piece_bytes, piece_gap, .. } = *self.manner.options();
        if piece_gap.is_zero() {
            conn.out_end = usize::MAX;
        } else if conn.out_end == 0 {
            conn.out_end = piece_bytes;
            if !std::mem::replace(&mut conn.ticking, true) {
                self.wake_in(piece_gap, at, conn.serial, Due::Piece);
            }
        }
    }

    /// Does what is due by `now`.
    fn ring(&mut self, now: Instant) -> io::Result<()> {
        while self.timers.peek().is_some_and(|t| t.0.0 <= now) {
            let Some(Reverse((_, at, serial, due))) = self.timers.pop() else { break };
            let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { continue };
            if conn.serial == serial {
                match due {
                    Due::Answer => {
                        conn.state = State::Reading;
                        self.answer(&mut conn, at);
                    }
                    Due::Piece if conn.out.is_empty() => conn.ticking = false,
                    Due::Piece => {
                        let Options { piece_bytes, piece_gap, .. } = *self.manner.options();
                        conn.out_end = conn.out_end.saturating_add(piece_bytes);
                        self.wake_in(piece_gap, at, serial, Due::Piece);
                    }
                    Due::Idle(answers) if conn.answers == answers && conn.is_idle() => {
                        self.served.closed_idle += 1;
                        conn.drop_after_out = true;
                        self.close(conn, at)?;
                        continue;
                    }
                    Due::Idle(_) => {}
                }
            }
            self.conns[at] = Some(conn);
            self.pump(at, false)?;
        }
        Ok(())
    }
}

impl Conn {
    fn new(stream: TcpStream, serial: u64) -> Conn {
        Conn {
            stream,
            serial,
            state: State::Reading,
            rest: Vec::new(),
            body: None,
            keep_alive: true,
            is_head: false,
            token: None,
            check: None,
            out: Vec::new(),
            out_at: 0,
            out_end: 0,
            ticking: false,
            answers: 0,
            interest: READ,
            drop_after_out: false,
        }
    }

    /// Whether more requests are taken now.
    fn reads(&self) -> bool {
        self.state == State::Reading && self.out.len() < OUT_BYTES_MAX
    }

    fn is_idle(&self) -> bool {
        self.state == State::Reading && self.out.is_empty() && self.rest.is_empty() && self.body.is_none()
    }

    fn wanted(&self) -> u32 {
        let read = self.reads() || self.state == State::Ending && self.out.is_empty();
        let write = self.out_at < self.out.len().min(self.out_end);
        (if read { READ } else { 0 }) | (if write { WRITE } else { 0 })
    }

    /// Starts a request; the bytes of its head. A body of length 0 is drained by the next `feed`, which uses nothing.
    fn begin(&mut self, head: &request::Head) -> usize {
        self.body = Some(head.body);
        self.keep_alive = head.keep_alive;
        self.is_head = head.is_head;
        self.token = head.token;
        self.check = head.token.zip(head.made_bytes).map(|(token, made)| (Check::new(token), made));
        if head.wants_continue && head.body != Body::Length(0) {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.out_end = usize::MAX;
        }
        head.used
    }

    fn refuse(&mut self, status: u16) {
        let head = format!("HTTP/1.1 {status} Refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        self.out.extend_from_slice(head.as_bytes());
        (self.state, self.out_end) = (State::Ending, usize::MAX);
    }

    /// Writes what can be written. After the last answer our side ends, and the client's bytes are awaited and thrown
    /// away: closing with unread bytes would reset the connection and could destroy the answer on its way.
    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() && !self.drop_after_out {
            return Ok(());
        }
        while self.out_at < self.out.len() {
            let end = self.out.len().min(self.out_end);
            if self.out_at >= end {
                return Ok(()); // the next piece comes with its time
            }
            match self.stream.write(&self.out[self.out_at..end]) {
                Ok(n) => self.out_at += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        (self.out_at, self.out_end) = (0, 0);
        match (self.state, self.drop_after_out) {
            (State::Ending, true) => Err(ErrorKind::ConnectionAborted.into()),
            (State::Ending, false) => self.stream.shutdown(std::net::Shutdown::Write),
            (State::Reading | State::Waiting, _) => Ok(()),
        }
    }
}
