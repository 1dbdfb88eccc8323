//! A simulated log core behind the port: answers late, out of order, twice, or never; refuses; disappears.

use super::client::Faults;
use super::ledger::{Ledger, body};
use super::net::Link;
use super::rng::Rng;
use bytes::{Bytes, BytesMut};
use replog::port::{Answer, Ask, Refused, put_answer, take_ask};
use replog::{Hlc, Version};
use shardmap::{MapEpoch, OwnerEpoch, Zone};
use std::collections::VecDeque;

/// A connection that a log core has accepted.
pub struct Store {
    pub link: usize,
    zone: Zone,
    input: BytesMut,
    answers: Vec<(u64, Answer)>,
    outbox: VecDeque<u8>,
    pub done: bool,
}

impl Store {
    pub fn new(link: usize, zone: Zone) -> Store {
        let (input, answers, outbox) = (BytesMut::new(), vec![], VecDeque::new());
        Store { link, zone, input, answers, outbox, done: false }
    }

    /// Does one thing, or nothing. `newest` is the newest map's epoch.
    pub fn step(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults, newest: u64) {
        if self.done {
            return;
        }
        match rng.below(4) {
            0 | 1 => self.read(link, ledger, rng, f, newest),
            2 => self.write(link, rng, f),
            _ if rng.chance(f.store) && rng.below(8) == 0 => self.leave(link, rng),
            _ => {}
        }
    }

    pub fn leave(&mut self, link: &mut Link, rng: &mut Rng) {
        self.done = true;
        link.hang_up(1, rng.below(2) == 0, rng.below(2) == 0);
    }

    fn read(&mut self, link: &mut Link, ledger: &mut Ledger, rng: &mut Rng, f: &Faults, newest: u64) {
        let n = 1 + rng.below(4000);
        self.input.extend_from_slice(&link.read(1, n));
        while let Some((corr, ask)) = take_ask(&mut self.input).expect("the router writes well-formed asks") {
            let refused = rng.chance(f.store);
            let answer = if refused { refusal(rng, newest) } else { self.serve(ask, ledger, rng) };
            if !rng.chance(f.store) {
                self.answers.push((corr, answer));
            }
        }
        let from = &link.pipes[0];
        if from.data.is_empty() && (from.fin || from.reset) {
            self.leave(link, rng);
        }
    }

    fn serve(&mut self, ask: Ask, ledger: &mut Ledger, rng: &mut Rng) -> Answer {
        match ask {
            Ask::Read { key, .. } => {
                let token = token_of(&key);
                ledger.see(token);
                let version = self.version();
                if rng.below(4) == 0 {
                    Answer::Absent
                } else {
                    Answer::Row { version, value: body(token, 0, 37).into() }
                }
            }
            Ask::Write { key, value, .. } => {
                let value = value.expect("nothing is deleted here");
                let token = match &key {
                    Some(key) => token_of(key),
                    None => return self.mint(&value, ledger),
                };
                assert_eq!(value, body(token, 0, value.len()), "another record's value");
                ledger.see(token);
                ledger.done(token);
                Answer::Written { key: key.expect("matched above"), version: self.version(), seq: 1 }
            }
            other @ (Ask::ReadAfter { .. } | Ask::Commit(_) | Ask::Changes(_) | Ask::Standing { .. }) => {
                panic!("nobody asks for this here: {other:?}")
            }
        }
    }

    /// The token stands in the value, if that is long enough.
    fn mint(&mut self, value: &Bytes, ledger: &mut Ledger) -> Answer {
        let text = String::from_utf8_lossy(value);
        let key = match text.split_once(']') {
            Some((first, _)) => {
                let token = token_of(&first.as_bytes()[1..]);
                assert_eq!(*value, body(token, 0, value.len()), "another record's value");
                ledger.see(token);
                ledger.done(token);
                format!("m{token}")
            }
            None => "short".to_string(),
        };
        Answer::Written { key: key.into(), version: self.version(), seq: 1 }
    }

    fn version(&self) -> Version {
        Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(1), zone: self.zone, stream: 0 }
    }

    fn write(&mut self, link: &mut Link, rng: &mut Rng, f: &Faults) {
        if !self.answers.is_empty() {
            let at = rng.below(self.answers.len());
            let (corr, answer) = self.answers.swap_remove(at);
            let mut out = BytesMut::new();
            // Answers that nobody waits for: of an earlier use of the number, and a second one.
            if rng.chance(f.store) {
                put_answer(&mut out, corr ^ 1 << 32, &Answer::Absent);
            }
            put_answer(&mut out, corr, &answer);
            if rng.chance(f.store) {
                put_answer(&mut out, corr, &Answer::Absent);
            }
            self.outbox.extend(out);
        }
        let n = 1 + rng.below(1000);
        let bytes: Vec<u8> = self.outbox.iter().take(n).copied().collect();
        match link.write(1, &bytes) {
            Some(n) => drop(self.outbox.drain(..n)),
            None => self.leave(link, rng),
        }
    }
}

fn refusal(rng: &mut Rng, newest: u64) -> Answer {
    Answer::Refused(match rng.below(6) {
        0 => Refused::ReadOnly,
        1 => Refused::Busy,
        2 => Refused::Behind { map_epoch: MapEpoch(newest) },
        3 => Refused::Full,
        _ => Refused::NotOwner { map_epoch: MapEpoch(newest + rng.below(2) as u64), owner: None },
    })
}

fn token_of(key: &[u8]) -> usize {
    std::str::from_utf8(key).ok().and_then(|k| k.strip_prefix('t')).and_then(|k| k.parse().ok()).expect("a token")
}
