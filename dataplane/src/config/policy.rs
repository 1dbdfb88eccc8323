//! How a service's endpoints are treated: one table for each part, one line for each key with its default and what it may be.

use super::check::Check;
use crate::router::policy::{self, Balance, HashBy, Statuses};
use crate::router::{Rate, ShardRates};
use serde::Deserialize;
use shardmap::Shard;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use toml::Spanned;

macro_rules! table {
    ($name:ident { $($key:ident = $default:expr, $range:expr;)* } $($word:ident: $type:ty = $first:expr;)*) => {
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name { $($key: u64,)* $($word: $type,)* }

        impl Default for $name {
            fn default() -> $name {
                $name { $($key: $default,)* $($word: $first,)* }
            }
        }

        impl $name {
            fn checks(&self) -> Vec<(&'static str, u64, std::ops::RangeInclusive<u64>)> {
                vec![$((stringify!($key), self.$key, $range)),*]
            }
        }
    };
}

pub(super) use table;

pub(super) const HOUR_MS: u64 = 3_600_000;

table! { RawBalance {
    slow_start_ms = 10_000, 0..=HOUR_MS;
    panic_percent = 25, 0..=100;
} by: String = "least_request".into(); hash_by: String = "shard".into(); }

table! { RawPlaces {
    requests_max = 0, 0..=1 << 20;
    queue_max = 1000, 0..=1 << 20;
    queue_ms_max = 1000, 1..=60_000;
} }

table! { RawPool {
    connections_max = 0, 0..=1 << 20;
    idle_max = 0, 0..=1 << 20;
    idle_ms_max = 0, 0..=HOUR_MS;
    requests_max = 0, 0..=1 << 40;
} }

table! { RawRetry {
    attempts_max = 2, 1..=10;
    percent = 20, 0..=100;
    count_min = 10, 0..=10_000;
    try_ms_max = 0, 0..=HOUR_MS;
} on: Vec<String> = vec!["connect".into(), "reset".into()]; statuses: Vec<u16> = vec![]; }

table! { RawEject {
    failures = 5, 0..=1_000_000;
    success_points = 30, 0..=100;
    latency_factor = 4, 0..=1000;
    latency_floor_ms = 100, 0..=HOUR_MS;
    samples_min = 10, 1..=60_000;
    interval_ms = 5000, 100..=HOUR_MS;
    eject_ms = 10_000, 1..=HOUR_MS;
    eject_ms_max = 300_000, 1..=24 * HOUR_MS;
    percent_max = 50, 0..=100;
} statuses: Vec<u16> = vec![502, 503, 504]; }

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRate {
    per_s: u32,
    burst: u32,
}

/// The tables of a service that say how it is treated.
#[derive(Default)]
pub(super) struct RawPolicy {
    pub balance: Option<Spanned<RawBalance>>,
    pub places: Option<Spanned<RawPlaces>>,
    pub pool: Option<Spanned<RawPool>>,
    pub retry: Option<Spanned<RawRetry>>,
    pub eject: Option<Spanned<RawEject>>,
    pub rate: Option<Spanned<RawRate>>,
}

/// `[rates]`: requests a second of each shard.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRates {
    each_shard: Option<Spanned<RawRate>>,
    shard: BTreeMap<Spanned<String>, Spanned<RawRate>>,
}

/// A value that was checked to lie in its range, in the type that the router takes.
fn cut<T: TryFrom<u64> + Default>(n: u64) -> T {
    n.try_into().unwrap_or_default()
}

impl Check<'_> {
    /// The policy, with what is wrong in it reported.
    pub(super) fn policy(&mut self, raw: RawPolicy) -> policy::Policy {
        let (balance, slow) = self.balance(raw.balance);
        let places = self.ranged(raw.places, "places", RawPlaces::checks);
        let pool = self.ranged(raw.pool, "pool", RawPool::checks);
        policy::Policy {
            balance,
            slow_start_ms: slow.slow_start_ms,
            panic_percent: cut(slow.panic_percent),
            requests_max: cut(places.requests_max),
            queue_max: cut(places.queue_max),
            queue_ms_max: places.queue_ms_max,
            rate: raw.rate.map(|r| self.rate(&r)),
            pool: policy::Pooling {
                connections_max: cut(pool.connections_max),
                idle_max: cut(pool.idle_max),
                idle_ms_max: pool.idle_ms_max,
                requests_max: pool.requests_max,
            },
            retry: self.retry(raw.retry),
            eject: self.eject(raw.eject),
        }
    }

    fn balance(&mut self, raw: Option<Spanned<RawBalance>>) -> (Balance, RawBalance) {
        let at = raw.as_ref().map_or(0..0, Spanned::span);
        let at = Spanned::new(at, ());
        let t = self.ranged(raw, "balance", RawBalance::checks);
        let by = match t.hash_by.as_str() {
            "shard" => HashBy::Shard,
            "tag" => HashBy::Tag,
            other => {
                self.say(&at, format!("[balance] hash_by = \"{other}\": expected \"shard\" or \"tag\""));
                HashBy::Shard
            }
        };
        let balance = match t.by.as_str() {
            "least_request" => Balance::LeastRequest,
            "round_robin" => Balance::RoundRobin,
            "hash" => Balance::Hash(by),
            other => {
                let expected = "expected \"least_request\", \"round_robin\" or \"hash\"";
                self.say(&at, format!("[balance] by = \"{other}\": {expected}"));
                Balance::LeastRequest
            }
        };
        (balance, t)
    }

    fn retry(&mut self, raw: Option<Spanned<RawRetry>>) -> policy::Retry {
        let at = Spanned::new(raw.as_ref().map_or(0..0, Spanned::span), ());
        let t = self.ranged(raw, "retry", RawRetry::checks);
        for other in t.on.iter().filter(|on| !["connect", "reset"].contains(&on.as_str())) {
            self.say(&at, format!("[retry] on = \"{other}\": expected \"connect\" or \"reset\""));
        }
        policy::Retry {
            attempts_max: cut(t.attempts_max),
            percent: cut(t.percent),
            count_min: cut(t.count_min),
            on_connect: t.on.iter().any(|on| on == "connect"),
            on_reset: t.on.iter().any(|on| on == "reset"),
            statuses: self.statuses(&at, "retry", &t.statuses),
            try_ms_max: t.try_ms_max,
        }
    }

    fn eject(&mut self, raw: Option<Spanned<RawEject>>) -> policy::Eject {
        let at = Spanned::new(raw.as_ref().map_or(0..0, Spanned::span), ());
        let t = self.ranged(raw, "eject", RawEject::checks);
        if t.eject_ms > t.eject_ms_max {
            self.say(&at, format!("[eject] eject_ms = {} is more than eject_ms_max = {}", t.eject_ms, t.eject_ms_max));
        }
        policy::Eject {
            failures: cut(t.failures),
            statuses: self.statuses(&at, "eject", &t.statuses),
            success_points: cut(t.success_points),
            latency_factor: cut(t.latency_factor),
            latency_floor_ms: t.latency_floor_ms,
            samples_min: cut(t.samples_min),
            interval_ms: t.interval_ms,
            eject_ms: t.eject_ms,
            eject_ms_max: t.eject_ms_max,
            percent_max: cut(t.percent_max),
        }
    }

    fn statuses(&mut self, at: &Spanned<()>, table: &str, list: &[u16]) -> Statuses {
        for other in list.iter().filter(|s| !(500..600).contains(*s)) {
            self.say(at, format!("[{table}] statuses has {other}: expected 500 to 599"));
        }
        Statuses::of(list)
    }

    fn rate(&mut self, raw: &Spanned<RawRate>) -> Rate {
        let RawRate { per_s, burst } = *raw.get_ref();
        if !(1..=100_000_000).contains(&per_s) || !(1..=100_000_000).contains(&burst) {
            self.say(raw, format!("a rate of {per_s} a second, {burst} at once: expected 1 to 100000000 each"));
        }
        Rate { per_s, burst }
    }

    /// The rates of shards.
    pub(super) fn shard_rates(&mut self, raw: RawRates) -> ShardRates {
        let each = raw.each_shard.map(|r| self.rate(&r));
        let mut own = vec![];
        for (name, rate) in raw.shard {
            match name.get_ref().parse() {
                Ok(shard) => own.push((Shard(shard), self.rate(&rate))),
                Err(_) => self.say(&name, format!("[rates.shard] {}: expected a shard's number", name.get_ref())),
            }
        }
        ShardRates { each, own }
    }

    /// The table, or its defaults; what lies beyond its range is reported.
    pub(super) fn ranged<T: Default>(
        &mut self,
        raw: Option<Spanned<T>>,
        table: &str,
        checks: impl Fn(&T) -> Vec<(&'static str, u64, RangeInclusive<u64>)>,
    ) -> T {
        let Some(raw) = raw else { return T::default() };
        for (key, seen, range) in checks(raw.get_ref()) {
            if !range.contains(&seen) {
                self.say(&raw, format!("[{table}] {key} = {seen}: expected {} to {}", range.start(), range.end()));
            }
        }
        raw.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const NODE: &str = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n";
    const SERVICE: &str = "[[service]]\nprefix = \"/a\"\nendpoints = [\"127.0.0.1:1\"]\n";

    fn config(more: &str) -> Result<Config, String> {
        Config::parse("f", &format!("{NODE}{SERVICE}{more}")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_router() {
        let tables = "[service.balance]\n[service.places]\n[service.pool]\n[service.retry]\n[service.eject]\n";
        for more in ["", tables] {
            assert_eq!(config(more).unwrap().services[0].policy, policy::Policy::default());
        }
    }

    #[test]
    fn each_key_reaches_its_place() {
        let c = config(
            "balance = { by = \"hash\", hash_by = \"tag\", slow_start_ms = 0 }\nplaces = { requests_max = 7 }\n\
             retry = { on = [\"connect\"], statuses = [503], try_ms_max = 250 }\neject = { statuses = [500], percent_max = 10 }\n\
             rate = { per_s = 5, burst = 6 }\npool = { connections_max = 3, requests_max = 9 }\n\
             [rates]\neach_shard = { per_s = 1, burst = 2 }\nshard.17 = { per_s = 3, burst = 4 }\n",
        )
        .unwrap();
        let p = c.services[0].policy;
        assert_eq!((p.balance, p.slow_start_ms, p.requests_max), (Balance::Hash(HashBy::Tag), 0, 7));
        assert!(p.retry.on_connect && !p.retry.on_reset && p.retry.statuses.has(503) && p.retry.try_ms_max == 250);
        assert!(p.eject.statuses.has(500) && !p.eject.statuses.has(502) && p.eject.percent_max == 10);
        assert_eq!((p.rate, p.pool.connections_max, p.pool.requests_max), (Some(Rate { per_s: 5, burst: 6 }), 3, 9));
        let own = vec![(Shard(17), Rate { per_s: 3, burst: 4 })];
        assert_eq!(c.shard_rates, ShardRates { each: Some(Rate { per_s: 1, burst: 2 }), own });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_expected() {
        for (more, said) in [
            ("balance = { by = \"best\" }", "[balance] by = \"best\": expected"),
            ("balance = { by = \"hash\", hash_by = \"ip\" }", "hash_by = \"ip\": expected"),
            ("places = { queue_ms_max = 0 }", "[places] queue_ms_max = 0: expected 1 to 60000"),
            ("retry = { attempts_max = 0 }", "[retry] attempts_max = 0: expected 1 to 10"),
            ("retry = { on = [\"never\"] }", "[retry] on = \"never\": expected"),
            ("eject = { statuses = [404] }", "[eject] statuses has 404"),
            ("eject = { eject_ms = 9, eject_ms_max = 8 }", "eject_ms = 9 is more than"),
            ("rate = { per_s = 0, burst = 1 }", "a rate of 0 a second"),
            ("eject = { failure = 1 }", "unknown field `failure`"),
            ("[rates.shard]\nx = { per_s = 1, burst = 1 }", "x: expected a shard's number"),
        ] {
            let all = config(&format!("{more}\n")).unwrap_err();
            assert!(all.contains(said) && all.starts_with("f:1"), "{said:?} not in:\n{all}");
        }
    }
}
