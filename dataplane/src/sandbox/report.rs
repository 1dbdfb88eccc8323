//! What became of each order, and how long the acknowledged ones took.

use hdrhistogram::Histogram;
use std::time::Instant;

const LATENCY_US_MAX: u64 = 120_000_000;

/// What is known of an order at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The answer says that it is durable.
    Acknowledged,
    /// The answer has this status: it was surely not done.
    Refused(u16),
    /// Sent, and nobody can tell.
    Unknown,
    /// No byte of it left.
    NotSent,
}

/// One order.
#[derive(Clone, Debug)]
pub struct Order {
    /// Unique, and part of the body: what the proof counts.
    pub token: String,
    /// When it should have been sent.
    pub due: Instant,
    /// Where it comes from: the number of the place in `places()`.
    pub place: usize,
    /// When it was.
    pub sent: Option<Instant>,
    /// When its answer had arrived.
    pub answered: Option<Instant>,
    /// The router that it entered by.
    pub router: usize,
    /// The zone that served it.
    pub zone: Option<String>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The id that it got.
    pub id: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Latencies of acknowledged orders from their due time, in microseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// Of all.
    pub all: Histogram<u64>,
    /// Served by the zone of the router that they entered by.
    pub own_zone: Histogram<u64>,
    /// Served by another.
    pub cross_zone: Histogram<u64>,
    /// By the serving zone, in the order of the routers.
    pub by_zone: Vec<(String, Histogram<u64>)>,
    /// By the phase in which they were answered, in the order of first use.
    pub by_phase: Vec<(String, Histogram<u64>)>,
}

/// What happened since the last snapshot.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Second {
    /// Acknowledged orders a second.
    pub orders_per_s: f64,
    /// Answered with a refusal.
    pub refused: u64,
    /// Outcome unknown.
    pub unknown: u64,
    /// Not sent.
    pub not_sent: u64,
    /// p99 of each serving zone in microseconds, 0 without orders.
    pub p99_us: Vec<(String, u64)>,
    /// The share of acknowledged orders that another zone than the entry's served, 0..=1.
    pub cross_zone_share: f64,
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Every order, in the order of their ends.
    pub orders: Vec<Order>,
    /// Latencies of the acknowledged ones.
    pub latencies: Latencies,
}

impl Report {
    /// How many ended in a way that `which` accepts.
    pub fn count(&self, which: impl Fn(Outcome) -> bool) -> usize {
        self.orders.iter().filter(|o| which(o.outcome)).count()
    }
}

/// What the driver writes down while it runs.
pub(super) struct Books {
    orders: Vec<Order>,
    latencies: Latencies,
    phase: usize,
    second: Second,
    second_by_zone: Vec<Histogram<u64>>,
    second_began: Instant,
    cross: u64,
    acknowledged: u64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("1 us to 120 s with 3 digits is a histogram")
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl Books {
    /// For routers of these zones.
    pub(super) fn new(zones: impl Iterator<Item = String>) -> Books {
        let zones: Vec<_> = zones.map(|zone| (zone, histogram())).collect();
        Books {
            orders: Vec::new(),
            second_by_zone: zones.iter().map(|_| histogram()).collect(),
            latencies: Latencies {
                all: histogram(),
                own_zone: histogram(),
                cross_zone: histogram(),
                by_zone: zones,
                by_phase: vec![(String::new(), histogram())],
            },
            phase: 0,
            second: Second::default(),
            second_began: Instant::now(),
            cross: 0,
            acknowledged: 0,
        }
    }

    /// An order has ended.
    pub(super) fn enter(&mut self, order: Order) {
        match order.outcome {
            Outcome::Acknowledged => self.acknowledged(&order),
            Outcome::Refused(_) => self.second.refused += 1,
            Outcome::Unknown => self.second.unknown += 1,
            Outcome::NotSent => self.second.not_sent += 1,
        }
        self.orders.push(order);
    }

    fn acknowledged(&mut self, order: &Order) {
        let Some(answered) = order.answered else { return };
        let us = (answered.saturating_duration_since(order.due).as_micros() as u64).max(1);
        let l = &mut self.latencies;
        let entry = order.router;
        let served = order.zone.as_ref().map_or(Some(entry), |zone| l.by_zone.iter().position(|z| z.0 == *zone));
        let own = served.is_some_and(|z| l.by_zone[z].0 == l.by_zone[entry].0);
        l.all.saturating_record(us);
        if own {
            l.own_zone.saturating_record(us)
        } else {
            l.cross_zone.saturating_record(us)
        }
        l.by_phase[self.phase].1.saturating_record(us);
        if let Some(z) = served {
            l.by_zone[z].1.saturating_record(us);
            self.second_by_zone[z].saturating_record(us);
        }
        self.acknowledged += 1;
        self.cross += u64::from(!own);
    }

    /// What happened since the last one.
    pub(super) fn snapshot(&mut self) -> Second {
        let mut second = std::mem::take(&mut self.second);
        let span = self.second_began.elapsed().as_secs_f64().max(1e-3);
        second.orders_per_s = self.acknowledged as f64 / span;
        second.cross_zone_share = share(self.cross, self.acknowledged);
        let p99 = |(z, h): (&(String, _), &Histogram<u64>)| (z.0.clone(), h.value_at_quantile(0.99));
        second.p99_us = self.latencies.by_zone.iter().zip(&self.second_by_zone).map(p99).collect();
        self.second_by_zone.iter_mut().for_each(|h| h.reset());
        (self.second_began, self.acknowledged, self.cross) = (Instant::now(), 0, 0);
        second
    }

    /// Answers from now on count for this phase.
    pub(super) fn set_phase(&mut self, phase: &str) {
        let phases = &mut self.latencies.by_phase;
        let known = phases.iter().position(|p| p.0 == phase);
        self.phase = known.unwrap_or(phases.len());
        if known.is_none() {
            phases.push((phase.into(), histogram()));
        }
    }

    /// Hands everything over.
    pub(super) fn close(&mut self) -> Report {
        Report { orders: std::mem::take(&mut self.orders), latencies: self.latencies.clone() }
    }
}
