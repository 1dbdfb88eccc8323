//! A simulated upstream: answers each request with its own token, in every form that HTTP has, or breaks in the middle; a
//! liar answers with what no server should send.

use super::client::Faults;
use super::ledger::{Ledger, body, check_body};
use super::net::Link;
use super::rng::Rng;
use super::wire::{Event, Reader};
use std::collections::VecDeque;

/// A connection that an upstream has accepted.
pub struct Upstream {
    pub link: usize,
    pub endpoint: usize,
    liar: bool,
    reader: Reader,
    /// Of the request being read: token, size of its body, method, how much has come.
    now: Option<(usize, usize, String, usize)>,
    answered: bool,
    outbox: VecDeque<u8>,
    closes: bool,
    stalled: bool,
    pub done: bool,
}

const LIES: [&str; 19] = [
    "garbage\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nx-token: poison\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nx-token: poison\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\nx-token: poison\r\n\r\nb",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-token: poison\r\n\r\nzz\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-token: poison\r\n\r\n3\r\nabcX\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes of another protocol",
    "HTTP/1.1 103 Early Hints\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "HTTP/1.1 200 OK\r\nx\0y: z\r\n\r\n",
    "HTTP/1.1 421 No\r\nx-ezone-epoch: 99999\r\nx-token: poison\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nx-token: poison\r\n\r\nabcde",
    "HTTP/1.1 304 Not Modified\r\nx-token: poison\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0 200 OK\r\nx-token: poison\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nx-token: poison\r\nContent-Length: 99999999999999999\r\n\r\nmore and more",
    "HTTP/1.1 200 OK\r\nx-token: poison\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\nabc",
    "HTTP/1.1 099 Odd\r\n\r\nHTTP/1.1 999 Odd\r\nx-token: poison\r\nContent-Length: 0\r\n\r\n",
];

impl Upstream {
    pub fn new(link: usize, endpoint: usize, liar: bool) -> Upstream {
        Upstream {
            link,
            endpoint,
            liar,
            reader: Reader::requests(),
            now: None,
            answered: false,
            outbox: VecDeque::new(),
            closes: false,
            stalled: false,
            done: false,
        }
    }

    /// Does one thing, or nothing.
    pub fn step(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults) {
        if self.done || self.stalled {
            return;
        }
        match rng.below(4) {
            0 | 1 => self.read(link, ledger, rng, f),
            2 => self.write(link, ledger, rng, f),
            _ if rng.chance(f.upstream_resets) => self.leave(link, true, rng),
            _ if rng.chance(f.upstream_stalls) => self.stalled = true,
            _ if self.idle() && rng.chance(f.upstream_closes_idle) => {
                self.leave(link, false, rng);
            }
            _ if self.liar && rng.below(4) == 0 => self.outbox.extend(rng.pick(&LIES).bytes()),
            _ => {}
        }
    }

    /// Has it answered a request, and has no part of another come?
    fn idle(&self) -> bool {
        self.now.is_some() && self.reader.at_start() && self.outbox.is_empty()
    }

    pub fn leave(&mut self, link: &mut Link, abort: bool, rng: &mut Rng) {
        self.done = true;
        link.hang_up(1, abort, rng.below(2) == 0);
    }

    fn read(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults) {
        let n = rng.piece(8, 4000);
        let bytes = link.read(1, n);
        self.reader.push(&bytes);
        while let Some(event) = self.reader.next(false) {
            match event {
                Event::Head(head) => {
                    let field = |name| head.get(name).and_then(|v| v.parse::<usize>().ok());
                    let (Some(token), Some(size)) = (field("x-token"), field("x-size")) else {
                        // Garbage that happens to be a request.
                        (self.now, self.answered) = (None, true);
                        self.outbox.extend(b"HTTP/1.1 404 What\r\nContent-Length: 0\r\n\r\n");
                        continue;
                    };
                    let method = head.line.split(' ').next().unwrap_or_default().to_string();
                    assert!(head.line.contains(&format!("/t{token} ")), "{head:?}");
                    assert!(head.get("host") == Some("h") && head.get("x-ezone-hop").is_none(), "{head:?}");
                    assert!(self.outbox.is_empty() || self.liar, "asked before it had answered");
                    ledger.see(token);
                    (self.now, self.answered) = (Some((token, size, method, 0)), false);
                    if self.liar {
                        self.lie(rng);
                    } else if rng.below(12) == 0 {
                        self.answer(rng, f);
                    }
                }
                Event::Data(data) => {
                    let Some((token, _, _, came)) = self.now.as_mut() else { continue };
                    check_body("upstream", *token, *came, &data);
                    *came += data.len();
                }
                Event::End => {
                    let Some((token, size, _, came)) = self.now.clone() else { continue };
                    assert_eq!(came, size, "the body of token {token} is not whole");
                    ledger.done(token);
                    if !self.liar && !self.answered {
                        self.answer(rng, f);
                    }
                }
            }
        }
        let from = &link.pipes[0];
        if from.data.is_empty() && (from.fin || from.reset) && (self.outbox.is_empty() || from.reset) {
            self.leave(link, false, rng);
        }
    }

    fn lie(&mut self, rng: &mut Rng) {
        let mut bytes = rng.pick(&LIES).as_bytes().to_vec();
        match rng.below(6) {
            0 => {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            1 => bytes = [&b"HTTP/1.1 200 OK\r\nx: "[..], &vec![b'a'; 9000]].concat(),
            2 => bytes = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(300),
            3 => bytes = b"HTTP/1.1 200 OK\r\nx-token: poison\r\nContent-Length: 1\r\n\r\na".to_vec(),
            _ => {}
        }
        self.outbox.extend(bytes);
        self.closes = rng.below(2) == 0;
    }

    /// The answer to the request that is being read, which may not be whole yet.
    fn answer(&mut self, rng: &mut Rng, f: &Faults) {
        let Some((token, _, method, _)) = self.now.clone() else { return };
        self.answered = true;
        let size = *rng.pick(&[0, 1, 30, 600, 3000, 12_000]);
        let data = body(token, 0, size);
        let mut out = String::new();
        for _ in 0..rng.below(8).saturating_sub(5) {
            out += "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        }
        let status = *rng.pick(&[200, 200, 200, 201, 204, 304, 404]);
        out += &format!("HTTP/1.1 {status} Fine\r\nx-token: {token}\r\nx-ezone: liar\r\nx-ezone-epoch: 7\r\n");
        let bodiless = matches!(status, 204 | 304) || method == "HEAD";
        let mut framed = data.clone();
        match rng.below(if bodiless { 2 } else { 5 }) {
            0 if status == 204 => {}
            0 | 2 => out += &format!("Content-Length: {size}\r\n"),
            1 | 3 if status == 204 => {}
            1 | 3 => {
                out += "Transfer-Encoding: chunked\r\n";
                framed = chunks(&data, rng);
            }
            _ => {
                out += "Connection: close\r\n";
                self.closes = true;
            }
        }
        let mut bytes = (out + "\r\n").into_bytes();
        if !bodiless {
            bytes.extend(framed);
        }
        if rng.chance(f.upstream_cuts) {
            bytes.truncate(rng.below(bytes.len() + 1));
            self.closes = true;
        }
        self.outbox.extend(bytes);
    }

    fn write(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults) {
        let n = rng.piece(4, 3000);
        let bytes: Vec<u8> = self.outbox.iter().take(n).copied().collect();
        if let Some((token, ..)) = self.now.as_ref().filter(|_| !bytes.is_empty()) {
            ledger.begin(*token);
        }
        match link.write(1, &bytes) {
            Some(n) => drop(self.outbox.drain(..n)),
            None => return self.leave(link, false, rng),
        }
        // Closing on a request that is still coming is a reset, which may destroy the answer: only a rude one does that.
        if self.closes && self.outbox.is_empty() && (self.reader.at_start() || f.upstream_cuts > 0) {
            self.leave(link, false, rng);
        }
    }
}

fn chunks(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let (mut out, mut at) = (vec![], 0);
    while at < data.len() {
        let n = rng.piece(2, 3000).min(data.len() - at);
        out.extend(format!("{n:X}{}\r\n", rng.pick(&["", ";ext", ";a=\"b\""])).bytes());
        out.extend_from_slice(&data[at..at + n]);
        out.extend_from_slice(b"\r\n");
        at += n;
    }
    out.extend(rng.pick(&["0\r\n\r\n", "0\r\nx-t: 1\r\n\r\n"]).bytes());
    out
}
