//! One of the driver's connections: what is still to be written on it, and the requests whose answers it awaits.

use crate::answer::Answer;
use crate::script::Script;
use socket2::{Domain, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};

/// A request under way. Times in nanoseconds from the run's start.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    pub number: u64,
    pub due_ns: u64,
    pub sent_ns: u64,
    /// Where it ends among all bytes of this connection.
    end: u64,
}

#[derive(Default)]
pub struct Place {
    pub stream: Option<TcpStream>,
    pub connecting: bool,
    /// In the order of their answers.
    flights: VecDeque<Flight>,
    pub answer: Answer,
    /// Since when this place could have taken a request.
    pub free_ns: u64,
    /// What the poller watches for.
    pub interest: u32,
    out: Vec<u8>,
    out_at: usize,
    /// Bytes written on this connection.
    written: u64,
}

impl Place {
    /// Starts to connect; the poller has yet to be told.
    pub fn connect(&mut self, address: SocketAddr, script: &Script) -> io::Result<&TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        self.close();
        self.connecting = true;
        let mut flights = std::mem::take(&mut self.flights);
        flights.iter_mut().for_each(|f| f.end = self.put(f.number, script));
        self.flights = flights;
        self.expect_next(script);
        Ok(self.stream.insert(socket.into()))
    }

    pub fn close(&mut self) {
        (self.stream, self.connecting) = (None, false);
        self.out.clear();
        (self.out_at, self.written) = (0, 0);
    }

    /// Takes a request; it is written with the next `write`.
    pub fn begin(&mut self, number: u64, due_ns: u64, sent_ns: u64, script: &Script) {
        let end = self.put(number, script);
        self.flights.push_back(Flight { number, due_ns, sent_ns, end });
        if self.flights.len() == 1 {
            self.expect_next(script);
        }
    }

    fn put(&mut self, number: u64, script: &Script) -> u64 {
        script.put(number, &mut self.out);
        self.written + (self.out.len() - self.out_at) as u64
    }

    fn expect_next(&mut self, script: &Script) {
        self.answer.reset(self.flights.front().and_then(|f| script.token(f.number)));
    }

    /// Writes what the socket takes; how many bytes.
    pub fn write(&mut self) -> u64 {
        let before = self.written;
        let Some(stream) = &mut self.stream else { return 0 };
        while self.out_at < self.out.len() {
            match stream.write(&self.out[self.out_at..]) {
                Ok(n) => {
                    self.out_at += n;
                    self.written += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Full, or closed: the server may have answered before it closed, so reading decides.
                Err(_) => return self.written - before,
            }
        }
        self.out.clear();
        self.out_at = 0;
        self.written - before
    }

    /// Whether something is left to write.
    pub fn has_output(&self) -> bool {
        self.out_at < self.out.len()
    }

    /// Requests that have no answer yet.
    pub fn asked(&self) -> usize {
        self.flights.len()
    }

    pub fn oldest(&self) -> Option<&Flight> {
        self.flights.front()
    }

    /// The oldest request has its answer. Whether its connection can go on: an answer that came before the whole
    /// request was written leaves the rest of it unsaid.
    pub fn finish(&mut self, script: &Script) -> Option<(Flight, bool)> {
        let flight = self.flights.pop_front()?;
        self.expect_next(script);
        Some((flight, self.written >= flight.end))
    }

    /// Its requests, which will have no answer.
    pub fn abandon(&mut self) -> VecDeque<Flight> {
        self.close();
        std::mem::take(&mut self.flights)
    }
}
