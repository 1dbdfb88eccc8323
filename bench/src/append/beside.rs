//! The phase that puts other durable logs beside ours: the same writers, then the same rate.

use super::figures::{What, Who};
use super::phases::cpu_per_thousand;
use super::sample::{Load, Sample};
use super::worker::{Kind, Worker};
use super::{Bench, Phase, nats, order, raft, sqlite};
use crate::compare::peers::Running;

const RECORD_BYTES: usize = 300;
const BATCH: usize = 64;
/// The rate at which latencies are compared, unless a peer cannot keep it up: then at half of what it can.
const RATE: f64 = 1000.0;

/// A log that can be measured here.
struct Peer {
    who: Who,
    worker: Worker,
    /// What the worker talks to.
    server: Option<Running>,
    /// Its directory's name.
    name: &'static str,
    rate: f64,
}

/// All of them, and ours, in each round.
pub fn peers(bench: &mut Bench) -> Result<(), String> {
    let mut all = present(bench)?;
    let mut ours = bench.worker(Kind::Ours, "beside")?;
    let writers = bench.args.writers;
    let closed = |records| Load::Closed { writers, records };
    ours.run(&bench.args.ask(closed(1), RECORD_BYTES))?;
    for peer in &mut all {
        let most = peer.run(bench, closed(1))?.records_per_s();
        peer.rate = if most > 1.5 * RATE { RATE } else { (most / 2.0).max(1.0).round() };
        let note =
            format!("beside {}: latencies at {}/s, {:.0}/s is the most it did first", peer.who.name(), peer.rate, most);
        bench.report.notes.push(note);
    }
    for round in 0..bench.args.rounds() {
        let sample = ours.run(&bench.args.ask(closed(1), RECORD_BYTES))?;
        rates(bench, Who::Ours, round, &sample);
        let sample = ours.run(&bench.args.ask(closed(BATCH), RECORD_BYTES))?;
        bench.put(What::PeerBatchedRecordsPerS, Who::Ours, round, sample.records_per_s());
        for at in order(&(0..all.len()).collect::<Vec<_>>(), round) {
            let peer = &mut all[at];
            let (who, even) = (peer.who, Load::Even { rate: peer.rate });
            let sample = peer.run(bench, closed(1))?;
            rates(bench, who, round, &sample);
            if who != Who::Nats {
                let sample = peer.run(bench, closed(BATCH))?;
                bench.put(What::PeerBatchedRecordsPerS, who, round, sample.records_per_s());
            }
            let sample = peer.run(bench, even)?;
            bench.put(What::PeerP99Us(who), who, round, sample.p99_us);
            let sample = ours.run(&bench.args.ask(even, RECORD_BYTES))?;
            bench.put(What::PeerP99Us(who), Who::Ours, round, sample.p99_us);
        }
        bench.said(Phase::Peers, round);
    }
    bench.remove(ours, "beside")?;
    for peer in all {
        let Peer { worker, server, name, .. } = peer;
        drop(server);
        bench.remove(worker, name)?;
    }
    Ok(())
}

fn rates(bench: &mut Bench, who: Who, round: usize, sample: &Sample) {
    bench.put(What::PeerRecordsPerS, who, round, sample.records_per_s());
    bench.put(What::PeerCpuMsPerThousand, who, round, cpu_per_thousand(sample));
}

impl Peer {
    /// Runs a load; the processor time of a server is the peer's.
    fn run(&mut self, bench: &Bench, load: Load) -> Result<Sample, String> {
        let before = self.server.as_ref().map_or(0, Running::cpu_ns);
        let failed = |e| format!("{}: {e}", self.who.name());
        let mut sample = self.worker.run(&bench.args.ask(load, RECORD_BYTES)).map_err(failed)?;
        sample.cpu_ns += self.server.as_ref().map_or(0, Running::cpu_ns).saturating_sub(before);
        Ok(sample)
    }
}

/// Those that are here; of each other, why it is not.
fn present(bench: &mut Bench) -> Result<Vec<Peer>, String> {
    let peer = |who, worker, server, name| Peer { who, worker, server, name, rate: RATE };
    let mut all = vec![peer(Who::Sqlite, bench.worker(Kind::Sqlite, "sqlite")?, None, "sqlite")];
    bench.report.versions.insert("SQLite", sqlite::version());
    bench.report.notes.push(
        "SQLite: one connection, as it takes one writer at a time; each append a transaction; WAL, synchronous=FULL"
            .into(),
    );
    if raft::BUILT {
        all.push(peer(Who::RaftEngine, bench.worker(Kind::RaftEngine, "raft")?, None, "raft"));
        bench.report.versions.insert("raft-engine", "raft-engine 0.4.2".into());
        bench.report.notes.push("raft-engine: a thread for each writer, write with sync, no compression".into());
    } else {
        bench
            .report
            .absent
            .push("raft-engine: built without it; `cargo build --release -p bench --features raft-engine`".into());
    }
    match nats::present(&bench.args.nats_server, bench.dir) {
        Ok(version) => {
            let (server, address) = nats::start(&bench.args.nats_server, bench.dir)?;
            let worker = Worker::start(Kind::Nats, &address.to_string(), &bench.words())?;
            all.push(peer(Who::Nats, worker, Some(server), "nats"));
            bench.report.versions.insert("NATS JetStream", version);
            bench.report.notes.push(
                "NATS JetStream: sync_interval always; as many publishes under way on one connection as there are writers".into(),
            );
        }
        Err(why) => bench.report.absent.push(format!("NATS JetStream: {why}")),
    }
    Ok(all)
}
