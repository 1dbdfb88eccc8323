//! What the demo proved, as text for people and as one JSON object for programs.

use serde::Serialize;
use std::fmt::Write;

/// The figures; milliseconds unless the name says otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Orders that the driver sent.
    pub orders_sent: u64,
    /// Orders that a router acknowledged: durable in their zone.
    pub orders_acknowledged: u64,
    /// Orders neither acknowledged nor overlapping the outage (from the kill until the survivor owned everything).
    pub failed: u64,
    /// Orders not acknowledged whose life overlapped the outage.
    pub failed_in_outage: u64,
    /// Orders of which nobody can say from outside whether they were placed: their zone died before it answered.
    pub unanswered: u64,
    /// Acknowledged orders that a zone does not hold at the end.
    pub lost: u64,
    /// Orders that a zone holds more than once.
    pub doubled: u64,
    /// Rows of a zone that nobody sent, or whose order was refused.
    pub unasked: u64,
    /// Some of the lost tokens, with the zones that lack them, and of the doubled ones.
    pub examples: Vec<String>,
    /// Both zones hold the same rows and the same conflict ledger.
    pub copies_identical: bool,
    /// Rows in each copy.
    pub rows: u64,
    /// BLAKE3 over all rows and the ledger, of each zone.
    pub digests: Vec<String>,
    /// Was the planned move carried out?
    pub shard_moved: bool,
    /// How long the planned move took, from the first map to the last.
    pub move_ms: f64,
    /// The zone that was killed.
    pub zone_killed: String,
    /// From the kill until the survivor owned every shard.
    pub outage_ms: f64,
    /// Acknowledged records of the killed zone that the survivor did not have when it took over; all in the ledger.
    pub unknown_at_takeover: u64,
    /// From the restart of the killed zone until it owned its shards again.
    pub return_ms: f64,
    /// The longest that a router held a request.
    pub held_ms_max: u64,
    /// Requests that a router held.
    pub held: u64,
    /// From commit in one zone to visible in the other, up to the kill; of the slower direction.
    pub lag_ms_p50: f64,
    /// The 99th percentile of that.
    pub lag_ms_p99: f64,
    /// From the time an order was due to its answer, entered and owned in the same zone, outside the outage.
    pub order_ms_p50: f64,
    /// The 99th percentile of that.
    pub order_ms_p99: f64,
    /// The same for orders that another zone owned.
    pub cross_zone_ms_p50: f64,
    /// The 99th percentile of that.
    pub cross_zone_ms_p99: f64,
    /// Of the acknowledged orders, the share that entered at a router of another zone than their owner's.
    pub cross_zone_share: f64,
}

impl Summary {
    /// Is everything as it must be?
    pub fn proved(&self) -> bool {
        let clean = self.lost + self.doubled + self.failed + self.unasked == 0;
        clean && self.copies_identical && self.shard_moved && self.orders_acknowledged > 0
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers, strings and booleans always serialise")
    }

    /// For people.
    pub fn text(&self, colour: bool) -> String {
        let mut out = String::new();
        let mark = |good: bool| match (good, colour) {
            (true, true) => "\x1b[32mok\x1b[0m  ",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
            (true, false) => "ok  ",
            (false, false) => "FAIL",
        };
        let mut line = |good: bool, text: String| writeln!(out, "  {} {text}", mark(good)).expect("a String takes it");
        line(
            self.lost == 0 && self.orders_acknowledged > 0,
            format!(
                "{} of {} orders acknowledged, {} of them lost",
                self.orders_acknowledged, self.orders_sent, self.lost
            ),
        );
        line(self.doubled + self.unasked == 0, format!("{} doubled, {} that nobody sent", self.doubled, self.unasked));
        for example in &self.examples {
            line(false, format!("  order {example}"));
        }
        line(
            self.failed == 0,
            format!("{} failed; {} more while zone {} was down", self.failed, self.failed_in_outage, self.zone_killed),
        );
        line(
            self.copies_identical,
            format!(
                "copies {}: {} rows, digest {}",
                if self.copies_identical { "identical" } else { "DIFFER" },
                self.rows,
                self.short_digests()
            ),
        );
        line(
            self.shard_moved,
            format!("planned move took {:.0} ms; the longest hold was {} ms", self.move_ms, self.held_ms_max),
        );
        line(
            true,
            format!(
                "zone {} lost: taken over after {:.0} ms, {} records in doubt then, all listed; back {:.0} ms after its restart",
                self.zone_killed, self.outage_ms, self.unknown_at_takeover, self.return_ms
            ),
        );
        writeln!(
            out,
            "\n  order, own zone     p50 {:>6.2} ms   p99 {:>6.2} ms\n  order, other zone   p50 {:>6.2} ms   p99 {:>6.2} ms   \
             ({:.1} % of orders)\n  visible there       p50 {:>6.2} ms   p99 {:>6.2} ms   after commit here",
            self.order_ms_p50, self.order_ms_p99, self.cross_zone_ms_p50, self.cross_zone_ms_p99,
            self.cross_zone_share * 100.0, self.lag_ms_p50, self.lag_ms_p99
        )
        .expect("a String takes it");
        out
    }

    fn short_digests(&self) -> String {
        let mut short: Vec<&str> = self.digests.iter().map(|d| d.get(..12).unwrap_or(d)).collect();
        short.dedup();
        short.join(" / ")
    }
}
