//! Counts orders by outcome and their latencies; what a fault is expected to cost is counted apart from the rest.

use super::report::{Order, Outcome, Report};
use hdrhistogram::Histogram;
use shardmap::Shard;
use std::time::Instant;

/// How many examples of failed orders are named.
const EXAMPLES_MAX: usize = 10;

/// Is this order, of this shard, concerned?
pub type Concerns = Box<dyn Fn(&Order, Option<Shard>) -> bool>;

/// A span of time in which some orders may fail: those under way at any moment of it that it concerns.
pub struct Outage {
    /// From the fault ..
    pub from: Instant,
    /// .. until it was mended, or others stood in; none: to the end.
    pub to: Option<Instant>,
    /// Which orders, with the shard that they belong to.
    pub concerns: Concerns,
}

impl Outage {
    /// Of every order.
    pub fn of_all(from: Instant, to: Instant) -> Outage {
        Outage { from, to: Some(to), concerns: Box::new(|_, _| true) }
    }

    fn excuses(&self, order: &Order, shard: Option<Shard>) -> bool {
        overlaps(order, self.from, self.to) && (self.concerns)(order, shard)
    }
}

/// How orders ended.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Orders that were sent.
    pub sent: u64,
    /// Durable in their zone.
    pub acknowledged: u64,
    /// Not acknowledged, outside of every outage.
    pub failed: u64,
    /// Not acknowledged, in an outage that concerns them.
    pub failed_in_outage: u64,
    /// Of both: nobody can say from outside whether they were placed.
    pub unanswered: u64,
    /// Acknowledged by another zone than the one of the router that they entered by.
    pub crossed: u64,
    /// Latencies in microseconds of acknowledged orders outside of outages, served where they entered ..
    pub own_us: Histogram<u64>,
    /// .. and elsewhere.
    pub cross_us: Histogram<u64>,
    /// The first that failed, with what is known of them.
    pub examples: Vec<String>,
}

impl Tally {
    /// Of everything that the driver knows. `names`: the zones of its routers; `shard_of`: the shard of a place, by its number.
    pub fn of(report: &Report, names: &[&str], outages: &[Outage], shard_of: impl Fn(usize) -> Option<Shard>) -> Tally {
        let mut tally = Tally::default();
        for order in &report.orders {
            let shard = shard_of(order.place);
            let excused = outages.iter().any(|o| o.excuses(order, shard));
            tally.sent += u64::from(order.sent.is_some());
            match order.outcome {
                Outcome::Acknowledged => tally.acknowledged(order, names, excused),
                Outcome::Refused(_) | Outcome::Unknown | Outcome::NotSent => {
                    tally.not_acknowledged(order, shard, excused)
                }
            }
        }
        tally
    }

    fn acknowledged(&mut self, order: &Order, names: &[&str], excused: bool) {
        self.acknowledged += 1;
        let other = order.zone.as_deref() != names.get(order.router).copied();
        self.crossed += u64::from(other);
        let took = order.answered.map(|at| at.duration_since(order.due));
        if let (Some(took), false) = (took, excused) {
            let to = if other { &mut self.cross_us } else { &mut self.own_us };
            to.saturating_record(took.as_micros() as u64);
        }
    }

    fn not_acknowledged(&mut self, order: &Order, shard: Option<Shard>, excused: bool) {
        self.unanswered += u64::from(order.outcome == Outcome::Unknown);
        if excused {
            self.failed_in_outage += 1;
            return;
        }
        self.failed += 1;
        if self.examples.len() < EXAMPLES_MAX {
            let shard = shard.map_or("no shard".into(), |s| format!("shard {s}"));
            let Order { token, outcome, router, .. } = order;
            self.examples.push(format!("{token} of {shard}, which entered by router {router}: {outcome:?}"));
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            sent: 0,
            acknowledged: 0,
            failed: 0,
            failed_in_outage: 0,
            unanswered: 0,
            crossed: 0,
            own_us: histogram(),
            cross_us: histogram(),
            examples: vec![],
        }
    }
}

/// Was the order under way at any moment of the span? One that never ended was, if it was due before the span's end.
pub fn overlaps(order: &Order, from: Instant, to: Option<Instant>) -> bool {
    to.is_none_or(|to| order.due < to) && order.answered.is_none_or(|at| at >= from)
}

/// An empty histogram of latencies in microseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("these bounds are legal")
}

#[cfg(test)]
mod tests {
    use super::super::report::Latencies;
    use super::*;
    use std::time::Duration;

    fn order(base: Instant, due: u64, answered: Option<u64>, outcome: Outcome) -> Order {
        let at = |ms: u64| base + Duration::from_millis(ms);
        Order {
            token: String::new(),
            due: at(due),
            place: due as usize,
            sent: Some(at(due)),
            answered: answered.map(at),
            router: 0,
            zone: Some("bj".into()),
            status: None,
            id: None,
            outcome,
        }
    }

    fn report(orders: Vec<Order>) -> Report {
        let none = || Histogram::new(3).unwrap();
        let latencies =
            Latencies { all: none(), own_zone: none(), cross_zone: none(), by_zone: vec![], by_phase: vec![] };
        Report { orders, latencies }
    }

    #[test]
    fn what_fails_is_excused_only_if_it_was_under_way_during_the_outage() {
        let base = Instant::now();
        let at = |ms: u64| base + Duration::from_millis(ms);
        let refused = Outcome::Refused(503);
        let orders = vec![
            order(base, 10, Some(20), refused),            // over before the kill
            order(base, 90, Some(110), refused),           // under way at the kill
            order(base, 150, Some(160), Outcome::NotSent), // due in the outage
            order(base, 90, None, Outcome::Unknown),       // never answered
            order(base, 201, Some(202), refused),          // after it
            order(base, 250, Some(252), Outcome::Acknowledged),
        ];
        let tally = Tally::of(&report(orders), &["bj", "sh"], &[Outage::of_all(at(100), at(200))], |_| None);
        assert_eq!((tally.failed, tally.failed_in_outage, tally.unanswered, tally.acknowledged), (2, 3, 1, 1));
        assert_eq!((tally.crossed, tally.own_us.len(), tally.examples.len()), (0, 1, 2));
    }

    #[test]
    fn an_outage_excuses_only_the_orders_that_it_concerns_and_may_have_no_end() {
        let base = Instant::now();
        let orders = vec![
            order(base, 10, Some(20), Outcome::Refused(503)),
            order(base, 11, Some(20), Outcome::Refused(503)),
            order(base, 10, Some(4), Outcome::Refused(503)), // answered before it began
        ];
        let outage = Outage {
            from: base + Duration::from_millis(5),
            to: None,
            concerns: Box::new(|_, shard| shard == Some(Shard(10))),
        };
        let tally = Tally::of(&report(orders), &["bj"], &[outage], |place| Some(Shard(place as u16)));
        assert_eq!((tally.failed, tally.failed_in_outage), (2, 1));
        assert!(tally.examples[0].contains("shard 11"), "{:?}", tally.examples);
    }
}
