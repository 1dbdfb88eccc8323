//! A simulated client: pipelines, splits, stalls, misbehaves; and checks every byte that it gets.

use super::ledger::{Aim, Ledger, body, check_body};
use super::net::Link;
use super::rng::Rng;
use super::wire::{Event, Head, Reader};
use std::collections::VecDeque;

/// What is allowed to go wrong, each so many times in a thousand steps; 0: never.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    pub client_resets: usize,
    pub client_stalls: usize,
    pub client_garbage: usize,
    pub half_closes: usize,
    pub network_resets: usize,
    pub upstream_stalls: usize,
    pub upstream_resets: usize,
    pub upstream_cuts: usize,
    pub upstream_closes_idle: usize,
    pub connects_fail: usize,
    pub liars: usize,
    pub store: usize,
    pub moves: usize,
    pub losses: usize,
    pub jumps: usize,
    pub stops: usize,
    pub reloads: usize,
}

/// A request whose answer has not come whole.
struct Asked {
    token: usize,
    method: &'static str,
    aim: Aim,
    /// Where in this connection's bytes it ends.
    ends_at: usize,
    head: Option<Head>,
    came: usize,
    text: Vec<u8>,
}

pub struct Client {
    pub link: usize,
    outbox: VecDeque<u8>,
    /// A body that waits for `100 Continue`.
    waiting: Vec<u8>,
    written: usize,
    reader: Reader,
    asked: VecDeque<Asked>,
    pub left: usize,
    depth: usize,
    pub done: bool,
    stalled: bool,
    /// It has sent something that is no request: one answer more may come, and the end.
    wild: bool,
    last: bool,
    /// An answer said that it was the last one.
    told: bool,
    fin: bool,
    /// Nothing may fail.
    calm: bool,
}

impl Client {
    pub fn new(link: usize, calm: bool, rng: &mut Rng) -> Client {
        Client {
            link,
            outbox: VecDeque::new(),
            waiting: vec![],
            written: 0,
            reader: Reader::answers(),
            asked: VecDeque::new(),
            left: 1 + rng.below(6),
            depth: 1 + rng.below(3),
            done: false,
            stalled: false,
            wild: false,
            last: false,
            told: false,
            fin: false,
            calm,
        }
    }

    /// Does one thing, or nothing.
    pub fn step(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults, quiet: bool) {
        if self.done || (self.stalled && !quiet) {
            return;
        }
        match rng.below(4) {
            0 => self.read(link, ledger, rng),
            1 | 2 => self.write(link, ledger, rng, f, quiet),
            _ if quiet => self.leave_if_satisfied(link, rng),
            _ if rng.chance(f.client_resets) => self.leave(link, true, rng),
            _ if rng.chance(f.client_stalls) => self.stalled = true,
            _ if rng.chance(f.half_closes) && self.outbox.is_empty() && self.waiting.is_empty() && !self.fin => {
                (self.fin, self.left) = (true, 0);
                link.pipes[0].fin = true;
            }
            _ => {}
        }
    }

    fn leave_if_satisfied(&mut self, link: &mut Link, rng: &mut Rng) {
        if self.satisfied() && self.outbox.is_empty() && !self.fin && rng.below(3) == 0 {
            self.leave(link, false, rng);
        }
    }

    fn leave(&mut self, link: &mut Link, abort: bool, rng: &mut Rng) {
        self.done = true;
        link.hang_up(0, abort, rng.below(2) == 0);
    }

    fn write(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults, quiet: bool) {
        if self.fin {
            return;
        }
        let idle = self.outbox.is_empty() && self.waiting.is_empty();
        if idle && self.left > 0 && self.asked.len() < self.depth && !self.last && !quiet {
            self.left -= 1;
            if rng.chance(f.client_garbage) {
                self.garble(rng);
            } else {
                self.ask(ledger, rng, f);
            }
        }
        // Patience with `100 Continue` ends (RFC 9110 §10.1.1).
        if !self.waiting.is_empty() && rng.below(20) == 0 {
            self.outbox.extend(std::mem::take(&mut self.waiting));
        }
        let n = rng.piece(4, 2000);
        let bytes: Vec<u8> = self.outbox.iter().take(n).copied().collect();
        match link.write(0, &bytes) {
            Some(n) => {
                self.outbox.drain(..n);
                self.written += n;
            }
            None => self.outbox.clear(),
        }
    }

    /// Something that is not a request, or not the whole of one.
    fn garble(&mut self, rng: &mut Rng) {
        const JUNK: [&str; 9] = [
            "\r\n\r\nGET /app/t HTTP/1.1\nHost: h\n\n",
            "POST /app/x HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST /app/x HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
            "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /app/x HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n",
            "GET http:// HTTP/1.1\r\n\r\n",
            "GET /records/a/%zz?x HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nIf-Match: 2\r\n\r\n",
            "\0\0\0\0\n",
        ];
        let mut bytes = rng.pick(&JUNK).as_bytes().to_vec();
        if rng.below(3) == 0 {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        if rng.below(8) == 0 {
            bytes = [&b"GET /app/x HTTP/1.1\r\nx: "[..], &vec![b'a'; 5000]].concat();
        }
        self.outbox.extend(bytes);
        (self.wild, self.left) = (true, 0);
    }

    fn ask(&mut self, ledger: &mut Ledger, rng: &mut Rng, f: &Faults) {
        let aim = match rng.below(10) {
            0 if f.liars > 0 => Aim::Liar,
            1 if !self.calm => Aim::Nobody,
            2 | 3 => Aim::Record,
            _ => Aim::App,
        };
        let methods: &[&str] = match (aim, self.calm) {
            (Aim::Record, _) => &["GET", "PUT", "POST"],
            // In a calm world upstreams close idle connections: only what may be done twice is sure to be answered.
            (_, true) => &["GET", "PUT", "HEAD"],
            (_, false) => &["GET", "POST", "PUT", "HEAD", "DELETE", "POST"],
        };
        let method = *rng.pick(methods);
        let token = ledger.add(method, aim);
        let http11 = self.calm || rng.below(12) > 0;
        let size = if matches!(method, "POST" | "PUT") { *rng.pick(&[0, 1, 40, 700, 1400, 2900, 9000]) } else { 0 };
        // A minted key is made of the token, which a short value does not hold.
        let size = if aim == Aim::Record && method == "POST" { size.max(40) } else { size };
        // In a calm world a body must be one that can be replayed.
        let size = if self.calm { size.min(1400) } else { size };
        let path = match (aim, method) {
            (Aim::App, _) => format!("/app/t{token}"),
            (Aim::Liar, _) => format!("/lie/t{token}"),
            (Aim::Nobody, _) => format!("/nothing/t{token}"),
            (Aim::Record, "POST") => "/records/orders".to_string(),
            (Aim::Record, _) => format!("/records/orders/t{token}"),
        };
        let version = if http11 { "1.1" } else { "1.0" };
        let shop = 1 + rng.below(4);
        let mut head = format!(
            "{method} {path} HTTP/{version}\r\nHost: h\r\nx-shard: shopid={shop}\r\nx-token: {token}\r\nx-size: {size}\r\n"
        );
        if !http11 && rng.below(2) == 0 {
            head += "Connection: keep-alive\r\n";
        } else if rng.below(16) == 0 || !http11 {
            head += "Connection: close\r\n";
            self.last = true;
        }
        self.finish_request(head, token, method, size, http11, rng);
        self.asked.push_back(Asked {
            token,
            method,
            aim,
            ends_at: self.written + self.outbox.len() + self.waiting.len(),
            head: None,
            came: 0,
            text: vec![],
        });
    }

    fn finish_request(
        &mut self,
        mut head: String,
        token: usize,
        method: &str,
        size: usize,
        http11: bool,
        rng: &mut Rng,
    ) {
        if !matches!(method, "POST" | "PUT") {
            self.outbox.extend((head + "\r\n").bytes());
            return;
        }
        let data = body(token, 0, size);
        let mut framed = vec![];
        if http11 && rng.below(2) == 0 {
            head += "Transfer-Encoding: chunked\r\n";
            let mut at = 0;
            while at < size {
                let n = rng.piece(3, 3000).min(size - at);
                framed.extend(format!("{n:x}{}\r\n", rng.pick(&["", ";a=b", ";x"])).bytes());
                framed.extend_from_slice(&data[at..at + n]);
                framed.extend_from_slice(b"\r\n");
                at += n;
            }
            framed.extend(rng.pick(&["0\r\n\r\n", "0\r\nx-t: 1\r\n\r\n"]).bytes());
        } else {
            head += &format!("Content-Length: {size}\r\n");
            framed = data;
        }
        if http11 && size > 0 && rng.below(6) == 0 {
            self.outbox.extend((head + "Expect: 100-continue\r\n\r\n").bytes());
            self.waiting = framed;
        } else {
            self.outbox.extend((head + "\r\n").bytes());
            self.outbox.extend(framed);
        }
    }

    fn read(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng) {
        let n = rng.piece(8, 4000);
        let bytes = link.read(0, n);
        self.reader.push(&bytes);
        self.look(ledger, rng);
        let from = &link.pipes[1];
        if from.data.is_empty() && (from.fin || from.reset) {
            self.ended(link, ledger, rng);
        }
    }

    fn look(&mut self, ledger: &mut Ledger, rng: &mut Rng) {
        loop {
            let to_head = self.asked.front().is_some_and(|a| a.method == "HEAD");
            let Some(event) = self.reader.next(to_head) else { return };
            match event {
                Event::Head(head) if head.status() < 200 => self.interim(&head),
                Event::Head(head) => self.head(head),
                Event::Data(data) => self.data(&data),
                Event::End => self.end(ledger, rng),
            }
        }
    }

    fn interim(&mut self, head: &Head) {
        assert!(!self.asked.is_empty() || self.wild, "an interim answer to nothing: {head:?}");
        if head.status() == 100 {
            self.outbox.extend(std::mem::take(&mut self.waiting));
        }
    }

    fn head(&mut self, head: Head) {
        let wild = self.wild;
        let Some(a) = self.asked.front_mut() else {
            assert!(wild, "an answer that nobody asked for: {head:?}");
            self.wild = false;
            self.asked.push_back(Asked {
                token: usize::MAX,
                method: "GET",
                aim: Aim::Nobody,
                ends_at: usize::MAX,
                head: Some(head),
                came: 0,
                text: vec![],
            });
            return;
        };
        assert!(a.head.is_none(), "two heads: {head:?}");
        if let Some(zone) = head.get("x-ezone") {
            assert!(matches!(zone, "bj" | "sh"), "{head:?}");
        }
        if let Some(token) = head.get("x-token") {
            let own = if a.aim == Aim::Liar { token.parse::<usize>().is_err() } else { token == a.token.to_string() };
            assert!(own, "the answer of another request than {}: {head:?}", a.token);
            assert!(matches!(a.aim, Aim::App | Aim::Liar), "{head:?}");
        }
        if self.calm {
            // Two moves within one request's way: nothing was done, and it is asked to come again. `end` looks at the words.
            let moved_twice = head.status() == 503 && head.get("retry-after") == Some("1");
            assert!(head.status() < 500 || moved_twice, "token {}: {head:?}", a.token);
        }
        self.told |= head.get("connection") == Some("close");
        self.last |= self.told;
        a.head = Some(head);
    }

    fn data(&mut self, data: &[u8]) {
        let a = self.asked.front_mut().expect("a head came before");
        let head = a.head.as_ref().expect("a head came before");
        if head.get("x-token").is_some() && a.aim == Aim::App {
            check_body("client", a.token, a.came, data);
        } else {
            a.text.extend_from_slice(data);
            assert!(a.aim == Aim::Liar || a.text.len() < 5000, "{head:?}");
            if a.aim == Aim::Liar {
                assert!(!String::from_utf8_lossy(data).contains("[t"), "an honest body from a liar: {head:?}");
            }
        }
        a.came += data.len();
    }

    /// An answer is whole.
    fn end(&mut self, ledger: &mut Ledger, _: &mut Rng) {
        if self.asked.front().is_some_and(|a| a.head.is_none()) {
            return; // of an interim answer
        }
        let a = self.asked.pop_front().expect("a head came before");
        let head = a.head.as_ref().expect("a head came before");
        // An answer before the end of the request: what waits for `100 Continue` is not sent.
        if self.asked.is_empty() && !self.waiting.is_empty() {
            self.waiting.clear();
            (self.last, self.told) = (true, true);
        }
        if a.token == usize::MAX || a.aim == Aim::Liar {
            return;
        }
        let text = String::from_utf8_lossy(&a.text);
        if head.get("x-token").is_some() {
            assert!(ledger.of(a.token).seen > 0, "answered and never seen: token {}", a.token);
        } else if a.method == "HEAD" {
            assert!(a.came == 0);
        } else if text.contains("\"error\"") {
            assert!(head.status() >= 400, "{head:?} {text}");
            let missing = head.status() == 404 && a.aim == Aim::Record;
            let moved_twice = head.status() == 503 && text.contains("the shard's owner changed twice");
            assert!(!self.calm || missing || moved_twice, "token {}: {head:?} {text}", a.token);
            if text.contains("nothing was done") {
                ledger.deny(a.token);
            }
        } else {
            assert_eq!(a.aim, Aim::Record, "{head:?} {text}");
            self.record(&a, &text);
        }
    }

    fn record(&self, a: &Asked, text: &str) {
        match a.method {
            "GET" => check_body("record", a.token, 0, text.as_bytes()),
            "PUT" => assert!(text.contains(&format!("\"key\":\"t{}\"", a.token)), "{text}"),
            _ => assert!(text.contains(&format!("\"id\":\"m{}\"", a.token)), "{text}"),
        }
    }

    /// The router has ended the connection.
    fn ended(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng) {
        let reset = link.pipes[1].reset;
        if self.reader.until_close() && !reset {
            self.end(ledger, rng);
        }
        if let Some(a) = self.asked.front() {
            let taken = link.pipes[0].read >= a.ends_at && self.outbox.is_empty();
            let begun = a.token != usize::MAX && ledger.of(a.token).begun;
            let excused = a.aim == Aim::Liar
                || begun
                || self.told
                || self.wild
                || a.ends_at == usize::MAX
                || reset
                || link.broken;
            // Told that the answer before is the last one, as after an `Expect` that was answered early, it has to ask again.
            let told = self.told && a.head.is_none();
            assert!(!self.calm || told, "the connection ended before the answer to token {}: {:?}", a.token, a.head);
            assert!(
                a.head.is_some() || !taken || excused,
                "token {} {} {:?} was taken whole and never answered: {:?}",
                a.token,
                a.method,
                a.aim,
                link.ends
            );
        }
        self.leave(link, false, rng);
    }

    /// Where it stands.
    pub fn shown(&self) -> String {
        let asked: Vec<_> = self.asked.iter().map(|a| (a.token, a.method, a.ends_at, &a.head)).collect();
        format!("link {}: asked {asked:?}, written {}, {} to write", self.link, self.written, self.outbox.len())
    }

    /// Has it got all it wanted?
    pub fn satisfied(&self) -> bool {
        self.asked.is_empty()
    }
}
