//! Our log on one executor, as a log core runs it: closed loops and due times, every task of them on the same core.

use super::data::Data;
use super::sample::{Ask, Load, Sample, Times};
use super::worker;
use crate::schedule::{Pace, Schedule};
use crate::sys;
use glommio::{LocalExecutorBuilder, Placement};
use replog::hlc::Clock;
use replog::log::Refused;
use replog::open::Floor;
use replog::uring::stream::{Error, Kind, Options, Scrub, StreamLog};
use shardmap::Zone;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What is kept behind the durable end; older segments are used again. With two spares and one that is written: below 1 GB.
const KEEP_BYTES: u64 = 512 << 20;
/// How often what is behind is let go: 64 MiB are written in 50 ms at most.
const RELEASE: Duration = Duration::from_millis(10);

/// Ends the sleeps that glommio should not have begun, as a log core does.
const TICK: Duration = Duration::from_millis(5);

pub fn options(segment_bytes: u64) -> Options {
    let floor = Floor { applied: 0, peers: 0 };
    Options { zone: Zone(1), stream: 0, kind: Kind::Origin, segment_bytes, floor, scrub: Scrub::NEVER }
}

/// Runs `work` on an executor as that of a log core.
pub fn on_core<F: Future<Output = Result<T, String>> + 'static, T: Send + 'static>(
    core: usize,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, String> {
    let ticking = async || {
        loop {
            glommio::timer::sleep(TICK).await;
        }
    };
    LocalExecutorBuilder::new(Placement::Fixed(core))
        .preempt_timer(Duration::from_millis(10))
        .io_memory(4 << 20)
        .spawn(move || async move {
            sys::exact_timers();
            glommio::spawn_local(ticking()).detach();
            work().await
        })
        .and_then(|executor| executor.join())
        .map_err(|e| format!("the executor: {e}"))?
}

/// Answers loads on the log in `dir`; `recycle`: what is behind is let go, and used again.
pub fn serve(dir: &Path, core: usize, segment_bytes: u64, recycle: bool) -> Result<(), String> {
    let dir = dir.join("ours");
    on_core(core, move || async move {
        let (log, opened, _) = StreamLog::open(&dir, options(segment_bytes)).await.map_err(|e| e.to_string())?;
        let clock = Rc::new(RefCell::new(Clock::above(opened.last_hlc)));
        if recycle {
            glommio::spawn_local(release(log.clone())).detach();
        }
        while let Some(ask) = glommio::executor().spawn_blocking(worker::next_ask).await? {
            worker::answer(&run(&log, &clock, &ask).await)?;
        }
        log.close().await.map_err(|e| e.to_string())
    })
}

/// Lets go what is behind, for ever.
async fn release(log: StreamLog) {
    loop {
        glommio::timer::sleep(RELEASE).await;
        log.release(log.durable_seq() + 1, KEEP_BYTES);
    }
}

/// What the tasks of one load share.
struct Run {
    log: StreamLog,
    clock: Rc<RefCell<Clock>>,
    data: RefCell<Data>,
    begun: Instant,
    times: RefCell<Times>,
    late: RefCell<Times>,
    records: Cell<u64>,
    /// Still to be appended.
    left: Cell<u64>,
    /// Flushes seen: how often somebody who was woken found another durable seq.
    commits: Cell<u64>,
    durable: Cell<u64>,
}

async fn run(log: &StreamLog, clock: &Rc<RefCell<Clock>>, ask: &Ask) -> Result<Sample, String> {
    let run = Rc::new(Run {
        log: log.clone(),
        clock: clock.clone(),
        data: RefCell::new(Data::new(ask.record_bytes, 1)),
        begun: Instant::now(),
        times: RefCell::new(Times::new()),
        late: RefCell::new(Times::new()),
        records: Cell::new(0),
        left: Cell::new(if ask.bytes == 0 { u64::MAX } else { ask.bytes.div_ceil(ask.record_bytes as u64) }),
        commits: Cell::new(0),
        durable: Cell::new(log.durable_seq()),
    });
    let end = Duration::from_secs_f64(ask.seconds);
    let cpu = sys::cpu_ns();
    match ask.load {
        Load::Closed { writers, records } => {
            let start = |_| glommio::spawn_local(run.clone().write_on(records, end));
            let all: Vec<_> = (0..writers).map(start).collect();
            for writer in all {
                writer.await?;
            }
        }
        Load::Even { rate } => run.clone().write_when_due(rate, end).await?,
    }
    let records = run.records.get();
    let mut sample = Sample {
        seconds: run.begun.elapsed().as_secs_f64(),
        records,
        bytes: records * ask.record_bytes as u64,
        commits: run.commits.get(),
        cpu_ns: sys::cpu_ns() - cpu,
        late_p99_us: run.late.borrow().quantile_us(0.99),
        peak_bytes: sys::peak_bytes(),
        ..Sample::default()
    };
    run.times.borrow().tell(&mut sample);
    Ok(sample)
}

impl Run {
    /// One writer of a closed loop.
    async fn write_on(self: Rc<Self>, records: usize, end: Duration) -> Result<(), String> {
        while self.begun.elapsed() < end && self.left.get() > 0 {
            self.left.set(self.left.get().saturating_sub(records as u64));
            self.append(self.begun.elapsed(), records).await?;
        }
        Ok(())
    }

    /// Appends at due times; what is slow delays nobody else.
    async fn write_when_due(self: Rc<Self>, rate: f64, end: Duration) -> Result<(), String> {
        let mut schedule = Schedule::new(Pace::Even { rate }, end.as_nanos() as u64, self.left.get());
        let mut all = Vec::new();
        while let Some(due) = schedule.peek(0) {
            schedule.advance();
            let due = Duration::from_nanos(due);
            if let Some(early) = due.checked_sub(self.begun.elapsed()).filter(|early| !early.is_zero()) {
                glommio::timer::sleep(early).await;
            }
            self.late.borrow_mut().record(self.begun.elapsed().saturating_sub(due).as_nanos() as u64);
            let run = self.clone();
            all.push(glommio::spawn_local(async move { run.append(due, 1).await }));
        }
        for append in all {
            append.await?;
        }
        Ok(())
    }

    async fn append(&self, due: Duration, records: usize) -> Result<(), String> {
        let durable = loop {
            let hlc = self.clock.borrow_mut().tick(now_ms());
            let all = {
                let mut data = self.data.borrow_mut();
                (0..records).map(|at| data.record(at as u32, hlc)).collect()
            };
            match self.log.begin_append(all) {
                Ok((_, durable)) => break durable,
                Err(Error::Refused(Refused::Busy)) => glommio::timer::sleep(Duration::from_micros(200)).await,
                Err(e) => return Err(e.to_string()),
            }
        };
        durable.await.map_err(|e| e.to_string())?;
        self.times.borrow_mut().record((self.begun.elapsed() - due).as_nanos() as u64);
        self.records.set(self.records.get() + records as u64);
        let durable = self.log.durable_seq();
        if self.durable.replace(durable) != durable {
            self.commits.set(self.commits.get() + 1);
        }
        Ok(())
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
