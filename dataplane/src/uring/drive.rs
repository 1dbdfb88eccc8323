//! The loop of one router core: completions into the core, its orders into the ring.
//!
//! Each operation carries its connection's place and generation, so that news of a closed and reused place is dropped; a
//! socket is closed only when none of its operations is under way, and a buffer lives in its socket's slot until its send
//! is complete.

mod completed;
mod ordered;

use super::backlog::Backlog;
use super::doors::{Doors, Step};
use super::ring::{self, Buffers, GROUP, Sizes};
use super::secure::{Secure, Shelf};
use super::{Listener, Waker};
use crate::router::{ConnId, Core, Now, Settings, Shared};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{SockAddr, Socket};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How often a stopping core looks whether it is done.
const STOPPING_WAIT_MS: u64 = 20;
/// Rounds of 10 ms that the end waits for cancelled operations.
const WIND_DOWN_ROUNDS: u32 = 200;

/// What an operation is; the top byte of its user data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Accept = 1,
    Recv,
    Send,
    Connect,
    Cancel,
    Wake,
    Timer,
}

impl Op {
    fn of(user_data: u64) -> Option<Op> {
        [Op::Accept, Op::Recv, Op::Send, Op::Connect, Op::Cancel, Op::Wake, Op::Timer]
            .into_iter()
            .find(|op| *op as u64 == user_data >> 56)
    }
    fn on(self, id: ConnId) -> u64 {
        (self as u64) << 56 | u64::from(id.generation & 0xff_ffff) << 32 | u64::from(id.index)
    }
}

fn conn_of(user_data: u64) -> ConnId {
    ConnId { index: user_data as u32, generation: (user_data >> 32) as u32 & 0xff_ffff }
}

/// The driver's half of a connection.
#[derive(Default)]
pub(super) struct Sock {
    pub(super) socket: Option<Socket>,
    generation: u32,
    /// A receive is under way.
    receiving: bool,
    /// The core wants bytes.
    wanted: bool,
    /// A send is under way out of `buffer`, from `sent` on.
    pub(super) sending: bool,
    pub(super) buffer: Vec<u8>,
    pub(super) sent: usize,
    /// A connect is under way to this address.
    connecting: Option<Box<SockAddr>>,
    pub(super) closing: bool,
    /// It speaks TLS: `buffer` is ciphertext.
    pub(super) secure: Option<Box<Secure>>,
}

pub(super) struct Driver {
    // Dropped first: the kernel must be done with the rest.
    ring: IoUring,
    pub(super) buffers: Buffers,
    pub(super) socks: Vec<Sock>,
    pub(super) shelf: Shelf,
    wake_word: Box<[u8; 8]>,
    /// When the timer goes off, and the time that the kernel reads when it takes an entry of it.
    timer_ms: Option<u64>,
    timer: Box<types::Timespec>,
    pub(super) core: Core,
    number: usize,
    pub(super) settings: Arc<Settings>,
    shared: Arc<Shared>,
    doors: Doors,
    waker: Waker,
    /// This core's end of the ring to the access log.
    access: Option<rtrb::Producer<u8>>,
    batch: Vec<cqueue::Entry>,
    /// Entries that found the submission queue full.
    backlog: Backlog<squeue::Entry>,
    /// Operations under way, cancellations apart.
    under_way: usize,
    began: Instant,
    /// Read once a sweep: ids are judged by minutes.
    wall_ms: u64,
    stopping_since_ms: Option<u64>,
}

/// Runs router core `number` on this thread until it is told to stop.
pub fn run(
    number: usize,
    settings: Arc<Settings>,
    listeners: Vec<Listener>,
    waker: Waker,
    shared: Arc<Shared>,
) -> io::Result<()> {
    run_sized(Sizes::default(), number, settings, listeners, waker, shared)
}

/// The same on a ring of these sizes.
pub fn run_sized(
    sizes: Sizes,
    number: usize,
    settings: Arc<Settings>,
    listeners: Vec<Listener>,
    waker: Waker,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let ring = ring::open(sizes)?;
    let buffers = Buffers::new(&ring, sizes.buffers)?;
    let mut driver = Driver {
        ring,
        buffers,
        socks: Vec::new(),
        shelf: Shelf::default(),
        wake_word: Box::new([0; 8]),
        timer_ms: None,
        timer: Box::default(),
        core: Core::numbered(number, seed(), settings.clone()),
        number,
        settings,
        shared,
        doors: Doors::new(listeners),
        waker,
        access: None,
        batch: Vec::new(),
        backlog: Backlog::new(),
        under_way: 0,
        began: Instant::now(),
        wall_ms: wall_ms(),
        stopping_since_ms: None,
    };
    driver.core.set_seed(seed());
    let result = driver.drive();
    driver.wind_down();
    if driver.under_way > 0 {
        // The kernel may still use the buffers: leaked once, at the end, rather than freed under it.
        std::mem::forget(driver);
    }
    result
}

impl Driver {
    fn drive(&mut self) -> io::Result<()> {
        self.arm_wake();
        self.shared.show_settings(self.number, &self.settings, self.core.figures());
        self.adopt();
        loop {
            let now = self.now();
            if self.core.deadline().is_some_and(|at| at <= now.ms) {
                self.wall_ms = wall_ms();
                self.core.on_timer(now);
            }
            self.tend_doors(now);
            self.orders();
            self.shared.publish(self.number, self.core.counts());
            self.log_access();
            self.show_clients();
            if self.stopping_since_ms.is_some_and(|since| self.ends(since, now)) {
                return Ok(());
            }
            self.arm_timer(now);
            let wait_ms = if self.stopping_since_ms.is_some() { Some(STOPPING_WAIT_MS) } else { None };
            self.wait(wait_ms)?;
            self.complete();
        }
    }

    fn now(&self) -> Now {
        let since = self.began.elapsed();
        let us = since.as_secs() * 1_000_000 + u64::from(since.subsec_micros()) + 1;
        Now { ms: us / 1000, us, wall_ms: self.wall_ms }
    }

    /// Submits everything and waits for a completion, at most so long.
    fn wait(&mut self, wait_ms: Option<u64>) -> io::Result<()> {
        let wait_ms = wait_ms.into_iter().chain(self.doors.wait_ms()).min();
        let time = wait_ms.map(|ms| types::Timespec::new().sec(ms / 1000).nsec((ms % 1000) as u32 * 1_000_000));
        let mut args = types::SubmitArgs::new();
        if let Some(time) = &time {
            args = args.timespec(time);
        }
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            // EBUSY, EAGAIN: completions have to be taken first, which comes next.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn complete(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        self.look_for_overflow();
        batch.extend(self.ring.completion());
        let now = self.now();
        self.turned(batch.len() as u64);
        for entry in batch.drain(..) {
            let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            let op = Op::of(data);
            if op != Some(Op::Cancel) && !cqueue::more(flags) {
                self.under_way -= 1;
            }
            match op {
                Some(Op::Accept) => self.accepted(data as u32 as usize, result, flags, now),
                Some(Op::Recv) => self.received(conn_of(data), result, flags, now),
                Some(Op::Send) => self.sent(conn_of(data), result, now),
                Some(Op::Connect) => self.connected(conn_of(data), result, now),
                Some(Op::Wake) => {
                    self.adopt();
                    self.arm_wake();
                }
                Some(Op::Timer) => self.timer_ms = None,
                Some(Op::Cancel) | None => {}
            }
        }
        self.buffers.publish();
        self.batch = batch;
        if self.backlog.len() > 0 {
            let Driver { ring, backlog, .. } = self;
            backlog.drain(|entry| push(ring, entry));
        }
    }

    /// Hands records over to the access log; what finds no room there is lost, and counted.
    fn log_access(&mut self) {
        if self.core.access().is_empty() {
            return;
        }
        let (wall_us, us) = (wall_us(), self.now().us);
        let batch = self.core.access();
        let bytes = batch.sealed(wall_us, us);
        let room = self.access.as_mut().and_then(|ring| ring.write_chunk(bytes.len()).ok());
        let lost = room.is_none();
        if let Some(mut chunk) = room {
            let (first, second) = chunk.as_mut_slices();
            let (to_first, to_second) = bytes.split_at(first.len());
            first.copy_from_slice(to_first);
            second.copy_from_slice(to_second);
            chunk.commit_all();
        }
        batch.clear(lost);
        self.shared.loops(self.number).access_dropped.set(batch.dropped);
    }

    fn turned(&self, completions: u64) {
        let loops = self.shared.loops(self.number);
        loops.turns.add(1);
        loops.completions.add(completions);
        if completions > loops.completions_max.get() {
            loops.completions_max.set(completions);
        }
        loops.backlog.set(self.backlog.len() as u64);
    }

    /// Are there more completions than the ring has room for? The kernel keeps them, and gives them at the next wait.
    fn look_for_overflow(&mut self) {
        if self.ring.submission().cq_overflow() {
            self.shared.loops(self.number).overflows.add(1);
        }
    }

    fn place(&mut self, id: ConnId, socket: Socket) {
        let index = id.index as usize;
        if self.socks.len() <= index {
            self.socks.resize_with(index + 1, Sock::default);
        }
        self.socks[index] = Sock { socket: Some(socket), generation: id.generation, wanted: true, ..Sock::default() };
    }

    fn want(&mut self, id: ConnId, wanted: bool) {
        if let Some(sock) = sock(&mut self.socks, id) {
            sock.wanted = wanted;
        }
    }

    /// Arms a multishot receive unless one is armed, or none is wanted.
    fn arm_recv(&mut self, id: ConnId) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        let Some(socket) = sock.socket.as_ref().filter(|_| sock.wanted && !sock.receiving && !sock.closing) else {
            return;
        };
        let entry = opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), GROUP).build();
        sock.receiving = true;
        self.begin(entry, Op::Recv.on(id));
    }

    /// Arms accepts, and leads listeners to their end.
    fn tend_doors(&mut self, now: Now) {
        for step in self.doors.steps(now.ms) {
            match step {
                Step::Arm(number, fd) => {
                    let entry = opcode::AcceptMulti::new(types::Fd(fd)).flags(libc::SOCK_CLOEXEC).build();
                    self.begin(entry, (Op::Accept as u64) << 56 | number as u64);
                }
                Step::Cancel(number) => {
                    let entry = opcode::AsyncCancel::new((Op::Accept as u64) << 56 | number as u64).build();
                    self.submit(entry.user_data((Op::Cancel as u64) << 56));
                }
                Step::Empty(listener) => {
                    while let Some(socket) = listener.next() {
                        self.enter(socket, listener.side(), now);
                    }
                }
            }
        }
    }

    fn show_clients(&mut self) {
        if self.waker.cores() > 1 {
            self.waker.show(self.core.clients(), self.core.taken_over());
        }
    }

    /// Is a stopping core done? Nothing may be left at its doors or in its box; clients have until the limit.
    fn ends(&mut self, since_ms: u64, now: Now) -> bool {
        let late = now.ms >= since_ms + self.settings.limits.drain_ms;
        if (self.core.busy() || !self.doors.is_empty()) && !late || !self.waker.end() {
            return false;
        }
        self.core.on_cut_off();
        self.shared.publish(self.number, self.core.counts());
        true
    }

    fn arm_wake(&mut self) {
        let entry = opcode::Read::new(types::Fd(self.waker.fd()), self.wake_word.as_mut_ptr(), 8).build();
        self.begin(entry, (Op::Wake as u64) << 56);
    }

    /// A timer of its own, armed once for each deadline: a limit on each wait would start and stop one each time.
    fn arm_timer(&mut self, now: Now) {
        let Some(at) = self.core.deadline().filter(|at| self.timer_ms.is_none_or(|armed| *at < armed)) else { return };
        let in_ms = at.saturating_sub(now.ms).max(1);
        let user_data = (Op::Timer as u64) << 56;
        *self.timer = types::Timespec::new().sec(in_ms / 1000).nsec((in_ms % 1000) as u32 * 1_000_000);
        if self.timer_ms.replace(at).is_none() {
            self.begin(opcode::Timeout::new(&*self.timer).build(), user_data);
        } else {
            // If it has gone off meanwhile, its completion is on the way, and the next round arms it anew.
            let entry = opcode::TimeoutUpdate::new(user_data, &*self.timer).build();
            self.submit(entry.user_data((Op::Cancel as u64) << 56));
        }
    }

    fn begin(&mut self, entry: squeue::Entry, user_data: u64) {
        self.under_way += 1;
        self.submit(entry.user_data(user_data));
    }

    fn submit(&mut self, entry: squeue::Entry) {
        let Driver { ring, backlog, .. } = self;
        if backlog.put(entry, |entry| push(ring, entry)) {
            self.shared.loops(self.number).queue_full.add(1);
        }
    }

    /// Cancels everything and waits, bounded, until the kernel is done with it.
    fn wind_down(&mut self) {
        self.stopping_since_ms.get_or_insert(0);
        let all = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
        for _ in 0..WIND_DOWN_ROUNDS {
            if self.under_way == 0 {
                return;
            }
            self.submit(all.clone().user_data((Op::Cancel as u64) << 56));
            if self.wait(Some(10)).is_err() {
                return;
            }
            let batch: Vec<_> = self.ring.completion().collect();
            let done = batch.iter().filter(|e| Op::of(e.user_data()) != Some(Op::Cancel) && !cqueue::more(e.flags()));
            self.under_way -= done.count();
        }
    }
}

/// False: there is no room.
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: what an entry points to outlives its operation: a send's buffer and a connect's address stay in the socket's
    // slot, whose descriptor is closed only after them; the word of the wake-up, the timer's time and the ring of buffers live as
    // long as the driver, which is leaked if operations are left when it ends.
    if unsafe { ring.submission().push(entry) }.is_ok() {
        return true;
    }
    // Full: the kernel takes what is there. If it cannot, because completions have to be taken first, the entry waits.
    let _ = ring.submit();
    // SAFETY: as above.
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// The socket of `id`, unless its place is empty or in another use.
pub(super) fn sock(socks: &mut [Sock], id: ConnId) -> Option<&mut Sock> {
    socks.get_mut(id.index as usize).filter(|s| s.generation == id.generation && s.socket.is_some())
}

/// Another number for each core and each start: the standard library's own source of it.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

fn wall_ms() -> u64 {
    wall_us() / 1000
}
