//! Drives a fixed number of connections through a schedule and counts what comes back. One thread, one epoll.

use crate::answer::{Answer, Done};
use crate::outcome::{Fault, Outcome};
use crate::schedule::{Pace, Schedule};
use crate::sys::{Poller, READ, WRITE};
use crate::target::Target;
use socket2::{Domain, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const READ_BYTES: usize = 64 * 1024;
/// A place whose connection failed waits so long before it tries again: a dead server is not hammered.
const RECONNECT_AFTER_NS: u64 = 10_000_000;
const STOP: u64 = u64::MAX;

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub pace: Pace,
    pub connections: usize,
    /// Requests due before are sent and not counted.
    pub warmup: Duration,
    pub duration: Duration,
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    due_ns: u64,
    sent_ns: u64,
    written: usize,
}

#[derive(Default)]
struct Place {
    stream: Option<TcpStream>,
    connecting: bool,
    flight: Option<Flight>,
    answer: Answer,
    /// Since when this place could have taken a request.
    free_ns: u64,
    interest: u32,
}

struct Driver<'a> {
    plan: &'a Plan,
    start: Instant,
    poller: Poller,
    schedule: Schedule,
    places: Vec<Place>,
    /// Places without a request: those connected in front, those to be connected behind.
    idle: VecDeque<usize>,
    busy: usize,
    buffer: Vec<u8>,
    outcome: Outcome,
}

/// Runs the plan; `tick` is called about ten times a second. Ends early when `stop` becomes readable.
pub fn drive(plan: &Plan, stop: Option<&OwnedFd>, tick: impl FnMut(Duration, &Outcome)) -> io::Result<Outcome> {
    let poller = Poller::new()?;
    if let Some(stop) = stop {
        poller.add(stop, STOP, READ)?;
    }
    let end = plan.warmup + plan.duration;
    let driver = Driver {
        plan,
        start: Instant::now(),
        poller,
        schedule: Schedule::new(plan.pace, end.as_nanos() as u64),
        places: (0..plan.connections).map(|_| Place::default()).collect(),
        idle: (0..plan.connections).collect(),
        busy: 0,
        buffer: vec![0; READ_BYTES],
        outcome: Outcome::new(plan.duration),
    };
    driver.run(tick)
}

impl Driver<'_> {
    fn run(mut self, mut tick: impl FnMut(Duration, &Outcome)) -> io::Result<Outcome> {
        let end_ns = (self.plan.warmup + self.plan.duration).as_nanos() as u64;
        let give_up_ns = end_ns + self.plan.timeout.as_nanos() as u64;
        let sweep_every_ns = (self.plan.timeout.as_nanos() as u64 / 20).clamp(1_000_000, 100_000_000);
        let mut sweep_ns = sweep_every_ns;
        let mut ready = Vec::new();
        loop {
            let now = self.now();
            self.send_due(now)?;
            let due = self.schedule.peek(now);
            if self.busy == 0 && due.is_none() || now >= give_up_ns {
                break;
            }
            let mut wake = sweep_ns.min(give_up_ns);
            if let (Some(due), Some(&at)) = (due, self.idle.front()) {
                wake = wake.min(due.max(self.places[at].free_ns));
            }
            self.poller.wait(&mut ready, Some(Duration::from_nanos(wake.saturating_sub(self.now()))))?;
            if ready.contains(&STOP) {
                self.outcome.cut_short(self.start.elapsed().saturating_sub(self.plan.warmup));
                break;
            }
            for &token in &ready {
                self.on_ready(token as usize)?;
            }
            if self.now() >= sweep_ns {
                sweep_ns = self.now() + sweep_every_ns;
                self.sweep()?;
                tick(self.start.elapsed(), &self.outcome);
            }
        }
        self.count_unsent();
        Ok(self.outcome)
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn counted(&self, due_ns: u64) -> bool {
        due_ns >= self.plan.warmup.as_nanos() as u64
    }

    /// Gives what is due to idle places. What finds none stays in the schedule, and its waiting counts.
    fn send_due(&mut self, now: u64) -> io::Result<()> {
        // A place can free itself at once (a refused connection), so one pass gives out at most one request a place.
        for _ in 0..self.idle.len() {
            let Some(due) = self.schedule.peek(now).filter(|due| *due <= now) else { return Ok(()) };
            let Some(at) = self.idle.front().copied().filter(|at| self.places[*at].free_ns <= now) else {
                return Ok(());
            };
            self.idle.pop_front();
            self.schedule.advance();
            self.busy += 1;
            let sent = self.now();
            if self.counted(due) {
                self.outcome.sent(due, sent, self.places[at].free_ns);
            }
            self.places[at].flight = Some(Flight { due_ns: due, sent_ns: sent, written: 0 });
            self.places[at].answer.reset();
            if self.places[at].stream.is_none() {
                if let Err(error) = self.connect(at) {
                    self.fail(at, Fault::Connect, &error.to_string());
                }
            } else {
                self.write(at)?;
            }
        }
        Ok(())
    }

    fn connect(&mut self, at: usize) -> io::Result<()> {
        let address = self.plan.target.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let stream = TcpStream::from(socket);
        self.poller.add(&stream, at as u64, READ | WRITE)?;
        let place = &mut self.places[at];
        (place.stream, place.connecting, place.interest) = (Some(stream), true, READ | WRITE);
        Ok(())
    }

    fn on_ready(&mut self, at: usize) -> io::Result<()> {
        let place = &mut self.places[at];
        let Some(stream) = &place.stream else { return Ok(()) };
        if place.connecting {
            match stream.take_error()? {
                Some(error) => {
                    self.fail(at, Fault::Connect, &error.to_string());
                    return Ok(());
                }
                // Readable or writable without an error: connected.
                None => place.connecting = false,
            }
        }
        self.write(at)?;
        self.read(at)
    }

    fn write(&mut self, at: usize) -> io::Result<()> {
        let place = &mut self.places[at];
        let (Some(stream), Some(flight)) = (&mut place.stream, &mut place.flight) else { return Ok(()) };
        let request = &self.plan.target.request;
        while flight.written < request.len() {
            match stream.write(&request[flight.written..]) {
                Ok(n) => {
                    flight.written += n;
                    self.outcome.bytes_written += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // The server may have answered before it closed: reading decides.
                Err(_) => break,
            }
        }
        let interest = if flight.written < request.len() { READ | WRITE } else { READ };
        if interest != place.interest {
            place.interest = interest;
            self.poller.modify(stream, at as u64, interest)?;
        }
        Ok(())
    }

    fn read(&mut self, at: usize) -> io::Result<()> {
        let place = &mut self.places[at];
        let Some(stream) = &mut place.stream else { return Ok(()) };
        let n = match stream.read(&mut self.buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(e) => {
                self.fail(at, Fault::Reset, &e.to_string());
                return Ok(());
            }
        };
        self.outcome.bytes_read += n as u64;
        if place.flight.is_none() {
            match n {
                0 => self.drop_idle(at), // the server's idle limit: no request was harmed
                n => self.fail(at, Fault::Parse, &format!("{n} bytes that nobody asked for")),
            }
            return Ok(());
        }
        if n == 0 {
            let when = if place.answer.has_begun() { "in the middle of an answer" } else { "before an answer" };
            match place.answer.end() {
                Some(done) => self.finish(at, done),
                None => self.fail(at, Fault::Reset, &format!("connection closed {when}")),
            }
            return Ok(());
        }
        match place.answer.feed(&self.buffer[..n], self.plan.target.is_head) {
            Ok(None) => {}
            Ok(Some(done)) => self.finish(at, done),
            Err(fault) => self.fail(at, Fault::Parse, &fault),
        }
        Ok(())
    }

    fn finish(&mut self, at: usize, done: Done) {
        let now = self.now();
        let whole = self.plan.target.request.len();
        let place = &mut self.places[at];
        let Some(flight) = place.flight.take() else { return };
        place.free_ns = now;
        // An answer that came before the whole request was written leaves the rest of it unsaid: start anew.
        if !done.keep_alive || flight.written < whole {
            place.stream = None;
        }
        self.release(at);
        if self.counted(flight.due_ns) {
            self.outcome.until_last = Duration::from_nanos(now).saturating_sub(self.plan.warmup);
            self.outcome.answered(done.status, now - flight.due_ns, now - flight.sent_ns);
        }
    }

    fn fail(&mut self, at: usize, fault: Fault, detail: &str) {
        let now = self.now();
        let place = &mut self.places[at];
        place.stream = None;
        place.connecting = false;
        place.free_ns = now + if fault == Fault::Connect { RECONNECT_AFTER_NS } else { 0 };
        match place.flight.take() {
            Some(flight) => {
                self.release(at);
                if self.counted(flight.due_ns) {
                    self.outcome.failed(fault, detail, now - flight.due_ns);
                }
            }
            None => self.outcome.failed(fault, detail, 0),
        }
    }

    fn drop_idle(&mut self, at: usize) {
        self.places[at].stream = None;
        self.outcome.closed_idle += 1;
    }

    fn release(&mut self, at: usize) {
        self.busy -= 1;
        self.idle.push_back(at);
    }

    /// Ends the requests that have waited for the timeout since they were sent.
    fn sweep(&mut self) -> io::Result<()> {
        let (now, timeout) = (self.now(), self.plan.timeout.as_nanos() as u64);
        for at in 0..self.places.len() {
            if self.places[at].flight.is_some_and(|f| now - f.sent_ns >= timeout) {
                self.fail(at, Fault::Timeout, "no whole answer within --timeout-ms");
            }
        }
        Ok(())
    }

    /// What was due and never sent, or is still under way at the end, has waited at least until now.
    fn count_unsent(&mut self) {
        let now = self.now();
        if self.outcome.interrupted {
            return;
        }
        for at in 0..self.places.len() {
            if self.places[at].flight.is_some() {
                self.fail(at, Fault::Timeout, "no answer by the end of the run");
            }
        }
        while self.plan.pace != Pace::Closed
            && let Some(due) = self.schedule.peek(now)
        {
            self.schedule.advance();
            if self.counted(due) {
                self.outcome.failed(Fault::Unsent, "every connection was busy until the end", now.saturating_sub(due));
            }
        }
    }
}
