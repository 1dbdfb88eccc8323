//! `[dns]`: how names in endpoints become addresses.

use super::check::Check;
use super::policy::{HOUR_MS, table};
use serde::Deserialize;
use std::net::IpAddr;
use toml::Spanned;

/// How names are resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dns {
    /// From one answer to the next question.
    pub every_ms: u64,
    /// How long a start or a reload waits for names that it does not know yet.
    pub wait_ms_max: u64,
    /// Of one name; those beyond are left out.
    pub addresses_max: usize,
    /// Which addresses are taken.
    pub family: Family,
}

/// Which addresses are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// All.
    Any,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Is it taken?
    pub fn takes(self, ip: IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
        }
    }
}

table! { RawDns {
    every_ms = 10_000, 100..=HOUR_MS;
    wait_ms_max = 2000, 0..=60_000;
    addresses_max = 64, 1..=256;
} family: String = "any".into(); }

impl Check<'_> {
    pub(super) fn dns(&mut self, raw: Option<Spanned<RawDns>>) -> Dns {
        let at = Spanned::new(raw.as_ref().map_or(0..0, Spanned::span), ());
        let t = self.ranged(raw, "dns", RawDns::checks);
        let family = match t.family.as_str() {
            "any" => Family::Any,
            "ipv4" => Family::V4,
            "ipv6" => Family::V6,
            other => {
                self.say(&at, format!("[dns] family = \"{other}\": expected \"any\", \"ipv4\" or \"ipv6\""));
                Family::Any
            }
        };
        Dns { every_ms: t.every_ms, wait_ms_max: t.wait_ms_max, addresses_max: t.addresses_max as usize, family }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(more: &str) -> Result<Config, String> {
        let node = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n";
        Config::parse("f", &format!("{node}{more}")).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_each_key() {
        let plain = Dns { every_ms: 10_000, wait_ms_max: 2000, addresses_max: 64, family: Family::Any };
        assert_eq!((config("").unwrap().dns, config("[dns]\n").unwrap().dns), (plain, plain));
        let text = "[dns]\nevery_ms = 500\nwait_ms_max = 0\naddresses_max = 3\nfamily = \"ipv6\"\n";
        let all = Dns { every_ms: 500, wait_ms_max: 0, addresses_max: 3, family: Family::V6 };
        assert_eq!(config(text).unwrap().dns, all);
        for (more, said) in [
            ("every_ms = 1", "f:8: [dns] every_ms = 1: expected 100 to 3600000"),
            ("addresses_max = 0", "[dns] addresses_max = 0: expected 1 to 256"),
            ("family = \"6\"", "[dns] family = \"6\": expected"),
            ("ttl = 1", "unknown field `ttl`"),
        ] {
            let all = config(&format!("[dns]\n{more}\n")).unwrap_err();
            assert!(all.contains(said), "{said:?} not in:\n{all}");
        }
    }
}
