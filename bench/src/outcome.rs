//! Counts what a run saw, and says it to people and to programs.

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies above this are counted as this: no run is longer.
const LATENCY_NS_MAX: u64 = 7_200_000_000_000;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Connect,
    Reset,
    Timeout,
    Parse,
    /// The answer, or a part of it, was another request's.
    Mixed,
    /// It was due, and every connection was busy until the run was over.
    Unsent,
}

impl Fault {
    pub const ALL: [Fault; 6] =
        [Fault::Connect, Fault::Reset, Fault::Timeout, Fault::Parse, Fault::Mixed, Fault::Unsent];

    pub fn name(self) -> &'static str {
        match self {
            Fault::Connect => "connect",
            Fault::Reset => "reset",
            Fault::Timeout => "timeout",
            Fault::Parse => "parse",
            Fault::Mixed => "mixed",
            Fault::Unsent => "unsent",
        }
    }
}

/// What a run may see and still be fine, as `502,503,reset`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tolerated {
    pub faults: Vec<Fault>,
    pub status: Vec<u16>,
}

impl Tolerated {
    /// A mix-up is never tolerated.
    pub fn read(words: &[String]) -> Result<Tolerated, String> {
        let mut all = Tolerated::default();
        for word in words {
            let fault = Fault::ALL.into_iter().find(|f| f.name() == word && *f != Fault::Mixed);
            match (fault, word.parse::<u16>()) {
                (Some(fault), _) => all.faults.push(fault),
                (None, Ok(status @ 400..=599)) => all.status.push(status),
                (None, _) => {
                    return Err(format!("`{word}`: expected 400 to 599, connect, reset, timeout, parse or unsent"));
                }
            }
        }
        Ok(all)
    }
}

/// What one run saw. Times in nanoseconds.
#[derive(Debug)]
pub struct Outcome {
    duration: Duration,
    /// From the end of the warm-up to the last answer, if that came after the schedule's end.
    pub until_last: Duration,
    pub requests: u64,
    pub answers: u64,
    pub status: BTreeMap<u16, u64>,
    /// Each kind of error: how often, and what the first one said.
    pub errors: BTreeMap<Fault, (u64, String)>,
    /// From due to whole answer. Timeouts and unsent requests enter with what they had waited: a lower bound.
    pub latency: Histogram<u64>,
    /// From sent to whole answer.
    pub service: Histogram<u64>,
    /// From due, or a connection becoming free if that was later, to sent: the driver's own fault.
    pub lateness: Histogram<u64>,
    /// Requests that were due while every connection was busy: the server's fault.
    pub queued: u64,
    pub closed_idle: u64,
    /// Idle connections that were held through the run, and those that still served at its end.
    pub held: u64,
    pub held_alive: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub interrupted: bool,
}

impl Outcome {
    pub fn new(duration: Duration) -> Outcome {
        let histogram = || {
            let bounds = Histogram::new_with_bounds(1000, LATENCY_NS_MAX, 3);
            bounds.expect("the bounds and three digits are valid constants")
        };
        Outcome {
            duration,
            until_last: Duration::ZERO,
            requests: 0,
            answers: 0,
            status: BTreeMap::new(),
            errors: BTreeMap::new(),
            latency: histogram(),
            service: histogram(),
            lateness: histogram(),
            queued: 0,
            closed_idle: 0,
            held: 0,
            held_alive: 0,
            bytes_read: 0,
            bytes_written: 0,
            interrupted: false,
        }
    }

    /// The run ends here, `counted` after its warm-up: the rates are of that time.
    pub fn cut_short(&mut self, counted: Duration) {
        self.interrupted = true;
        self.duration = self.duration.min(counted).max(Duration::from_millis(1));
    }

    /// Every request that was to be sent has its answer: the rates are of the time until the last one.
    pub fn all_sent(&mut self) {
        self.duration = self.duration.min(self.until_last).max(Duration::from_millis(1));
    }

    pub fn sent(&mut self, due_ns: u64, sent_ns: u64, free_ns: u64) {
        self.requests += 1;
        self.queued += u64::from(free_ns > due_ns);
        self.lateness.saturating_record(sent_ns.saturating_sub(due_ns.max(free_ns)));
    }

    pub fn answered(&mut self, status: u16, latency_ns: u64, service_ns: u64) {
        self.answers += 1;
        *self.status.entry(status).or_default() += 1;
        self.latency.saturating_record(latency_ns);
        self.service.saturating_record(service_ns);
    }

    pub fn failed(&mut self, fault: Fault, detail: &str, waited_ns: u64) {
        let entry = self.errors.entry(fault).or_insert_with(|| (0, detail.to_string()));
        entry.0 += 1;
        if matches!(fault, Fault::Timeout | Fault::Unsent) {
            self.latency.saturating_record(waited_ns);
        }
    }

    pub fn count(&self, fault: Fault) -> u64 {
        self.errors.get(&fault).map_or(0, |e| e.0)
    }

    /// No error of any kind, no status of 400 or above, and at least one answer.
    pub fn is_fine(&self) -> bool {
        self.is_fine_but_for(&Tolerated::default())
    }

    /// As `is_fine`, but some faults and statuses are no errors.
    pub fn is_fine_but_for(&self, tolerated: &Tolerated) -> bool {
        let errors = self.errors.keys().all(|f| tolerated.faults.contains(f));
        let status = self.status.keys().all(|s| *s < 400 || tolerated.status.contains(s));
        errors && status && self.held == self.held_alive && self.answers > 0 && !self.interrupted
    }

    pub fn answers_per_s(&self) -> f64 {
        self.answers as f64 / self.duration.max(self.until_last).as_secs_f64()
    }

    /// `rate`: what was offered; `None` for a closed loop.
    pub fn to_json(&self, rate: Option<f64>) -> Value {
        let errors: serde_json::Map<_, _> =
            Fault::ALL.iter().map(|f| (f.name().to_string(), json!(self.count(*f)))).collect();
        json!({
            "loop": if rate.is_some() { "open" } else { "closed" },
            "offered_per_s": rate,
            "achieved_per_s": self.answers_per_s(),
            "seconds": self.duration.as_secs_f64(),
            "requests": self.requests,
            "answers": self.answers,
            "status": self.status.iter().map(|(s, n)| (s.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
            "errors": errors,
            "latency_us": percentiles(&self.latency),
            "service_us": percentiles(&self.service),
            "lateness_us": percentiles(&self.lateness),
            "queued": self.queued,
            "closed_idle": self.closed_idle,
            "held": self.held,
            "held_alive": self.held_alive,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "interrupted": self.interrupted,
        })
    }

    pub fn to_text(&self, rate: Option<f64>) -> String {
        let mut text = match rate {
            Some(rate) => format!("offered   {rate:.1} requests/s, open loop: latency counts from the time due\n"),
            None => "offered   as fast as answers come: closed loop, so latencies are service times\n".into(),
        };
        text += &format!(
            "achieved  {:.1} answers/s, {} answers to {} sent\n",
            self.answers_per_s(),
            self.answers,
            self.requests
        );
        text += &format!("latency   {}\n", line(&self.latency));
        if rate.is_some() {
            text += &format!("service   {} (from sent)\n", line(&self.service));
            text += &format!("lateness  {} (the driver's own)\n", line(&self.lateness));
            text += &format!("queued    {} were due while every connection was busy\n", self.queued);
        }
        for (status, n) in &self.status {
            text += &format!("status    {status}: {n}\n");
        }
        for (fault, (n, first)) in &self.errors {
            text += &format!("error     {}: {n} (first: {first})\n", fault.name());
        }
        if self.held > 0 {
            text += &format!("held      {} idle connections, {} still served at the end\n", self.held, self.held_alive);
        }
        text += &format!("bytes     {} read, {} written\n", self.bytes_read, self.bytes_written);
        if self.interrupted {
            text += "interrupted: the rates are of a run cut short\n";
        }
        text
    }
}

const POINTS: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];

fn percentiles(histogram: &Histogram<u64>) -> Value {
    let us = |ns: u64| json!(ns as f64 / 1000.0);
    let mut map: serde_json::Map<_, _> =
        POINTS.iter().map(|(name, q)| (name.to_string(), us(histogram.value_at_quantile(*q)))).collect();
    map.insert("max".into(), us(histogram.max()));
    Value::Object(map)
}

fn line(histogram: &Histogram<u64>) -> String {
    let mut text = String::new();
    for (name, q) in POINTS {
        text += &format!("{name} {:.1} us  ", histogram.value_at_quantile(q) as f64 / 1000.0);
    }
    text + &format!("max {:.1} us", histogram.max() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tolerated_is_no_error_and_a_mix_up_always_is_one() {
        let read = |text: &str| Tolerated::read(&text.split(',').map(String::from).collect::<Vec<_>>());
        let tolerated = read("503,reset").unwrap();
        let mut seen = Outcome::new(Duration::from_secs(1));
        seen.answered(503, 1, 1);
        seen.failed(Fault::Reset, "", 0);
        assert!(seen.is_fine_but_for(&tolerated) && !seen.is_fine());
        seen.failed(Fault::Mixed, "", 0);
        assert!(!seen.is_fine_but_for(&tolerated));
        assert!(read("mixed").is_err() && read("200").is_err() && read("resets").is_err());
    }
}
