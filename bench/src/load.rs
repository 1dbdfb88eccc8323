//! Drives a fixed number of connections through a schedule and counts what comes back. One thread, one epoll.

use crate::answer::{Done, Wrong};
use crate::outcome::{Fault, Outcome};
use crate::place::Place;
use crate::schedule::{Pace, Schedule};
use crate::script::Script;
use crate::sys::{Poller, READ, WRITE};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const READ_BYTES: usize = 64 * 1024;
/// A place whose connection failed waits so long before it tries again: a dead server is not hammered.
const RECONNECT_AFTER_NS: u64 = 10_000_000;
const STOP: u64 = u64::MAX;

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub script: Script,
    pub pace: Pace,
    /// No request after so many.
    pub requests: u64,
    pub connections: usize,
    /// Requests that one connection may carry at a time.
    pub pipeline: usize,
    /// Requests due before are sent and not counted.
    pub warmup: Duration,
    pub duration: Duration,
    pub timeout: Duration,
}

struct Driver<'a> {
    plan: &'a Plan,
    start: Instant,
    poller: Poller,
    schedule: Schedule,
    places: Vec<Place>,
    /// Places that can take a request, once for each that they can take.
    idle: VecDeque<usize>,
    /// Places that have taken requests and not been written yet.
    touched: Vec<usize>,
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
        schedule: Schedule::new(plan.pace, end.as_nanos() as u64, plan.requests),
        places: (0..plan.connections).map(|_| Place::default()).collect(),
        idle: (0..plan.pipeline).flat_map(|_| 0..plan.connections).collect(),
        touched: Vec::new(),
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
                if self.schedule.number() == self.plan.requests {
                    self.outcome.all_sent();
                }
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
            let Some(due) = self.schedule.peek(now).filter(|due| *due <= now) else { break };
            let Some(at) = self.idle.front().copied().filter(|at| self.places[*at].free_ns <= now) else { break };
            self.idle.pop_front();
            let number = self.schedule.number();
            self.schedule.advance();
            self.busy += 1;
            let sent = self.now();
            if self.counted(due) {
                self.outcome.sent(due, sent, self.places[at].free_ns);
            }
            self.places[at].begin(number, due, sent, &self.plan.script);
            if self.places[at].stream.is_none() {
                self.connect(at)?;
            } else if self.plan.pipeline == 1 {
                self.write(at)?;
            } else {
                self.touched.push(at); // so that requests of one connection travel together
            }
        }
        while let Some(at) = self.touched.pop() {
            self.write(at)?;
        }
        Ok(())
    }

    fn connect(&mut self, at: usize) -> io::Result<()> {
        let place = &mut self.places[at];
        match place.connect(self.plan.address, &self.plan.script) {
            Ok(stream) => self.poller.add(stream, at as u64, READ | WRITE)?,
            Err(error) => {
                self.fail(at, Fault::Connect, &error.to_string());
                return Ok(());
            }
        }
        self.places[at].interest = READ | WRITE;
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
        if place.connecting {
            return Ok(());
        }
        self.outcome.bytes_written += place.write();
        let interest = if place.has_output() { READ | WRITE } else { READ };
        if let Some(stream) = place.stream.as_ref().filter(|_| interest != place.interest) {
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
        if n == 0 {
            return self.end(at);
        }
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.take(at, &buffer[..n]);
        self.buffer = buffer;
        result
    }

    fn take(&mut self, at: usize, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let place = &mut self.places[at];
            if place.asked() == 0 {
                self.fail(at, Fault::Parse, &format!("{} bytes that nobody asked for", bytes.len()));
                return Ok(());
            }
            match place.answer.feed(bytes, self.plan.script.is_head()) {
                Ok((used, done)) => {
                    bytes = &bytes[used..];
                    let Some(done) = done else { return Ok(()) };
                    if place.asked() == 1 && !bytes.is_empty() {
                        self.fail(at, Fault::Parse, &format!("{} bytes after the end of the answer", bytes.len()));
                        return Ok(());
                    }
                    if !self.finish(at, done)? {
                        return Ok(());
                    }
                }
                Err(wrong) => {
                    self.fail_wrong(at, &wrong);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The server has closed its side.
    fn end(&mut self, at: usize) -> io::Result<()> {
        let place = &mut self.places[at];
        if place.asked() == 0 {
            self.drop_idle(at); // the server's idle limit: no request was harmed
            return Ok(());
        }
        let when = if place.answer.has_begun() { "in the middle of an answer" } else { "before an answer" };
        match place.answer.end() {
            Ok(Some(done)) => return self.finish(at, done).map(drop),
            Ok(None) => self.fail(at, Fault::Reset, &format!("connection closed {when}")),
            Err(wrong) => self.fail_wrong(at, &wrong),
        }
        Ok(())
    }

    /// The oldest request has its answer; whether its connection goes on. If not, what else was asked on it is asked anew.
    fn finish(&mut self, at: usize, done: Done) -> io::Result<bool> {
        let now = self.now();
        let place = &mut self.places[at];
        let Some((flight, whole)) = place.finish(&self.plan.script) else { return Ok(false) };
        let stays = done.keep_alive && whole;
        place.free_ns = now;
        if !stays {
            place.close();
        }
        let more = place.asked() > 0;
        self.release(at);
        if self.counted(flight.due_ns) {
            self.outcome.until_last = Duration::from_nanos(now).saturating_sub(self.plan.warmup);
            self.outcome.answered(done.status, now - flight.due_ns, now - flight.sent_ns);
        }
        if !stays && more {
            self.connect(at)?;
        }
        Ok(stays)
    }

    fn fail_wrong(&mut self, at: usize, wrong: &Wrong) {
        match wrong {
            Wrong::Garbled(detail) => self.fail(at, Fault::Parse, detail),
            Wrong::Mixed(detail) => self.fail(at, Fault::Mixed, detail),
        }
    }

    fn fail(&mut self, at: usize, fault: Fault, detail: &str) {
        let now = self.now();
        let place = &mut self.places[at];
        let flights = place.abandon();
        place.free_ns = now + if fault == Fault::Connect { RECONNECT_AFTER_NS } else { 0 };
        if flights.is_empty() {
            self.outcome.failed(fault, detail, 0);
        }
        for flight in flights {
            self.release(at);
            if self.counted(flight.due_ns) {
                self.outcome.failed(fault, detail, now - flight.due_ns);
            }
        }
    }

    fn drop_idle(&mut self, at: usize) {
        self.places[at].close();
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
            if self.places[at].oldest().is_some_and(|f| now - f.sent_ns >= timeout) {
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
            if self.places[at].asked() > 0 {
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
