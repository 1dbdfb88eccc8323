//! The phases in which all proxies take part: closed loop, fixed rate, large bodies.

use super::figures::{Figures, What, Who};
use super::rig::{Rig, Under};
use super::{Router, order};
use crate::schedule::Pace;
use std::collections::BTreeMap;

/// Bytes of a small answer.
pub const SMALL: usize = 128;
/// Large answers, and at how many connections.
pub const LARGE: [(usize, usize); 2] = [(64 << 10, 16), (1 << 20, 8)];

/// CPU time of a request, and how many a second, as fast as answers come.
pub fn closed(rig: &mut Rig, args: &Router, who: &[Who], figures: &mut Figures) -> Result<(), String> {
    each(rig, args, who, SMALL, |rig, under, round| {
        for connections in turn(&args.connections, round) {
            let load = args.load(Pace::Closed, connections);
            let sample = rig.measure(under, &load)?;
            let mut put = |what, value| figures.put(what, connections as u64, under.who, round, value);
            put(What::CpuUs, sample.cpu_us);
            put(What::PerS, sample.outcome.answers_per_s());
            put(What::ServiceP99Us, sample.latency_us(0.99));
        }
        Ok(())
    })
}

/// Requests a second by number of connections.
pub type Rates = BTreeMap<usize, f64>;

/// Latencies at half of what nginx can do at most; the rates.
pub fn fixed(rig: &mut Rig, args: &Router, who: &[Who], figures: &mut Figures) -> Result<Rates, String> {
    let mut rates = Rates::new();
    for connections in &args.connections {
        rates.insert(*connections, half_of_most(rig, args, who, figures, *connections)?);
    }
    let places: Vec<(usize, f64)> = rates.iter().map(|(n, rate)| (*n, *rate)).collect();
    each(rig, args, who, SMALL, |rig, under, round| {
        for (connections, rate) in turn(&places, round) {
            let sample = rig.measure(under, &args.load(Pace::Even { rate }, connections))?;
            let mut put = |what, q| figures.put(what, connections as u64, under.who, round, sample.latency_us(q));
            put(What::P50Us, 0.5);
            put(What::P99Us, 0.99);
            put(What::P999Us, 0.999);
        }
        Ok(())
    })?;
    Ok(rates)
}

/// Bytes of large bodies for a second of processor time.
pub fn bodies(rig: &mut Rig, args: &Router, who: &[Who], figures: &mut Figures) -> Result<(), String> {
    for (bytes, connections) in LARGE {
        each(rig, args, who, bytes, |rig, under, round| {
            let sample = rig.measure(under, &args.load(Pace::Closed, connections))?;
            figures.put(What::BytesPerCpuS, bytes as u64, under.who, round, bytes as f64 * 1e6 / sample.cpu_us);
            Ok(())
        })?;
    }
    Ok(())
}

/// Half of nginx's maximum at so many connections, or of ours where there is no nginx; measured if it was not yet.
pub fn half_of_most(
    rig: &mut Rig,
    args: &Router,
    who: &[Who],
    figures: &Figures,
    connections: usize,
) -> Result<f64, String> {
    let peer = if who.contains(&Who::Nginx) { Who::Nginx } else { Who::Ours };
    let most = match figures.of(What::PerS, connections as u64, peer) {
        Some(seen) => seen.median,
        None => {
            let mut under = rig.start(peer, SMALL, &args.map_source()?, &[rig.proxy_core])?;
            let sample = rig.measure(&mut under, &args.load(Pace::Closed, connections))?;
            rig.end(under);
            sample.outcome.answers_per_s()
        }
    };
    Ok((most / 2.0).max(1.0).round())
}

/// Each round, each proxy alone, in an order that changes.
fn each(
    rig: &mut Rig,
    args: &Router,
    who: &[Who],
    bytes: usize,
    mut one: impl FnMut(&mut Rig, &mut Under, usize) -> Result<(), String>,
) -> Result<(), String> {
    let map = args.map_source()?;
    for round in 0..args.rounds() {
        for who in order(who, round) {
            let mut under = rig.start(who, bytes, &map, &[rig.proxy_core])?;
            one(rig, &mut under, round)?;
            rig.end(under);
        }
        eprintln!("  round {} of {}", round + 1, args.rounds());
    }
    Ok(())
}

/// `all`, beginning with another one each round.
fn turn<T: Copy>(all: &[T], round: usize) -> impl Iterator<Item = T> + '_ {
    (0..all.len()).map(move |i| all[(i + round) % all.len()])
}
