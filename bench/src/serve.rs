//! One thread of the backend: a listener and its connections on one epoll.

use crate::body::Body;
use crate::request;
use crate::sys::{Poller, READ, WRITE};
use std::collections::VecDeque;
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

/// How the backend answers.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub body_bytes: usize,
    pub delay: Duration,
    /// Connections end after so many answers ...
    pub close_after: Option<u64>,
    /// ... of which the last says `connection: close`, or not.
    pub announce: bool,
}

/// The bytes of the two answers, built once.
struct Answers {
    stay: Vec<u8>,
    stay_head_bytes: usize,
    close: Vec<u8>,
    close_head_bytes: usize,
}

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
    out: Vec<u8>,
    out_at: usize,
    answers: u64,
    interest: u32,
    /// Close once `out` is written, without waiting for the client.
    drop_after_out: bool,
}

pub struct Server {
    poller: Poller,
    listener: TcpListener,
    listening: bool,
    options: Options,
    answers: Answers,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    serial: u64,
    delayed: VecDeque<(Instant, usize, u64)>,
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

    /// Ends when `stop` becomes readable.
    pub fn new(listener: TcpListener, options: Options, stop: &OwnedFd) -> io::Result<Server> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, READ)?;
        poller.add(stop, STOP, READ)?;
        Ok(Server {
            poller,
            listener,
            listening: true,
            answers: Answers::new(options.body_bytes),
            options,
            conns: Vec::new(),
            free: Vec::new(),
            serial: 0,
            delayed: VecDeque::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Serves until told to stop or until `until`.
    pub fn run(&mut self, until: Option<Instant>) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            let next = self.delayed.front().map(|d| d.0).into_iter().chain(until).min();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut ready, timeout)?;
            for &token in &ready {
                match token {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    at => self.pump(at as usize, true)?,
                }
            }
            if next.is_some() {
                let now = Instant::now();
                if until.is_some_and(|until| now >= until) {
                    return Ok(());
                }
                self.answer_delayed(now)?;
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
            self.serial += 1;
            self.conns[at] = Some(Conn::new(stream, self.serial));
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
            drop(conn); // a reset by the client is its own business
            self.free.push(at);
            return self.set_listening(true);
        }
        let interest = conn.wanted();
        if interest != conn.interest {
            conn.interest = interest;
            self.poller.modify(&conn.stream, at as u64, interest)?;
        }
        self.conns[at] = Some(conn);
        Ok(())
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
            match body.feed(bytes) {
                Ok((used, done)) => {
                    bytes = &bytes[used..];
                    if !done {
                        break; // all bytes are used
                    }
                }
                Err(_) => return conn.refuse(400),
            }
            conn.body = None;
            if self.options.delay.is_zero() {
                self.answer(conn);
            } else {
                conn.state = State::Waiting;
                self.delayed.push_back((Instant::now() + self.options.delay, at, conn.serial));
            }
        }
        if conn.state != State::Ending {
            conn.rest.extend_from_slice(bytes);
        }
    }

    fn answer(&self, conn: &mut Conn) {
        conn.answers += 1;
        let last = self.options.close_after.is_some_and(|n| conn.answers >= n);
        let announce = !conn.keep_alive || last && self.options.announce;
        conn.out.extend_from_slice(self.answers.bytes(announce, conn.is_head));
        if announce {
            conn.state = State::Ending;
        } else if last {
            conn.state = State::Ending;
            conn.drop_after_out = true;
        }
    }

    fn answer_delayed(&mut self, now: Instant) -> io::Result<()> {
        while self.delayed.front().is_some_and(|d| d.0 <= now) {
            let Some((_, at, serial)) = self.delayed.pop_front() else { break };
            let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { continue };
            if conn.serial == serial {
                conn.state = State::Reading;
                self.answer(&mut conn);
            }
            self.conns[at] = Some(conn);
            self.pump(at, false)?;
        }
        Ok(())
    }
}

impl Answers {
    fn new(body_bytes: usize) -> Answers {
        let build = |extra: &str| {
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {body_bytes}\r\ncontent-type: text/plain\r\n{extra}\r\n");
            let head_bytes = head.len();
            let mut bytes = head.into_bytes();
            bytes.resize(head_bytes + body_bytes, b'x');
            (bytes, head_bytes)
        };
        let (stay, stay_head_bytes) = build("");
        let (close, close_head_bytes) = build("connection: close\r\n");
        Answers { stay, stay_head_bytes, close, close_head_bytes }
    }

    fn bytes(&self, close: bool, head_only: bool) -> &[u8] {
        match (close, head_only) {
            (false, false) => &self.stay,
            (false, true) => &self.stay[..self.stay_head_bytes],
            (true, false) => &self.close,
            (true, true) => &self.close[..self.close_head_bytes],
        }
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
            out: Vec::new(),
            out_at: 0,
            answers: 0,
            interest: READ,
            drop_after_out: false,
        }
    }

    /// Whether more requests are taken now.
    fn reads(&self) -> bool {
        self.state == State::Reading && self.out.len() < OUT_BYTES_MAX
    }

    fn wanted(&self) -> u32 {
        let read = self.reads() || self.state == State::Ending && self.out.is_empty();
        (if read { READ } else { 0 }) | (if self.out.is_empty() { 0 } else { WRITE })
    }

    /// Starts a request; the bytes of its head. A body of length 0 is drained by the next `feed`, which uses nothing.
    fn begin(&mut self, head: &request::Head) -> usize {
        self.body = Some(head.body);
        self.keep_alive = head.keep_alive;
        self.is_head = head.is_head;
        if head.wants_continue && head.body != Body::Length(0) {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        head.used
    }

    fn refuse(&mut self, status: u16) {
        let head = format!("HTTP/1.1 {status} Refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        self.out.extend_from_slice(head.as_bytes());
        self.state = State::Ending;
    }

    /// Writes what can be written. After the last answer our side ends, and the client's bytes are awaited and thrown
    /// away: closing with unread bytes would reset the connection and could destroy the answer on its way.
    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        while self.out_at < self.out.len() {
            match self.stream.write(&self.out[self.out_at..]) {
                Ok(n) => self.out_at += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.out_at = 0;
        match (self.state, self.drop_after_out) {
            (State::Ending, true) => Err(ErrorKind::ConnectionAborted.into()),
            (State::Ending, false) => self.stream.shutdown(std::net::Shutdown::Write),
            (State::Reading | State::Waiting, _) => Ok(()),
        }
    }
}
