//! Active checks: how it is found out whether an endpoint can be sent to. `[service.check]`, and `[zones.X.check]` for the
//! routers of another zone.

use super::check::Check;
use super::policy::{HOUR_MS, table};
use serde::Deserialize;
use std::ops::RangeInclusive;
use toml::{Spanned, Value};

/// Bytes of a path or a host: with the rest of the request they stay within one segment.
const TEXT_BYTES_MAX: usize = 1024;

/// How endpoints are checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// From the beginning of a check to that of the next.
    pub every_ms: u64,
    /// For the whole of a check.
    pub timeout_ms: u64,
    /// Good ones in a row that bring an endpoint back.
    pub rise: u32,
    /// Bad ones in a row that take it out.
    pub fall: u32,
    /// Asked in place of the endpoint's own; without TLS and PROXY header then.
    pub port: Option<u16>,
}

/// What is asked in a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// A connection; by TLS where the endpoint is, with its handshake.
    Tcp,
    /// A GET.
    Http {
        /// Of what.
        path: String,
        /// The `host`; `None`: the endpoint's name or address.
        host: Option<String>,
        /// Good answers.
        statuses: Vec<RangeInclusive<u16>>,
    },
}

table! { RawProbe {
    every_ms = 5000, 100..=HOUR_MS;
    timeout_ms = 1000, 1..=60_000;
    rise = 2, 1..=1000;
    fall = 3, 1..=1000;
    port = 0, 0..=65_535;
} kind: Option<String> = None; path: Option<String> = None; host: Option<String> = None; statuses: Option<Vec<Value>> = None; }

impl Check<'_> {
    /// The checks of a service, or of another zone's routers (`peers`): those would take a GET for someone's request.
    pub(super) fn probe(&mut self, raw: Spanned<RawProbe>, peers: bool) -> Probe {
        let at = Spanned::new(raw.span(), ());
        let t = self.ranged(Some(raw), "check", RawProbe::checks);
        let kind = match (t.kind.as_deref(), peers) {
            (Some("tcp"), _) | (None, true) => self.tcp(&at, &t),
            (Some("http") | None, false) => self.http(&at, &t),
            (Some("http"), true) => {
                self.say(&at, "[check] kind = \"http\": routers of another zone are checked by \"tcp\"");
                ProbeKind::Tcp
            }
            (Some(other), _) => {
                self.say(&at, format!("[check] kind = \"{other}\": expected \"http\" or \"tcp\""));
                ProbeKind::Tcp
            }
        };
        Probe {
            kind,
            every_ms: t.every_ms,
            timeout_ms: t.timeout_ms,
            rise: t.rise as u32,
            fall: t.fall as u32,
            port: u16::try_from(t.port).ok().filter(|p| *p != 0),
        }
    }

    fn tcp(&mut self, at: &Spanned<()>, t: &RawProbe) -> ProbeKind {
        for (key, given) in [("path", t.path.is_some()), ("host", t.host.is_some()), ("statuses", t.statuses.is_some())]
        {
            if given {
                self.say(at, format!("[check] {key} has no meaning for a check by \"tcp\""));
            }
        }
        ProbeKind::Tcp
    }

    fn http(&mut self, at: &Spanned<()>, t: &RawProbe) -> ProbeKind {
        let path = t.path.clone().unwrap_or_else(|| "/".into());
        let legal = |text: &str| text.len() <= TEXT_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        if !path.starts_with('/') || !legal(&path) {
            let expected = format!("/ and at most {TEXT_BYTES_MAX} visible characters of ASCII");
            self.say(at, format!("[check] path = {path:?}: expected {expected}"));
        }
        if let Some(host) = t.host.as_ref().filter(|h| h.is_empty() || !legal(h)) {
            self.say(at, format!("[check] host = {host:?}: expected a name, such as api.example.com"));
        }
        let listed = t.statuses.as_deref().map(|list| self.probe_statuses(at, list));
        ProbeKind::Http { path, host: t.host.clone(), statuses: listed.unwrap_or_else(|| vec![200..=399]) }
    }

    /// `204`, or `"200-299"`.
    fn probe_statuses(&mut self, at: &Spanned<()>, list: &[Value]) -> Vec<RangeInclusive<u16>> {
        if list.is_empty() {
            self.say(at, "[check] statuses is empty: no answer would be good");
        }
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| (200..600).contains(n));
        let mut all = vec![];
        for one in list {
            let range = match one {
                Value::Integer(n) => number(&n.to_string()).map(|n| n..=n),
                Value::String(text) => {
                    let (from, to) = text.split_once('-').unwrap_or((text, text));
                    number(from).zip(number(to)).map(|(from, to)| from..=to).filter(|r| !r.is_empty())
                }
                _ => None,
            };
            match range {
                Some(range) => all.push(range),
                None => {
                    self.say(at, format!("[check] statuses has {one}: expected 200 to 599, or such as \"200-399\""))
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const NODE: &str = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n\
        [[service]]\nprefix = \"/a\"\nendpoints = [\"127.0.0.1:1\"]\n";

    fn config(more: &str) -> Result<Config, String> {
        Config::parse("f", &format!("{NODE}{more}\n")).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_is_checked_unless_it_is_asked_for_and_then_by_what_people_expect() {
        assert_eq!(config("").unwrap().services[0].probe, None);
        let kind = ProbeKind::Http { path: "/".into(), host: None, statuses: vec![200..=399] };
        let all = Probe { kind, every_ms: 5000, timeout_ms: 1000, rise: 2, fall: 3, port: None };
        let found = config("[service.check]\n[zones.sh.check]\n").unwrap();
        assert_eq!(found.services[0].probe, Some(all.clone()));
        assert_eq!(found.zones[0].probe, Some(Probe { kind: ProbeKind::Tcp, ..all }));
    }

    #[test]
    fn each_key_reaches_its_place() {
        let text = "[service.check]\npath = \"/up?deep=1\"\nhost = \"api:80\"\nstatuses = [204, \"300-301\"]\nevery_ms = 100\n\
            timeout_ms = 7\nrise = 1\nfall = 9\nport = 81\n";
        let probe = config(text).unwrap().services[0].probe.clone().unwrap();
        let statuses = vec![204..=204, 300..=301];
        let kind = ProbeKind::Http { path: "/up?deep=1".into(), host: Some("api:80".into()), statuses };
        assert_eq!(probe, Probe { kind, every_ms: 100, timeout_ms: 7, rise: 1, fall: 9, port: Some(81) });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_expected() {
        for (more, said) in [
            ("every_ms = 99", "[check] every_ms = 99: expected 100 to 3600000"),
            ("timeout_ms = 0", "[check] timeout_ms = 0: expected 1 to 60000"),
            ("fall = 0", "[check] fall = 0: expected 1 to 1000"),
            ("port = 65536", "[check] port = 65536: expected 0 to 65535"),
            ("kind = \"ping\"", "[check] kind = \"ping\": expected \"http\" or \"tcp\""),
            ("kind = \"tcp\"\npath = \"/\"", "[check] path has no meaning for a check by \"tcp\""),
            ("path = \"up\"", "[check] path = \"up\": expected /"),
            ("path = \"/a b\"", "[check] path = \"/a b\": expected /"),
            ("path = \"/a\\r\\nx: y\"", "expected /"),
            ("host = \"a b\"", "[check] host = \"a b\": expected a name"),
            ("statuses = []", "no answer would be good"),
            ("statuses = [100]", "[check] statuses has 100: expected 200 to 599"),
            ("statuses = [\"400-300\"]", "[check] statuses has \"400-300\": expected"),
            ("interval = 1", "unknown field `interval`"),
            ("\n[zones.sh.check]\nkind = \"http\"", "routers of another zone are checked by \"tcp\""),
        ] {
            let all = config(&format!("[service.check]\n{more}")).unwrap_err();
            assert!(all.contains(said) && all.starts_with("f:1"), "{said:?} not in:\n{all}");
        }
    }
}
