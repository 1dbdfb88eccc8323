//! The resolver's driver with answers that the test gives; and the system's, for the one name that needs no network.

use super::*;
use std::net::IpAddr;

type Answers = Arc<Mutex<HashMap<String, Answer>>>;

fn ips(list: &str) -> Answer {
    Ok(list.split_whitespace().map(|ip| ip.parse::<IpAddr>().unwrap()).collect())
}

/// Answers as `answers` say; whoever is not among them waits for ever.
fn given(answers: &Answers) -> Lookup {
    let answers = answers.clone();
    Arc::new(move |name: Name| {
        let answer = answers.lock().unwrap().get(&name.host).cloned();
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => pending().await,
            }
        })
    })
}

fn config(endpoints: &str, more: &str) -> Config {
    let text = format!(
        "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n\
         [dns]\nevery_ms = 100\nwait_ms_max = 60000\n[[service]]\nprefix = \"/a\"\nendpoints = [{endpoints}]\n{more}\n"
    );
    Config::parse("f", &text).unwrap()
}

fn run<T>(body: impl Future<Output = T>) -> T {
    let runtime = crate::control::runtime().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), body).await.expect("within a minute") })
}

fn endpoints(config: &Config, live: &mut crate::control::assemble::Live) -> Vec<(String, u32, Option<String>)> {
    let map = concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml");
    let map = crate::control::maps::from_file(map.as_ref()).unwrap();
    let settings = crate::control::assemble::settings(config, config.router.as_ref().unwrap(), &map, live).unwrap();
    let shown = |e: &crate::router::Endpoint| (e.addr.to_string(), e.weight, e.name.as_deref().map(str::to_owned));
    settings.services[0].endpoints.iter().map(shown).collect()
}

#[test]
fn each_address_of_a_name_becomes_an_endpoint_once_and_goes_when_the_answer_has_it_no_more() {
    let answers = Answers::default();
    answers.lock().unwrap().insert("api".into(), ips("::1 10.0.0.2 10.0.0.1"));
    answers.lock().unwrap().insert("other".into(), ips("10.0.0.2 10.0.0.3"));
    let config = config("\"10.0.0.1:80\", { addr = \"api:80\", weight = 3 }, \"other:80\"", "");
    let mut live = crate::control::assemble::Live::new(1);
    live.resolver = Resolver::new(given(&answers));
    run(async {
        live.resolver.renew(&config);
        assert!(live.resolver.learn(config.names(), config.dns.wait_ms_max).await.is_empty());
        let (api, other) = (Some("api:80".to_owned()), Some("other:80".to_owned()));
        let own = ("10.0.0.1:80".to_owned(), 1, None);
        let named = |at: &str, weight, name: &Option<String>| (at.to_owned(), weight, name.clone());
        let all =
            [own.clone(), named("10.0.0.2:80", 3, &api), named("[::1]:80", 3, &api), named("10.0.0.3:80", 1, &other)];
        assert_eq!(endpoints(&config, &mut live), all, "the first that names an address says how it is used");
        while let Some(told) = live.resolver.told.pop_front() {
            assert!(tell(&told));
        }
        answers.lock().unwrap().insert("api".into(), ips("10.0.0.9"));
        while !tell(&live.resolver.next().await) {}
        let all = [
            own.clone(),
            named("10.0.0.9:80", 3, &api),
            named("10.0.0.2:80", 1, &other),
            named("10.0.0.3:80", 1, &other),
        ];
        assert_eq!(endpoints(&config, &mut live), all);
        answers.lock().unwrap().insert("api".into(), Err("no such name".into()));
        assert!(!tell(&live.resolver.next().await), "what it had stays");
        assert_eq!(endpoints(&config, &mut live), all);
        let known = live.resolver.directory().lock().unwrap()[&Name { host: "api".into(), port: 80 }].clone();
        assert_eq!((known.failing.as_deref(), known.failed > 0), (Some("no such name"), true));
    });
}

#[test]
fn who_waits_for_new_names_hears_which_are_missing_and_loses_no_change_of_the_others() {
    let answers = Answers::default();
    answers.lock().unwrap().insert("old".into(), ips("10.0.0.1"));
    answers.lock().unwrap().insert("bad".into(), Err("no such name".into()));
    let before = config("\"old:80\"", "");
    let after = config("\"old:80\", \"bad:80\", \"silent:80\"", "");
    let mut resolver = Resolver::new(given(&answers));
    run(async {
        resolver.renew(&before);
        resolver.learn(before.names(), 60_000).await;
        while resolver.told.pop_front().is_some() {}
        answers.lock().unwrap().insert("old".into(), ips("10.0.0.2"));
        let new = after.names().difference(&before.names()).cloned().collect();
        let missing = resolver.learn(new, 1000).await;
        assert_eq!(missing, ["bad:80 has no address: no such name", "silent:80 has no address: no answer yet"]);
        let mut told = vec![];
        while !told.iter().any(|t| matches!(t, Told::Changed(n, ..) if n.host == "old")) {
            told.push(resolver.next().await);
        }
        resolver.renew(&before);
        let known: Vec<_> = resolver.directory().lock().unwrap().keys().map(|n| n.host.clone()).collect();
        assert_eq!(known, ["old"], "a refused file leaves nothing behind");
    });
}

#[test]
fn tls_expects_the_certificate_of_the_name_and_a_check_asks_for_it() {
    let answers = Answers::default();
    answers.lock().unwrap().insert("api.internal.".into(), ips("10.0.0.1"));
    let ca = std::env::temp_dir().join(format!("ezone-dns-ca-{}.pem", std::process::id()));
    let now_s = crate::control::wall_ms() / 1000;
    let made = crate::tls::authority::Made::authority("ezone", crate::tls::authority::Period::days(now_s, 30)).unwrap();
    std::fs::write(&ca, made.certificate).unwrap();
    let more = format!("tls = {{ ca = \"{}\" }}\ncheck = {{}}", ca.display());
    let config = config("\"10.0.0.2:443\", \"api.internal.:443\"", &more);
    let mut live = crate::control::assemble::Live::new(1);
    live.resolver = Resolver::new(given(&answers));
    run(async {
        live.resolver.renew(&config);
        live.resolver.learn(config.names(), 60_000).await;
    });
    let map = concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml");
    let map = crate::control::maps::from_file(map.as_ref()).unwrap();
    let settings = crate::control::assemble::settings(&config, config.router.as_ref().unwrap(), &map, &mut live);
    std::fs::remove_file(&ca).unwrap();
    let settings = settings.unwrap();
    let names: Vec<_> = settings.services[0]
        .endpoints
        .iter()
        .map(|e| settings.tls.outgoing(e.tls.unwrap()).unwrap().name.as_ref().map(|n| n.to_str().into_owned()))
        .collect();
    assert_eq!(names, [None, Some("api.internal".to_owned())]);
    let plan = crate::control::probe::plan(&config, &settings);
    let hosts: Vec<_> = plan.iter().map(|(_, w)| w.host.as_str()).collect();
    assert_eq!(hosts, ["10.0.0.2", "api.internal"]);
}

#[test]
fn the_system_knows_this_host_and_no_invalid_name() {
    let lookup = system();
    let here = run(lookup(Name { host: "localhost".into(), port: 80 })).unwrap();
    assert!(!here.is_empty() && here.iter().all(IpAddr::is_loopback), "{here:?}");
    // RFC 6761 §6.4: nobody has this name.
    assert!(run(lookup(Name { host: "nobody.invalid".into(), port: 80 })).is_err());
}
