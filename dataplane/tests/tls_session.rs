//! The TLS filter against itself: client and server sessions with the bytes between them in the test's hands.

mod tls_kit;

use dataplane::tls::authority::{Made, Period};
use dataplane::tls::{Identity, Makers, Reason, Session};
use rustls::ClientConnection;
use rustls::version::TLS12;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tls_kit::{Carried, DAY_S, Kit, Nobody, carry, changed, feed, now_s, pair, sessions, zone};

/// A pair that has done its handshake.
fn established(kit: &Kit) -> (Session, Session) {
    let (mut client, mut server) = sessions(&kit.client(), &kit.listener());
    assert!(carry(&mut client, &mut server, usize::MAX).both());
    (client, server)
}

/// Seeded numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    eprintln!("SEED={seed}");
    seed
}

#[test]
fn a_handshake_survives_every_split_of_its_bytes() {
    let kit = Kit::new();
    let (client, server) = (kit.client(), kit.listener());
    for piece in [1, 2, 3, 5, 7, 64, 1000] {
        let (mut c, mut s) = sessions(&client, &server);
        assert!(carry(&mut c, &mut s, piece).both(), "in pieces of {piece}");
    }
    // Each flight cut in two at each of its bytes.
    let (mut flight, mut plain) = (vec![], vec![]);
    Session::outgoing(&client, tls_kit::HERE).unwrap().take(&mut flight);
    for cut in 0..=flight.len() {
        let (mut c, mut s) = sessions(&client, &server);
        let (mut hello, mut sum) = (vec![], Ok(Default::default()));
        c.take(&mut hello);
        let (first, second) = hello.split_at(cut.min(hello.len()));
        feed(&mut s, first, usize::MAX, &mut plain, &mut sum);
        feed(&mut s, second, usize::MAX, &mut plain, &mut sum);
        let mut answer = vec![];
        s.take(&mut answer);
        let (first, second) = answer.split_at(cut.min(answer.len()));
        let mut sum = Ok(Default::default());
        feed(&mut c, first, usize::MAX, &mut plain, &mut sum);
        feed(&mut c, second, usize::MAX, &mut plain, &mut sum);
        assert!(sum.unwrap().established && c.is_established(), "cut at {cut}");
        assert!(carry(&mut c, &mut s, usize::MAX).server.unwrap().established, "cut at {cut}");
    }
}

#[test]
fn bodies_of_a_mebibyte_pass_whole_both_ways_in_pieces_of_any_size() {
    let kit = Kit::new();
    let mut dice = Dice(seed());
    let body: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut client, mut server) = established(&kit);
    for upwards in [true, false] {
        let (from, to) = if upwards { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let (mut plain, mut sealed, mut at) = (vec![], vec![], 0);
        while at < body.len() {
            let n = (1 + dice.below(100_000)).min(body.len() - at);
            sealed.clear();
            from.seal(&body[at..at + n], &mut sealed);
            at += n;
            assert!(sealed.len() < n + n / 100 + 64, "{} bytes for {n}", sealed.len());
            let mut rest = &sealed[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + dice.below(20_000)).min(rest.len()));
                let before = plain.len();
                to.on_bytes(piece, &mut plain).unwrap();
                assert!(plain.len() - before <= piece.len() + 16 * 1024, "no more than a record above what came");
                rest = after;
            }
        }
        assert!(plain == body, "{} bytes of {}", plain.len(), body.len());
    }
}

#[test]
fn an_end_that_was_said_is_told_from_a_cut() {
    let kit = Kit::new();
    let (mut client, mut server) = established(&kit);
    let mut sealed = vec![];
    server.seal(b"all there is", &mut sealed);
    let mut plain = vec![];
    assert!(!client.on_bytes(&sealed, &mut plain).unwrap().ended && !client.has_ended(), "a cut here is a cut");
    server.end();
    sealed.clear();
    server.take(&mut sealed);
    for byte in &sealed[..sealed.len() - 1] {
        assert!(!client.on_bytes(&[*byte], &mut plain).unwrap().ended, "half an alert is a cut");
    }
    assert!(client.on_bytes(&sealed[sealed.len() - 1..], &mut plain).unwrap().ended && client.has_ended());
    assert_eq!(plain, b"all there is");
    // What comes after it is nobody's.
    assert_eq!(client.on_bytes(b"GET / HTTP/1.1\r\n\r\n", &mut plain), Ok(Default::default()));
    assert_eq!(plain.len(), 12);
}

#[test]
fn a_byte_changed_anywhere_is_a_fault_and_gives_no_plaintext() {
    let kit = Kit::new();
    let mut dice = Dice(seed());
    for _ in 0..60 {
        let (mut client, mut server) = established(&kit);
        let (mut sealed, mut plain) = (vec![], vec![]);
        client.seal(b"POST /pay HTTP/1.1\r\n\r\n", &mut sealed);
        // RFC 8446 §5.1: a record's version, bytes 1 and 2, is ignored.
        let at = [0].into_iter().chain(3..sealed.len()).nth(dice.below(sealed.len() - 2)).unwrap();
        sealed[at] ^= 1 << dice.below(8);
        // A length made longer waits for bytes that the next record brings.
        let fault = (0..20).find_map(|_| {
            let fault = server.on_bytes(&sealed, &mut plain).err();
            sealed.resize(4096, 0);
            fault
        });
        let fault = fault.unwrap_or_else(|| panic!("byte {at} was changed and nobody saw it"));
        assert!(matches!(fault.reason, Reason::Broken | Reason::NotTls), "byte {at}: {fault}");
        assert_eq!(plain, b"", "byte {at}");
    }
}

#[test]
fn garbage_is_a_fault_never_a_panic_and_never_kept() {
    let kit = Kit::new();
    let mut dice = Dice(seed());
    let config = kit.listener();
    for round in 0..400 {
        let mut server = Session::incoming(&config).unwrap();
        let (mut plain, mut fed, mut fault) = (vec![], 0, None);
        // Half of the rounds look like the start of a record.
        let mut next = (round % 2 == 0).then_some([22u8, 3, 1]);
        while fault.is_none() && fed < 200_000 {
            let mut bytes: Vec<u8> = next.take().map_or(vec![], Vec::from);
            bytes.extend((0..1 + dice.below(3000)).map(|_| dice.roll() as u8));
            fed += bytes.len();
            fault = server.on_bytes(&bytes, &mut plain).err();
        }
        assert!(fault.is_some() && fed <= 64 * 1024, "{fed} bytes of garbage were taken");
        assert_eq!(plain, b"");
    }
}

#[test]
fn plain_http_at_a_tls_port_is_told_so() {
    let kit = Kit::new();
    let mut server = Session::incoming(&kit.listener()).unwrap();
    let (mut plain, mut out) = (vec![], vec![]);
    let fault = server.on_bytes(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", &mut plain).unwrap_err();
    assert_eq!(fault.reason, Reason::NotTls);
    server.take(&mut out);
    assert!(out.starts_with(b"HTTP/1.1 400 ") && plain.is_empty());
}

#[test]
fn a_handshake_is_bounded_in_bytes() {
    let kit = Kit::new();
    let mut server = Session::incoming(&kit.listener()).unwrap();
    let mut plain = vec![];
    // A client hello that says it is 60,000 bytes long, in records of 16 KiB.
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.extend([1, 0, 0xea, 0x60]);
    record.resize(5 + 0x4000, 0);
    let fault = (0..4).find_map(|_| {
        let fault = server.on_bytes(&record, &mut plain).err();
        record[5..].fill(0);
        fault
    });
    assert_eq!(fault.unwrap().reason, Reason::TooLong);
}

fn reasons(c: &Carried) -> (Option<Reason>, Option<Reason>) {
    (c.client.as_ref().err().map(|f| f.reason), c.server.as_ref().err().map(|f| f.reason))
}

#[test]
fn routers_of_a_cluster_trust_each_other_and_an_edge() {
    let kit = Kit::new();
    let (bj, sh, edge) = (kit.member(zone("bj")), kit.member(zone("sh")), kit.member(Identity::Edge));
    for (from, to) in [(&bj, &sh), (&sh, &bj), (&edge, &bj), (&bj, &bj)] {
        let (mut c, mut s) = kit.peers(from, to, &to.own);
        assert!(carry(&mut c, &mut s, usize::MAX).both());
        assert_eq!(s.version().unwrap(), "TLSv1_3");
        // A second connection proves its certificate afresh.
        let how = kit.makers.towards(from, to.own.clone()).unwrap();
        let listener = kit.makers.peers(to).unwrap();
        for _ in 0..2 {
            let (mut c, mut s) = sessions(&how, &listener);
            assert!(carry(&mut c, &mut s, usize::MAX).both());
            assert!(!c.is_resumed() && !s.is_resumed());
        }
    }
}

#[test]
fn a_certificate_of_another_zone_is_refused_and_said() {
    let kit = Kit::new();
    let (bj, sh) = (kit.member(zone("bj")), kit.member(zone("sh")));
    let (mut c, mut s) = kit.peers(&bj, &sh, &zone("gz"));
    let carried = carry(&mut c, &mut s, usize::MAX);
    assert_eq!(reasons(&carried), (Some(Reason::WrongIdentity), Some(Reason::Refused)));
    assert_eq!(carried.client.unwrap_err().text, "the certificate is of zone sh, expected zone gz");
    assert!(!c.is_established() && !s.is_established());
}

#[test]
fn a_zone_that_we_do_not_know_is_refused_and_said() {
    let kit = Kit::new();
    let (gz, sh) = (kit.member(zone("gz")), kit.member(zone("sh")));
    let (mut c, mut s) = kit.peers(&gz, &sh, &zone("sh"));
    let carried = carry(&mut c, &mut s, usize::MAX);
    assert_eq!(carried.server.clone().unwrap_err().reason, Reason::WrongIdentity);
    let said = carried.server.unwrap_err().text;
    assert!(
        said.starts_with("the certificate is of zone gz, which") && said.contains("zone bj, zone sh, an edge"),
        "{said}"
    );
    assert!(!s.is_established());
}

#[test]
fn whoever_shows_no_certificate_or_a_strangers_is_no_peer() {
    let kit = Kit::new();
    let sh = kit.member(zone("sh"));
    let listener = kit.makers.peers(&sh).unwrap();
    // None. The server's certificate has no DNS name, so such a client would have to believe anything.
    let towards = |member| kit.makers.towards(member, zone("sh")).unwrap();
    let bj = kit.member(zone("bj"));
    let naked = changed(&towards(&bj), |c| c.client_auth_cert_resolver = Arc::new(Nobody));
    // Another authority's, which even calls itself by the same name.
    let other = Made::authority("ezone", Period::days(now_s(), 10)).unwrap();
    let strange = kit.member_by(zone("bj"), &other);
    // Our authority's, but a server's; and a plain client's.
    let mut server = kit.member(zone("bj"));
    server.pair = kit.server_pair(&["bj.example.com"]);
    let mut client = kit.member(zone("bj"));
    client.pair = pair(&kit.ca.client("spiffe.example.com", Period::days(now_s(), 1)).unwrap());
    for (how, reason) in [
        (naked, Reason::NoCertificate),
        (towards(&strange), Reason::Untrusted),
        (towards(&server), Reason::Untrusted),
        (towards(&client), Reason::WrongIdentity),
    ] {
        let (mut c, mut s) = sessions(&how, &listener);
        let carried = carry(&mut c, &mut s, usize::MAX);
        let fault = carried.server.unwrap_err();
        assert_eq!(fault.reason, reason, "{fault}");
        assert!(!s.is_established(), "{fault}");
    }
    // The other way round: a router that shows a stranger's certificate is not sent a byte.
    let (mut c, mut s) = sessions(&towards(&bj), &kit.makers.peers(&strange).unwrap());
    let carried = carry(&mut c, &mut s, usize::MAX);
    assert_eq!(carried.client.unwrap_err().reason, Reason::Untrusted);
    assert!(!c.is_established());
}

#[test]
fn an_expired_certificate_is_refused_on_both_sides() {
    let kit = Kit::new();
    let (bj, sh) = (kit.member(zone("bj")), kit.member(zone("sh")));
    let (mut c, mut s) = kit.peers(&bj, &sh, &zone("sh"));
    assert!(carry(&mut c, &mut s, usize::MAX).both());
    kit.clock.0.store(now_s() + 11 * DAY_S, Relaxed);
    let (mut c, mut s) = kit.peers(&bj, &sh, &zone("sh"));
    assert_eq!(reasons(&carry(&mut c, &mut s, usize::MAX)).0, Some(Reason::Expired));
    // Only the client's has ended.
    let fresh = Made::member(&kit.ca, &zone("sh"), Period::days(now_s(), 50)).unwrap();
    let mut sh = sh;
    sh.pair = pair(&fresh);
    let (mut c, mut s) = kit.peers(&bj, &sh, &zone("sh"));
    assert_eq!(reasons(&carry(&mut c, &mut s, usize::MAX)).1, Some(Reason::Expired));
}

#[test]
fn a_cluster_checks_its_own_certificate_before_anyone_else_does() {
    let kit = Kit::new();
    let provider = kit.makers.provider();
    let mut bj = kit.member(zone("bj"));
    assert_eq!(bj.check(now_s(), provider), Ok(Some("certificate: ends in 10 days".into())));
    let late = bj.check(now_s() + 12 * DAY_S, provider).unwrap().unwrap();
    assert!(late.starts_with("certificate: has ended"), "{late}");
    bj.own = zone("sh");
    assert_eq!(bj.check(now_s(), provider).unwrap_err(), "the certificate is of zone bj, expected zone sh");
    let other = Made::authority("ezone", Period::days(now_s(), 10)).unwrap();
    let strange = kit.member_by(zone("bj"), &other);
    assert!(strange.check(now_s(), provider).unwrap_err().contains("not signed by an authority of ca"));
}

#[test]
fn clients_may_speak_1_2_and_routers_may_not() {
    let kit = Kit::new();
    let old = |how| {
        changed(&how, |c| {
            let builder = rustls::ClientConfig::builder_with_protocol_versions(&[&TLS12]);
            let roots = (*kit.roots().store).clone();
            *c = builder.with_root_certificates(roots).with_no_client_auth();
        })
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut c, mut s) = sessions(&old(kit.client()), &kit.listener());
    assert!(carry(&mut c, &mut s, 3).both());
    assert_eq!(s.version().unwrap(), "TLSv1_2");
    let (mut sealed, mut plain) = (vec![], vec![]);
    c.seal(b"hello", &mut sealed);
    s.on_bytes(&sealed, &mut plain).unwrap();
    assert_eq!(plain, b"hello");
    let sh = kit.member(zone("sh"));
    let (mut c, mut s) = sessions(&old(kit.client()), &kit.makers.peers(&sh).unwrap());
    assert_eq!(carry(&mut c, &mut s, 3).server.unwrap_err().reason, Reason::Incompatible);
}

#[test]
fn a_client_that_speaks_only_http_2_is_refused_and_one_that_names_no_protocol_is_not() {
    let kit = Kit::new();
    for (offered, ok) in
        [(vec![b"h2".to_vec()], false), (vec![b"h2".to_vec(), b"http/1.1".to_vec()], true), (vec![], true)]
    {
        let how = changed(&kit.client(), |c| c.alpn_protocols = offered.clone());
        let (mut c, mut s) = sessions(&how, &kit.listener());
        let carried = carry(&mut c, &mut s, usize::MAX);
        assert_eq!(carried.both(), ok, "{offered:?}");
        assert_eq!(reasons(&carried).1, (!ok).then_some(Reason::Incompatible));
    }
}

#[test]
fn a_ticket_makes_the_second_handshake_short_even_after_a_new_certificate() {
    let kit = Kit::new();
    let client = kit.client();
    for (round, resumed) in [false, true].into_iter().enumerate() {
        let (mut c, mut s) = sessions(&client, &kit.listener());
        let carried = carry(&mut c, &mut s, usize::MAX);
        assert!(carried.both());
        assert_eq!((c.is_resumed(), s.is_resumed()), (resumed, resumed), "round {round}");
    }
    // Another process has other keys for its tickets: a full handshake, no fault.
    let other = Makers::at(kit.clock.clone()).unwrap();
    let listener = other.clients(&[kit.server_pair(&["localhost"])]).unwrap();
    let (mut c, mut s) = sessions(&client, &listener);
    assert!(carry(&mut c, &mut s, usize::MAX).both() && !s.is_resumed());
}

#[test]
fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let kit = Kit::new();
    let pairs = [kit.server_pair(&["a.example.com"]), kit.server_pair(&["*.example.org", "b.example.com"])];
    let listener = kit.makers.clients(&pairs).unwrap();
    for (name, ok) in [
        ("a.example.com", true),
        ("b.example.com", true),
        ("B.EXAMPLE.COM", true),
        ("x.example.org", true),
        ("x.y.example.org", false),
        ("example.org", false),
        ("c.example.com", false),
    ] {
        let how = kit.makers.upstream(&kit.roots(), None, Some(name)).unwrap();
        let (mut c, mut s) = sessions(&how, &listener);
        let carried = carry(&mut c, &mut s, usize::MAX);
        assert_eq!(carried.both(), ok, "{name}");
        assert_eq!(reasons(&carried).0, (!ok).then_some(Reason::WrongIdentity), "{name}");
    }
    assert!(kit.makers.clients(&[]).is_err());
    assert!(kit.makers.upstream(&kit.roots(), None, Some("not a name")).is_err());
}

#[test]
fn an_upstream_may_ask_for_our_certificate() {
    let kit = Kit::new();
    let sh = kit.member(zone("sh"));
    // The peers' listener asks for one: with a member's certificate and its name it is an upstream like any other.
    let own = kit.member(zone("bj")).pair;
    let asked = |own| kit.makers.upstream(&kit.roots(), own, Some("localhost")).unwrap();
    let mut with_name = sh.clone();
    with_name.pair = kit.server_pair(&["localhost"]);
    let listener = kit.makers.peers(&with_name).unwrap();
    let (mut c, mut s) = sessions(&asked(Some(&own)), &listener);
    assert!(carry(&mut c, &mut s, usize::MAX).both());
    let (mut c, mut s) = sessions(&asked(None), &listener);
    assert_eq!(carry(&mut c, &mut s, usize::MAX).server.unwrap_err().reason, Reason::NoCertificate);
}

#[test]
fn a_client_that_only_asks_for_new_keys_makes_no_pile_of_answers() {
    let kit = Kit::new();
    let mut client = ClientConnection::new(kit.client().config, "localhost".try_into().unwrap()).unwrap();
    let mut server = Session::incoming(&kit.listener()).unwrap();
    let (mut plain, mut owed) = (vec![], vec![]);
    while client.is_handshaking() || !server.is_established() {
        let mut flight = vec![];
        client.write_tls(&mut flight).unwrap();
        server.on_bytes(&flight, &mut plain).unwrap();
        server.take(&mut owed);
        let mut rest = &owed[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
        owed.clear();
    }
    for _ in 0..1000 {
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"x").unwrap();
        let mut asked = vec![];
        while client.wants_write() {
            client.write_tls(&mut asked).unwrap();
        }
        assert!(asked.len() > 40, "a record that asks for new keys, and one of data");
        server.on_bytes(&asked, &mut plain).unwrap();
    }
    server.seal(b"y", &mut owed);
    assert_eq!(plain.len(), 1000);
    assert!(owed.len() < 200, "{} bytes for one byte and new keys", owed.len());
}
