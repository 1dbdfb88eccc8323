//! What was measured, in text and as JSON.

use super::apply::Applied;
use super::lag::{self, Mark};
use super::maria::SETTINGS;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What had settled by then does not count: the first second of a steady rate.
const SETTLE_MS: f64 = 1000.0;
/// Caught up: less than so much of a second's rows behind.
const BEHIND_S: f64 = 0.1;
const PLOT_ROWS: usize = 30;

/// The lags of one side.
pub struct Follow {
    pub who: &'static str,
    /// Before the cut, in milliseconds, p50 and p99: of appends until durable there, and of commits until visible there.
    pub durable_ms: [Option<f64>; 2],
    pub visible_ms: [Option<f64>; 2],
    /// From the end of the cut until durable, and visible.
    pub caught_up_ms: [Option<f64>; 2],
    pub rows: usize,
    pub wan_bytes: u64,
    pub plot: Vec<String>,
}

impl Follow {
    pub fn of(
        who: &'static str,
        committed: &[Mark],
        visible: &[Mark],
        steady_s: f64,
        healed_ms: f64,
        rows_per_s: f64,
        wan_bytes: u64,
    ) -> Follow {
        let to_visible = lag::lags(committed, visible);
        let (from_ms, to_ms) = (SETTLE_MS.min(steady_s * 500.0), steady_s * 1e3 - 500.0);
        let behind = behind(rows_per_s);
        let rows = committed.last().zip(committed.first()).map_or(0, |(l, f)| l.upto - f.upto) as usize;
        Follow {
            who,
            durable_ms: [None; 2],
            visible_ms: [0.5, 0.99].map(|q| lag::quantile(&to_visible, from_ms, to_ms, q)),
            caught_up_ms: [None, lag::caught_up_ms(committed, visible, healed_ms, behind)],
            rows,
            wan_bytes,
            plot: lag::plot(&to_visible, PLOT_ROWS),
        }
    }

    /// Of the log alone: what it has measured itself, and where it was over time.
    pub fn with_durable(
        mut self,
        ms: [f64; 2],
        committed: &[Mark],
        durable: &[Mark],
        healed_ms: f64,
        behind: u64,
    ) -> Follow {
        self.durable_ms = ms.map(Some);
        self.caught_up_ms[0] = lag::caught_up_ms(committed, durable, healed_ms, behind);
        self
    }

    fn to_json(&self) -> Value {
        json!({"who": self.who, "durable_ms_p50_p99": self.durable_ms, "visible_ms_p50_p99": self.visible_ms,
            "caught_up_ms_durable_visible": self.caught_up_ms, "rows": self.rows, "wan_bytes": self.wan_bytes})
    }
}

/// Rows by which it may be behind and has caught up.
pub fn behind(rows_per_s: f64) -> u64 {
    (rows_per_s * BEHIND_S) as u64
}

pub struct Report {
    each_way_ms: f64,
    conditions: String,
    /// Its figures mean nothing: no target is looked at.
    is_tiny: bool,
    /// By loss in millionths and side: megabits a second, a round each.
    goodput: BTreeMap<(u64, &'static str), Vec<f64>>,
    pub follows: Vec<Follow>,
    pub maria: Option<String>,
    /// By the setting: bytes on the line.
    pub bytes_a_row: Vec<(&'static str, f64)>,
    pub applied: Option<Applied>,
    pub absent: Vec<String>,
    pub link: Value,
}

impl Report {
    pub fn new(each_way_ms: f64, congestion: &str, send_buffer_mib: u32, is_tiny: bool) -> Report {
        let conditions = format!(
            "{each_way_ms} ms each way, {congestion} and send buffers of at most {send_buffer_mib} MiB on all sides"
        );
        let (goodput, follows, absent, bytes_a_row) = (BTreeMap::new(), vec![], vec![], vec![]);
        let (maria, applied, link) = (None, None, Value::Null);
        Report { each_way_ms, conditions, is_tiny, goodput, follows, maria, bytes_a_row, applied, absent, link }
    }

    pub fn put(&mut self, who: &'static str, loss: f64, mbit_per_s: f64) {
        self.goodput.entry(((loss * 1e6) as u64, who)).or_default().push(mbit_per_s);
    }

    fn median(&self, loss: u64, who: &'static str) -> Option<f64> {
        let mut all = self.goodput.get(&(loss, who))?.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// Name, what was seen, the limit, and whether it is one that must be reached instead of kept below.
    fn targets(&self) -> Vec<(String, Option<f64>, f64, bool)> {
        if self.is_tiny {
            return vec![];
        }
        let mut all = vec![];
        let losses: std::collections::BTreeSet<u64> = self.goodput.keys().map(|(loss, _)| *loss).collect();
        for loss in losses {
            let ratio = self.median(loss, "ours").zip(self.median(loss, "iperf3")).map(|(ours, iperf)| ours / iperf);
            all.push((format!("goodput at loss {}, ours to iperf3", loss as f64 / 1e6), ratio, 0.9, true));
        }
        let find = |who| self.follows.iter().find(|f| f.who == who);
        if let Some(ours) = find("ours") {
            all.push(("append to durable there, p50 ms".into(), ours.durable_ms[0], self.each_way_ms + 3.0, false));
            all.push(("append to durable there, p99 ms".into(), ours.durable_ms[1], self.each_way_ms + 10.0, false));
            all.push(("caught up after the cut, ms".into(), ours.caught_up_ms[0], 10_000.0, false));
            if let Some(maria) = find("MariaDB") {
                for (at, name) in ["p50", "p99"].into_iter().enumerate() {
                    let ratio = ours.visible_ms[at].zip(maria.visible_ms[at]).map(|(ours, maria)| ours / maria);
                    all.push((format!("visible there, {name}, ours to MariaDB"), ratio, 1.0, false));
                }
            }
        }
        if let [(_, never), (_, always)] = self.bytes_a_row[..] {
            all.push((
                "bytes on the line without compression to those with it".into(),
                Some(never / always),
                3.0,
                true,
            ));
        }
        if let Some(applied) = &self.applied {
            all.push((
                "applied into SQLite, records a second on one core".into(),
                Some(applied.per_s),
                100_000.0,
                true,
            ));
        }
        all
    }

    pub fn print(&self) {
        println!("{}", self.conditions);
        if self.is_tiny {
            println!("--tiny: everything runs; the figures mean nothing, and no target is looked at");
        }
        self.absent.iter().for_each(|why| println!("{why}"));
        for ((loss, who), all) in &self.goodput {
            let rounds: Vec<String> = all.iter().map(|v| format!("{v:.0}")).collect();
            println!("goodput at loss {}: {who} {} Mb/s", *loss as f64 / 1e6, rounds.join(", "));
        }
        let shown = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.1}"));
        if let Some(version) = &self.maria {
            println!("{version}, both: {}", SETTINGS.join(" "));
        }
        for f in &self.follows {
            println!(
                "{}: {} rows; append to durable there p50 {} p99 {} ms, commit to visible there p50 {} p99 {} ms; caught up after the cut: durable {} \
                 visible {} ms; {} bytes from a to b, {:.0} a row",
                f.who,
                f.rows,
                shown(f.durable_ms[0]),
                shown(f.durable_ms[1]),
                shown(f.visible_ms[0]),
                shown(f.visible_ms[1]),
                shown(f.caught_up_ms[0]),
                shown(f.caught_up_ms[1]),
                f.wan_bytes,
                f.wan_bytes as f64 / f.rows.max(1) as f64
            );
            println!("  commit, and how long until it was visible there at the longest:");
            f.plot.iter().for_each(|line| println!("  {line}"));
        }
        for (compress, bytes) in &self.bytes_a_row {
            println!("compress = \"{compress}\": {bytes:.0} bytes a row from a to b");
        }
        if let Some(a) = &self.applied {
            println!("applied into SQLite: {:.0} records/s, {:.0} a second of processor time", a.per_s, a.per_cpu_s);
        }
        for (name, seen, limit, at_least) in self.targets() {
            let met = seen.map(|v| if at_least { v >= limit } else { v <= limit });
            let verdict = met.map_or("not measured", |met| if met { "met" } else { "MISSED" });
            println!(
                "{name}: {} ({} {limit}): {verdict}",
                seen.map_or("-".into(), |v| format!("{v:.2}")),
                if at_least { ">=" } else { "<=" }
            );
        }
        println!("link: {}", self.link);
    }

    pub fn to_json(&self) -> Value {
        let goodput: Vec<Value> = self
            .goodput
            .iter()
            .map(|((loss, who), all)| json!({"loss": *loss as f64 / 1e6, "who": who, "mbit_per_s": all}))
            .collect();
        let targets: Vec<Value> = self
            .targets()
            .into_iter()
            .map(|(name, seen, limit, at_least)| json!({"name": name, "seen": seen, "limit": limit, "at_least": at_least}))
            .collect();
        let follows: Vec<Value> = self.follows.iter().map(Follow::to_json).collect();
        json!({"conditions": self.conditions, "goodput": goodput, "follows": follows, "targets": targets, "not_run": self.absent,
            "bytes_a_row": self.bytes_a_row.iter().map(|(c, b)| json!({"compress": c, "bytes": b})).collect::<Vec<_>>(),
            "applied": self.applied.as_ref().map(|a| json!({"per_s": a.per_s, "per_cpu_s": a.per_cpu_s})),
            "maria": self.maria, "maria_settings": SETTINGS, "link": self.link})
    }
}
