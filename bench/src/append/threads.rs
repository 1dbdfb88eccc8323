//! Drives a log whose append blocks until it is durable: one thread for each writer.

use super::data::Data;
use super::sample::{Ask, Load, Sample, Times};
use crate::schedule::{Pace, Schedule};
use crate::sys;
use bytes::Bytes;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Threads that wait for due appends: as many as there may be waiting for a flush of 16 ms at 1,000/s.
const EVEN_THREADS: usize = 16;

/// Runs `ask` with at most `threads_max` threads; `append(thread, pairs)` returns when the pairs are durable.
pub fn drive(
    ask: &Ask,
    threads_max: usize,
    append: impl Fn(usize, Vec<(Bytes, Bytes)>) -> Result<(), String> + Sync,
) -> Result<Sample, String> {
    let (threads, records) = match ask.load {
        Load::Closed { writers, records } => (writers.min(threads_max), records),
        Load::Even { .. } => (EVEN_THREADS.min(threads_max), 1),
    };
    let end = Duration::from_secs_f64(ask.seconds);
    let pace = match ask.load {
        Load::Closed { .. } => Pace::Closed,
        Load::Even { rate } => Pace::Even { rate },
    };
    let most = if ask.bytes == 0 { u64::MAX } else { ask.bytes.div_ceil((ask.record_bytes * records) as u64) };
    let schedule = Mutex::new(Schedule::new(pace, end.as_nanos() as u64, most));
    let (cpu, begun) = (sys::cpu_ns(), Instant::now());
    let one = |thread: usize| -> Result<(Times, Times), String> {
        sys::exact_timers();
        let (mut data, mut times, mut late) = (Data::new(ask.record_bytes, thread as u64), Times::new(), Times::new());
        let now = || begun.elapsed().as_nanos() as u64;
        loop {
            let due = {
                let mut schedule = schedule.lock().map_err(|_| "a thread of the load has panicked")?;
                let Some(due) = schedule.peek(now()) else { return Ok((times, late)) };
                schedule.advance();
                due
            };
            if let Some(early) = due.checked_sub(now()) {
                thread::sleep(Duration::from_nanos(early));
                late.record(now().saturating_sub(due));
            }
            append(thread, (0..records).map(|_| data.pair()).collect())?;
            times.record(now() - due);
        }
    };
    let all: Vec<_> = thread::scope(|scope| {
        let one = &one;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        running
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err("a thread of the load has panicked".into())))
            .collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let (mut times, mut late) = (Times::new(), Times::new());
    for result in all {
        let (seen, seen_late) = result?;
        times.add(&seen);
        late.add(&seen_late);
    }
    let appends = times.count();
    let mut sample = Sample {
        seconds,
        records: appends * records as u64,
        bytes: appends * (records * ask.record_bytes) as u64,
        commits: 0,
        cpu_ns: sys::cpu_ns() - cpu,
        late_p99_us: late.quantile_us(0.99),
        peak_bytes: sys::peak_bytes(),
        ..Sample::default()
    };
    times.tell(&mut sample);
    Ok(sample)
}
