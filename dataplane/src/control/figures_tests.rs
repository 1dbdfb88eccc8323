//! The page for Prometheus, read by a parser that forgives nothing.

use super::metrics;
use crate::router::{Core, Now, Order, Service, Settings, Shared, Side};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// A sample: its labels, in the order of the page, and its value.
type Sample = (Vec<(String, String)>, f64);

/// What the page says of one name.
#[derive(Default, Debug)]
struct Family {
    kind: String,
    /// By full name, suffix included.
    samples: Vec<(String, Sample)>,
}

fn is_name(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b':';
    !text.is_empty() && first(text.as_bytes()[0]) && text.bytes().all(|b| first(b) || b.is_ascii_digit())
}

/// `name{k="v",..} value`.
fn sample(line: &str) -> (String, Sample) {
    let name_end = line.find(['{', ' ']).expect("a sample has a value");
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = vec![];
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (key, after) = rest.split_once("=\"").expect("a label has a quoted value");
            assert!(is_name(key) && !key.contains(':'), "{key:?} is no label: {line}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().expect("a label's value ends") {
                    (_, '\\') => match chars.next().expect("something is escaped").1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => panic!("\\{c} is no escape: {line}"),
                    },
                    (at, '"') => break at,
                    (_, c) => value.push(c),
                }
            };
            labels.push((key.to_string(), value));
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("labels end");
    }
    let value = rest.strip_prefix(' ').expect("one blank before the value");
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{value:?} is no number: {line}"));
    assert!(value.is_finite() && value >= 0.0, "{line}");
    (name.to_string(), (labels, value))
}

/// The families of a page; HELP, TYPE and samples stand together and in this order, and no series comes twice.
fn families(page: &str) -> BTreeMap<String, Family> {
    assert!(page.ends_with('\n'));
    let (mut all, mut seen) = (BTreeMap::<String, Family>::new(), HashSet::new());
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").unwrap_or_else(|| panic!("expected HELP: {line}"));
        let (name, help) = help.split_once(' ').expect("a help text");
        assert!(is_name(name) && !help.is_empty(), "{line}");
        let kind = lines.next().and_then(|l| l.strip_prefix(&format!("# TYPE {name} "))).expect("TYPE follows HELP");
        let mut family = Family { kind: kind.to_string(), samples: vec![] };
        while let Some(line) = lines.next_if(|l| !l.starts_with('#')) {
            let (full, (labels, value)) = sample(line);
            let suffix = full.strip_prefix(name).unwrap_or_else(|| panic!("{full} stands below {name}"));
            let legal: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(legal.contains(&suffix), "{line}");
            assert!(seen.insert((full.clone(), labels.clone())), "twice: {line}");
            family.samples.push((full, (labels, value)));
        }
        assert!(!family.samples.is_empty(), "{name} has no sample");
        assert!(all.insert(name.to_string(), family).is_none(), "{name} is described twice");
    }
    all
}

fn check(name: &str, family: &Family) {
    match family.kind.as_str() {
        "counter" => assert!(name.ends_with("_total"), "{name} is a counter"),
        "gauge" | "untyped" => assert!(!name.ends_with("_total"), "{name} is no counter"),
        "histogram" => check_histogram(name, family),
        other => panic!("{name} is a {other}"),
    }
    let unit = ["_ms", "_us", "_ns", "_milliseconds", "_microseconds", "_kib"].iter().find(|u| name.contains(*u));
    assert!(unit.is_none(), "{name}: not a base unit");
}

/// Suffix, bound, value.
type Point = (String, f64, f64);

fn check_histogram(name: &str, family: &Family) {
    let mut series: HashMap<_, Vec<Point>> = HashMap::new();
    for (full, (labels, value)) in &family.samples {
        let le = labels.iter().find(|(k, _)| k == "le").map_or(f64::NAN, |(_, v)| match v.as_str() {
            "+Inf" => f64::INFINITY,
            v => v.parse().expect("a bound is a number"),
        });
        let others: Vec<_> = labels.iter().filter(|(k, _)| k != "le").cloned().collect();
        series.entry(others).or_default().push((full.strip_prefix(name).unwrap().to_string(), le, *value));
    }
    for (labels, samples) in series {
        let buckets: Vec<_> = samples.iter().filter(|(suffix, ..)| suffix == "_bucket").collect();
        assert!(buckets.windows(2).all(|w| w[0].1 < w[1].1 && w[0].2 <= w[1].2), "{name} {labels:?}: {buckets:?}");
        let last = buckets.last().expect("a histogram has buckets");
        let count = samples.iter().find(|(suffix, ..)| suffix == "_count").expect("a histogram has a count");
        assert!(last.1.is_infinite() && last.2 == count.2, "{name} {labels:?}: +Inf is {}, count {}", last.2, count.2);
        assert_eq!(samples.iter().filter(|(suffix, ..)| suffix == "_sum").count(), 1);
    }
}

/// A core that has answered one request with 404, and shows it.
fn shown() -> Arc<Shared> {
    let prefix = "/odd\"\\name\n/";
    let settings =
        Arc::new(Settings { services: vec![Service::new(prefix, &[])], map_lookup: false, ..Settings::default() });
    let shared = Arc::new(Shared::new(2));
    for number in 0..2 {
        let mut core = Core::new(settings.clone());
        let mut now = Now { ms: 1, us: 1000, wall_ms: 1 };
        let client = core.on_accept(Side::Client, now).unwrap();
        core.on_bytes(client, b"GET /nowhere HTTP/1.1\r\nhost: h\r\n\r\n", now);
        while let Some(order) = core.next_order() {
            if let Order::Send(id) = order {
                let out = core.take_out(id);
                now.us += 300;
                core.on_sent(id, out, true, now);
            }
        }
        shared.show_settings(number, &settings, core.figures());
        shared.publish(number, core.counts());
    }
    shared
}

#[test]
fn the_page_is_what_prometheus_expects_to_the_letter() {
    let page = metrics(&shown(), Some(&super::access::Figures::default()));
    let all = families(&page);
    all.iter().for_each(|(name, family)| check(name, family));
    let value = |name: &str, of: &[(&str, &str)]| {
        let of: Vec<_> = of.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let family = all.values().find_map(|f| f.samples.iter().find(|(n, (l, _))| n == name && *l == of));
        family.unwrap_or_else(|| panic!("{name} {of:?} not in:\n{page}")).1.1
    };
    assert_eq!(value("ezone_requests_total", &[("service", "none"), ("status", "404")]), 2.0);
    assert_eq!(value("ezone_refused_requests_total", &[("status", "404")]), 2.0);
    assert_eq!(value("ezone_request_seconds_sum", &[("service", "none")]), 0.0006);
    assert_eq!(value("ezone_request_seconds_bucket", &[("service", "none"), ("le", "0.0005")]), 2.0);
    assert_eq!(value("ezone_router_own_seconds_count", &[("service", "/odd\"\\name\n/")]), 0.0);
    assert_eq!(value("ezone_connections_accepted_total", &[("core", "1")]), 1.0);
    assert_eq!(value("ezone_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(value("process_start_time_seconds", &[]) > 1.6e9 && value("process_open_fds", &[]) >= 3.0);
}

#[test]
fn all_buckets_are_given_to_those_who_compare_quantiles() {
    let all = super::histograms(&shown());
    let own = &all["ezone_router_own_seconds"]["none"];
    assert_eq!((own["count"].as_u64(), own["sum_us"].as_u64()), (Some(2), Some(600)));
    assert_eq!(own["buckets"], serde_json::json!([[303, 2]]));
    assert_eq!(own["p99_us"], 303);
}
