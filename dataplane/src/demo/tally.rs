//! What the driver knows, as the summary shows it.

use super::NAMES;
use super::summary::Summary;
use crate::sandbox::report::Report;
use crate::sandbox::tally::{Outage, Tally};
use hdrhistogram::Histogram;
use std::time::Instant;

/// Fills in what the driver knows. `outage`: from the kill until the survivor owned everything.
pub fn count(report: &Report, outage: Option<(Instant, Instant)>, into: &mut Summary) {
    let outages: Vec<Outage> = outage.into_iter().map(|(from, to)| Outage::of_all(from, to)).collect();
    let tally = Tally::of(report, &NAMES, &outages, |_| None);
    (into.orders_sent, into.orders_acknowledged) = (tally.sent, tally.acknowledged);
    (into.failed, into.failed_in_outage, into.unanswered) = (tally.failed, tally.failed_in_outage, tally.unanswered);
    let ms = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
    (into.order_ms_p50, into.order_ms_p99) = (ms(&tally.own_us, 0.5), ms(&tally.own_us, 0.99));
    (into.cross_zone_ms_p50, into.cross_zone_ms_p99) = (ms(&tally.cross_us, 0.5), ms(&tally.cross_us, 0.99));
    into.cross_zone_share = tally.crossed as f64 / tally.acknowledged.max(1) as f64;
}
