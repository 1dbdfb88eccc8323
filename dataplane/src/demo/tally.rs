//! Counts orders by outcome and their latencies, the outage apart from the rest.

use super::NAMES;
use super::summary::Summary;
use crate::sandbox::report::{Order, Outcome, Report};
use hdrhistogram::Histogram;
use std::time::Instant;

/// Fills in what the driver knows. `outage`: from the kill until the survivor owned everything.
pub fn count(report: &Report, outage: Option<(Instant, Instant)>, into: &mut Summary) {
    let (mut own, mut cross, mut crossed) = (histogram(), histogram(), 0);
    for order in &report.orders {
        let in_outage = outage.is_some_and(|o| overlaps(order, o));
        into.orders_sent += u64::from(order.sent.is_some());
        match order.outcome {
            Outcome::Acknowledged => {
                into.orders_acknowledged += 1;
                let other = order.zone.as_deref() != NAMES.get(order.router).copied();
                crossed += u64::from(other);
                let took = order.answered.map(|at| at.duration_since(order.due));
                if let (Some(took), false) = (took, in_outage) {
                    let to = if other { &mut cross } else { &mut own };
                    to.saturating_record(took.as_micros() as u64);
                }
            }
            Outcome::Refused(_) | Outcome::Unknown | Outcome::NotSent => {
                into.unanswered += u64::from(order.outcome == Outcome::Unknown);
                if in_outage {
                    into.failed_in_outage += 1;
                } else {
                    into.failed += 1;
                }
            }
        }
    }
    let ms = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
    (into.order_ms_p50, into.order_ms_p99) = (ms(&own, 0.5), ms(&own, 0.99));
    (into.cross_zone_ms_p50, into.cross_zone_ms_p99) = (ms(&cross, 0.5), ms(&cross, 0.99));
    into.cross_zone_share = crossed as f64 / into.orders_acknowledged.max(1) as f64;
}

/// Was the order under way at any moment of the outage? One that never ended was, if it was due before the outage's end.
fn overlaps(order: &Order, (from, to): (Instant, Instant)) -> bool {
    order.due < to && order.answered.is_none_or(|at| at >= from)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("these bounds are legal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::report::Latencies;
    use std::time::Duration;

    fn order(base: Instant, due: u64, answered: Option<u64>, outcome: Outcome) -> Order {
        let at = |ms: u64| base + Duration::from_millis(ms);
        Order {
            token: String::new(),
            due: at(due),
            sent: Some(at(due)),
            answered: answered.map(at),
            router: 0,
            zone: Some("bj".into()),
            status: None,
            id: None,
            outcome,
        }
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
        let latencies = Latencies {
            all: histogram(),
            own_zone: histogram(),
            cross_zone: histogram(),
            by_zone: vec![],
            by_phase: vec![],
        };
        let mut s = Summary::default();
        count(&Report { orders, latencies }, Some((at(100), at(200))), &mut s);
        assert_eq!((s.failed, s.failed_in_outage, s.unanswered, s.orders_acknowledged), (2, 3, 1, 1));
        assert!((1.9..2.1).contains(&s.order_ms_p50), "{}", s.order_ms_p50);
    }
}
