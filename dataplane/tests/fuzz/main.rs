//! A bounded run of the fuzz targets: a corpus, mutated by a seed. `FUZZ_ROUNDS=n` makes it longer, `SEED=n` another one.
//! `dataplane/fuzz` has the same functions for cargo-fuzz.

mod checks;
#[expect(dead_code, reason = "the simulation uses all of it")]
#[path = "../sim/rng.rs"]
mod rng;

use rng::Rng;

const REQUESTS: [&[u8]; 6] = [
    b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1;loc=121.5,31.2\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close, x-one\r\nx-one: 1\r\n\r\nhello",
    b"PUT http://h/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nx-ezone-hop: 1\r\nx-ezone-epoch: 7\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: h:80\r\nForwarded: for=1.2.3.4\r\nKeep-Alive: 5\r\n\r\n",
];
const RESPONSES: [&[u8]; 4] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-ezone: bj\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.1 421 Misdirected Request\r\nx-ezone-owner: 1\r\nx-ezone-epoch: 7\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
];
const CHUNKED: [&[u8]; 3] = [
    b"4;a=\"b\"\r\nWiki\r\n6\r\npedia \r\n0\r\nx-trailer: 1\r\n\r\nNEXT",
    b"0\r\n\r\n",
    b"000A\r\n0123456789\r\n1;x\r\na\r\n0;last\r\n\r\n",
];

/// A corpus line with some of its bytes flipped, dropped, repeated, or exchanged for those of another.
fn mutate(corpus: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    const BYTES: &[u8] = b"\r\n \t:,;=\0\x7f\xff/*0aF-+\"";
    let mut out = rng.pick(corpus).to_vec();
    for _ in 0..rng.below(5) {
        let at = rng.below(out.len() + 1);
        let to = (at + rng.below(12)).min(out.len());
        match rng.below(6) {
            0 if at < out.len() => out[at] ^= 1 << rng.below(8),
            1 => out.insert(at, *rng.pick(BYTES)),
            2 => drop(out.drain(at..to)),
            3 => out.splice(at..at, out[at..to].repeat(3)).for_each(drop),
            4 => {
                let other = *rng.pick(corpus);
                let from = rng.below(other.len());
                out.splice(at..to, other[from..].iter().copied()).for_each(drop);
            }
            _ => out.truncate(at),
        }
    }
    out
}

fn run(corpus: &[&[u8]], rounds: usize, check: fn(&[u8])) {
    let number = |name| std::env::var(name).ok().and_then(|v: String| v.parse().ok());
    corpus.iter().for_each(|line| check(line));
    let mut rng = Rng::new(number("SEED").unwrap_or(1));
    for _ in 0..number("FUZZ_ROUNDS").unwrap_or(rounds as u64) {
        let bytes = mutate(corpus, &mut rng);
        if let Err(why) = std::panic::catch_unwind(|| check(&bytes)) {
            eprintln!("a line for the corpus: b\"{}\"", bytes.escape_ascii());
            std::panic::resume_unwind(why);
        }
    }
}

#[test]
fn request_heads_are_refused_or_travel_on_clean() {
    run(&REQUESTS, 300_000, checks::request);
}

#[test]
fn response_heads_are_refused_or_travel_on_clean() {
    run(&RESPONSES, 300_000, checks::response);
}

#[test]
fn chunked_bodies_are_the_same_in_whatever_parts_they_come() {
    run(&CHUNKED, 300_000, checks::chunked);
}

#[test]
fn a_configuration_is_understood_or_refused_with_a_reason() {
    let example = include_bytes!("../../ezone.example.toml");
    run(&[example], 1500, checks::config);
}
