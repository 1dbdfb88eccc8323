//! What a reload may change, and what it may not: pure comparison of two configurations.
//!
//! A key that is not listed here takes effect by a reload: it reaches the cores in their settings. Whoever adds a key that is
//! read only at the start lists it in `FIXED`, or a reload would pass over it in silence.

use crate::config::Config;
use crate::router::Side;
use std::net::SocketAddr;

/// How a change can be brought about that a reload cannot make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    /// A successor that takes the listeners over reads it.
    Upgrade,
    /// The log, or what is on disk, goes by it.
    Restart,
}

type Shown = fn(&Config) -> String;

const FIXED: &[(&str, Needs, Shown)] = &[
    ("[node] zone", Needs::Restart, |c| format!("{:?}", c.node.zone)),
    ("[node] cluster", Needs::Restart, |c| format!("{:?}", c.node.cluster)),
    ("[node] data_dir", Needs::Restart, |c| format!("{:?}", c.node.data_dir)),
    ("[map]", Needs::Upgrade, |c| format!("{:?}", c.map)),
    ("[router]", Needs::Restart, |c| c.router.is_some().to_string()),
    ("[router] admin", Needs::Upgrade, |c| format!("{:?}", c.router.as_ref().and_then(|r| r.admin))),
    ("[layout] mode", Needs::Restart, |c| format!("{:?}", c.layout.said.mode).to_lowercase()),
    ("[router] cores", Needs::Upgrade, |c| format!("{:?}", c.layout.said.router)),
    ("[access_log]", Needs::Upgrade, |c| format!("{:?}", c.access_log)),
    ("[log]", Needs::Restart, |c| c.log.is_some().to_string()),
    ("[log] listen", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.listen))),
    ("[log] admin", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.admin))),
    ("[log] cores", Needs::Restart, |c| format!("{:?}", c.layout.said.log)),
    ("[log] streams", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.streams))),
    ("[log] segment_mib", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.segment_bytes >> 20))),
    ("[log] keep_mib", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.keep_bytes >> 20))),
    ("[log] peers_until", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.peers_until))),
    ("[log] scrub_mib_per_s", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.scrub_bytes_per_s >> 20))),
    ("[log] scrub_every_h", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.scrub_every_h))),
    ("[log] congestion", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.congestion.clone()))),
    ("[log] compress", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.compress))),
    ("[log] window_mib", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.window_bytes >> 20))),
    ("[log] allow_plain_links", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.plain_links))),
    ("[log] start_alone", Needs::Restart, |c| format!("{:?}", c.log.as_ref().map(|l| l.start_alone))),
    ("[zones] limits", Needs::Restart, |c| format!("{:?}", limits(c))),
    ("[zones] link", Needs::Restart, |c| format!("{:?}", links(c))),
];

/// How fast the log ships to zones that have a limit; it reads that at its start. A router may well get to know another zone meanwhile.
fn limits(c: &Config) -> Vec<(&str, String)> {
    let limited = c.log.iter().flat_map(|_| &c.zones).filter(|z| !z.limits.is_empty());
    limited.map(|z| (z.name.as_str(), format!("{:?}", z.limits))).collect()
}

/// How the other zones' logs are reached, by zone; the log reads it at its start.
fn links(c: &Config) -> Vec<(&str, SocketAddr)> {
    c.log.iter().flat_map(|_| &c.zones).filter_map(|z| Some((z.name.as_str(), z.link?))).collect()
}

/// Every changed key that a reload cannot change, with what to do; nothing: it can.
pub fn refused(old: &Config, new: &Config) -> Vec<String> {
    let changed = FIXED.iter().filter(|(_, _, show)| show(old) != show(new));
    let say = |(key, needs, show): &(&str, Needs, Shown)| {
        let how = match needs {
            Needs::Upgrade => "an upgrade (SIGUSR2 or POST /upgrade) takes it without losing a connection",
            Needs::Restart => "restart the node for it",
        };
        format!("{key} was {} and is now {}: a reload cannot change it; {how}", plain(show(old)), plain(show(new)))
    };
    changed.map(say).collect()
}

/// `Some("x")` is how Rust says it.
fn plain(debug: String) -> String {
    match debug.strip_prefix("Some(").and_then(|d| d.strip_suffix(')')) {
        Some(inner) => inner.into(),
        None if debug == "None" => "not there".into(),
        None => debug,
    }
}

/// Where a router listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The key that says so.
    pub key: &'static str,
    /// The address.
    pub at: SocketAddr,
    /// For whom.
    pub side: Side,
}

/// Everything that its router listens at.
pub fn listened(config: &Config) -> Vec<Place> {
    config.listens().into_iter().map(|(key, at, side)| Place { key, at, side }).collect()
}

/// What `new` listens at and `old` does not.
pub fn added(old: &Config, new: &Config) -> Vec<Place> {
    let had = listened(old);
    listened(new).into_iter().filter(|l| !had.contains(l)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[node]\nzone = \"bj\"\ndata_dir = \"/d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n\
        [router]\nlisten = [\"127.0.0.1:8080\"]\nadmin = \"127.0.0.1:8082\"\ncores = [0]\n\
        [log]\nlisten = \"127.0.0.1:8090\"\nadmin = \"127.0.0.1:8092\"\ncores = [0]\n\
        [zones.sh]\nrouter = \"127.0.0.1:9081\"\nlink = \"127.0.0.1:9090\"\n\
        [[service]]\nprefix = \"/\"\nendpoints = [\"127.0.0.1:3000\"]\n";

    fn config(from: &str, to: &str) -> Config {
        assert!(TEXT.contains(from));
        Config::parse("f.toml", &TEXT.replace(from, to)).unwrap()
    }

    fn check(from: &str, to: &str, expected: &[&str]) {
        let found = refused(&config("bj", "bj"), &config(from, to));
        assert_eq!(found.len(), expected.len(), "{from} -> {to}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn a_reload_changes_services_limits_peers_and_listeners() {
        check("3000", "3001", &[]);
        check("9081", "9082", &[]);
        check("8080\"]", "8080\", \"127.0.0.1:8085\"]\npeer_listen = [\"127.0.0.1:8086\"]", &[]);
        check("[[service]]", "[limits]\nidle_ms_max = 5\n[[service]]", &[]);
    }

    #[test]
    fn what_a_reload_cannot_change_is_refused_by_name_with_what_to_do() {
        check("\"bj\"", "\"gz\"", &["[node] zone was \"bj\" and is now \"gz\": a reload cannot change it; restart"]);
        check("/d", "/e", &["[node] data_dir was \"/d\""]);
        check(
            "8082",
            "8083",
            &["[router] admin was 127.0.0.1:8082 and is now 127.0.0.1:8083: a reload cannot change it; an upgrade"],
        );
        check("8090", "8091", &["[log] listen"]);
        check("9090", "9091", &["[zones] link"]);
        check("[log]", "[log]\nstreams = 5", &["[log] streams was 4 and is now 5"]);
        check(
            "[router]",
            "[layout]\nmode = \"shared\"\n[router]",
            &["[layout] mode was auto and is now shared: a reload"],
        );
        let gone = "[router] cores was [0] and is now not there: a reload cannot change it; an upgrade";
        check("8082\"\ncores = [0]", "8082\"", &[gone]);
        check(
            "8092\"\ncores = [0]",
            "8092\"",
            &["[log] cores was [0] and is now not there: a reload cannot change it; res"],
        );
        check("[log]", "[log]\nsegment_mib = 5", &["[log] segment_mib"]);
        let both = refused(&config("bj", "bj"), &config("\"bj\"\ndata_dir = \"/d\"", "\"gz\"\ndata_dir = \"/e\""));
        assert_eq!(both.len(), 2, "all of them together");
    }

    #[test]
    fn a_machine_that_has_changed_is_no_reason_to_refuse_a_reload() {
        let parse = |cpus: usize| {
            let cpu = |id| crate::config::Cpu { id, core: id, package: 0, node: 0 };
            let machine = crate::config::Machine { cpus: (0..cpus).map(cpu).collect(), quota: None };
            Config::parse_for(&machine, "f.toml", &TEXT.replace("cores = [0]", "")).unwrap()
        };
        let (old, mut new) = (parse(8), parse(2));
        assert!(new.router.as_ref().unwrap().cores != old.router.as_ref().unwrap().cores);
        assert!(refused(&old, &new).is_empty());
        new.placed_like(&old);
        assert_eq!(new.router.unwrap().cores, old.router.unwrap().cores);
        assert_eq!((new.log.unwrap().cores, new.layout), (old.log.unwrap().cores, old.layout));
    }

    #[test]
    fn listeners_are_told_apart_by_address_and_side() {
        let (old, new) =
            (config("bj", "bj"), config("127.0.0.1:8080\"]", "127.0.0.1:8081\"]\npeer_listen = [\"127.0.0.1:8080\"]"));
        assert_eq!(added(&old, &new).len(), 2);
        let lost = Place { key: "listen", at: "127.0.0.1:8080".parse().unwrap(), side: Side::Client };
        assert_eq!(added(&new, &old), [lost]);
    }
}
