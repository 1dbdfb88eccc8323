//! Carries packets between two TUN devices: the only thread between the two ends, and the only place where the link meets the world.

use super::line::{Counters, Line, Settings};
use super::side::{Side, Stack};
use crate::sys::{self, Poller, READ};
use hdrhistogram::Histogram;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A super-packet and its heads.
const PACKET_BYTES_MAX: usize = (64 << 10) + 256;
/// Packets that are taken from one device before the other one has its turn.
const TAKEN_MAX: usize = 64;
/// What is due so soon goes with what is due now: fewer wake-ups, and less than any timer is worth.
const EARLY_NS: u64 = 20_000;
/// Token of the end; the devices have 0 and 1.
const ENDED: u64 = 2;

/// What the thread and its owner share; each takes it for as long as one turn of the loop.
pub struct Carried {
    /// From a to b, and from b to a.
    pub lines: [Line; 2],
    /// How much later than due packets were handed over.
    pub late_us: Histogram<u64>,
    /// Packets that the receiving kernel did not take.
    pub refused: u64,
    pub cpu_ns: u64,
}

/// A link at work between two namespaces; dropped, it and they are gone.
pub struct Wan {
    pub sides: [Side; 2],
    shared: Arc<Mutex<Carried>>,
    begun: Instant,
    end: UnixStream,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What a link looks like from outside at one moment.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Seen {
    pub seconds: f64,
    pub a_to_b: Counters,
    pub b_to_a: Counters,
    /// Time that the link's thread has spent on a processor; the receiving kernel's work for each packet is in it.
    pub cpu_s: f64,
    pub late_us_p50: u64,
    pub late_us_p99: u64,
    pub late_us_max: u64,
    /// Packets that a device dropped because this program did not take them in time, or the receiving kernel refused.
    pub dropped_by_kernel: u64,
}

impl Wan {
    /// Makes both ends and starts carrying, on `core` where one is given.
    pub fn start(lines: [Line; 2], stack: &Stack, core: Option<core_affinity::CoreId>) -> Result<Wan, String> {
        let [(a, device_a), (b, device_b)] = [Side::make(0, stack)?, Side::make(1, stack)?];
        let late_us = Histogram::new_with_bounds(1, 60_000_000, 2).expect("these bounds are in order");
        let shared = Arc::new(Mutex::new(Carried { lines, late_us, refused: 0, cpu_ns: 0 }));
        let (end, ended) = UnixStream::pair().map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                core.map(core_affinity::set_for_current);
                sys::exact_timers();
                // Refused to those who are not root; then the link is as late as any program.
                let _ = sys::run_first();
                carry([device_a, device_b], &ended, &shared, begun)
            }
        });
        Ok(Wan { sides: [a, b], shared, begun, end, thread: Some(thread) })
    }

    pub fn shared(&self) -> MutexGuard<'_, Carried> {
        self.shared.lock().expect("the carrying thread does not panic")
    }

    /// Changes both directions from now on.
    pub fn set(&self, change: impl Fn(&mut Settings)) {
        for line in &mut self.shared().lines {
            let mut settings = line.settings();
            change(&mut settings);
            line.set(settings);
        }
    }

    /// Cuts both directions, or heals them.
    pub fn cut(&self, cut: bool) {
        self.shared().lines.iter_mut().for_each(|l| l.cuts.by_hand = cut);
    }

    pub fn seen(&self) -> Seen {
        let dropped: u64 = self.sides.iter().map(Side::dropped).sum();
        let now = self.shared();
        let late = |q: f64| now.late_us.value_at_quantile(q);
        Seen {
            seconds: self.begun.elapsed().as_secs_f64(),
            a_to_b: now.lines[0].counters,
            b_to_a: now.lines[1].counters,
            cpu_s: now.cpu_ns as f64 / 1e9,
            late_us_p50: late(0.5),
            late_us_p99: late(0.99),
            late_us_max: now.late_us.max(),
            dropped_by_kernel: dropped + now.refused,
        }
    }

    /// Why the link broke, if it did.
    pub fn broken(&mut self) -> Option<String> {
        let thread = self.thread.take_if(|t| t.is_finished())?;
        let result = thread.join().expect("the carrying thread does not panic");
        Some(result.map_or_else(|e| e.to_string(), |()| "it ended by itself".to_owned()))
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        let _ = self.end.write_all(b"."); // it has ended before, otherwise
        self.thread.take().map(JoinHandle::join);
    }
}

fn carry(mut devices: [File; 2], ended: &UnixStream, shared: &Mutex<Carried>, begun: Instant) -> io::Result<()> {
    let (mut poller, mut ready) = (Poller::new()?, Vec::new());
    poller.add(&devices[0], 0, READ)?;
    poller.add(&devices[1], 1, READ)?;
    poller.add(ended, ENDED, READ)?;
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let now = || begun.elapsed().as_nanos() as u64;
    loop {
        let deadline = {
            let mut carried = shared.lock().expect("its owner does not panic with it");
            deliver(&mut devices, &mut carried, now())?;
            carried.lines.iter().filter_map(Line::deadline).min()
        };
        let timeout = deadline.map(|at| Duration::from_nanos(at.saturating_sub(now())));
        poller.wait(&mut ready, timeout)?;
        let mut carried = shared.lock().expect("its owner does not panic with it");
        carried.cpu_ns = sys::thread_cpu_ns();
        for token in ready.iter().copied() {
            if token == ENDED {
                return Ok(());
            }
            take(&mut devices[token as usize], &mut carried.lines[token as usize], &mut packet, &now)?;
        }
    }
}

fn take(device: &mut File, line: &mut Line, packet: &mut [u8], now: &impl Fn() -> u64) -> io::Result<()> {
    for _ in 0..TAKEN_MAX {
        match device.read(packet) {
            Ok(n) => line.on_packet(&packet[..n], now()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn deliver(devices: &mut [File; 2], carried: &mut Carried, now_ns: u64) -> io::Result<()> {
    for from in [0, 1] {
        while let Some((due_ns, packet)) = carried.lines[from].next(now_ns + EARLY_NS) {
            carried.late_us.saturating_record(now_ns.saturating_sub(due_ns) / 1000);
            // Refused: the device is down, or the packet is none that the kernel takes. It is lost, as on any wire.
            let taken = devices[1 - from].write(&packet).is_ok_and(|n| n == packet.len());
            carried.refused += u64::from(!taken);
        }
    }
    Ok(())
}
