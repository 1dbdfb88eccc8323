//! Decides how the backend gives each answer: its size and pace, and what goes wrong with it.

use crate::random::Random;
use crate::token::{BYTES_HEADER, TOKEN_HEADER, Token};
use std::io::Write;
use std::time::Duration;

/// Chunks of a chunked answer are at most so long.
const CHUNK_BYTES_MAX: usize = 8192;

/// How the backend answers. Chances are of one answer, 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Bytes of a body, uniformly drawn.
    pub body_bytes: (usize, usize),
    pub chunked: bool,
    /// Until the first byte of an answer.
    pub delay: Duration,
    /// Answers are written so many bytes at a time ...
    pub piece_bytes: usize,
    /// ... with this between them; zero: as fast as it goes.
    pub piece_gap: Duration,
    /// Connections end after so many answers ...
    pub close_after: Option<u64>,
    /// ... of which the last says `connection: close`, or not.
    pub announce: bool,
    /// Connections that are idle end after a time drawn up to this; zero: they stay.
    pub idle: Duration,
    pub close_chance: f64,
    pub cut_chance: f64,
    pub stall_chance: f64,
    pub error_chance: f64,
    /// Connections end with a reset instead of an end of file.
    pub reset: bool,
    pub seed: u64,
}

/// What happens after an answer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The connection takes the next request.
    Stay,
    /// The answer said that it is the last.
    Announced,
    /// The connection ends, and nobody was told.
    Drop,
    /// No answer was given and none will be.
    Stall,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub token: Option<Token>,
    pub is_head: bool,
    /// The client wants the connection to go on.
    pub keep_alive: bool,
    /// The request's body was another request's.
    pub wrong_body: bool,
    /// How many answers the connection will have had after this one.
    pub answers: u64,
}

/// Gives answers of one thread.
pub struct Manner {
    options: Options,
    random: Random,
    /// The answers to a plain request, staying and closing, if these are all there is; each with its head's length.
    plain: Option<[(Vec<u8>, usize); 2]>,
}

impl Manner {
    /// `number`: which thread's; each draws its own numbers.
    pub fn new(options: Options, number: u64) -> Manner {
        let (least, most) = options.body_bytes;
        let chances = options.close_chance + options.cut_chance + options.stall_chance + options.error_chance;
        let plain = (least == most && !options.chunked && chances == 0.0).then(|| {
            [true, false].map(|stay| {
                let mut out = vec![];
                head(&mut out, 200, Some(least), None, stay);
                let head_bytes = out.len();
                out.resize(head_bytes + least, b'x');
                (out, head_bytes)
            })
        });
        Manner { options, random: Random(options.seed ^ number << 32), plain }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// A time up to the idle limit, after which an idle connection ends; `None`: it stays.
    pub fn idle_limit(&mut self) -> Option<Duration> {
        (!self.options.idle.is_zero()).then(|| self.options.idle.mul_f64(self.random.fraction()))
    }

    /// Appends the answer to `ask`.
    pub fn answer(&mut self, ask: &Ask, out: &mut Vec<u8>) -> Then {
        let last = self.options.close_after.is_some_and(|n| ask.answers >= n);
        let announce = !ask.keep_alive || last && self.options.announce;
        let (after, begin) = (if announce { Then::Announced } else { Then::Stay }, out.len());
        if let Some(plain) = self.plain.as_ref().filter(|_| ask.token.is_none() && !ask.wrong_body) {
            let (bytes, head_bytes) = &plain[usize::from(announce)];
            out.extend_from_slice(if ask.is_head { &bytes[..*head_bytes] } else { bytes });
            return if last && !announce { Then::Drop } else { after };
        }
        if self.happens(self.options.stall_chance) {
            return Then::Stall;
        }
        match (ask.wrong_body, self.happens(self.options.error_chance)) {
            (true, _) => head(out, 422, Some(0), ask.token, !announce),
            (false, true) => head(out, 503, Some(0), ask.token, !announce),
            (false, false) => self.whole(ask, announce, out),
        }
        if self.happens(self.options.cut_chance) {
            let len = out.len() - begin;
            out.truncate(begin + self.random.below(len as u64) as usize);
            return Then::Drop;
        }
        let drop = last && !announce || self.happens(self.options.close_chance);
        if drop { Then::Drop } else { after }
    }

    fn whole(&mut self, ask: &Ask, announce: bool, out: &mut Vec<u8>) {
        let (least, most) = self.options.body_bytes;
        let len = self.random.between(least, most);
        if !self.options.chunked {
            head(out, 200, Some(len), ask.token, !announce);
            if !ask.is_head {
                put_body(ask.token, out, len);
            }
            return;
        }
        head(out, 200, None, ask.token, !announce);
        insert_made(out, len);
        if ask.is_head {
            return;
        }
        let mut body = vec![];
        put_body(ask.token, &mut body, len);
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(self.random.between(1, CHUNK_BYTES_MAX)));
            write!(out, "{:x}\r\n", chunk.len()).expect("writing into memory does not fail");
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
            rest = after;
        }
        out.extend_from_slice(b"0\r\n\r\n");
    }

    fn happens(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.fraction() < chance
    }
}

fn put_body(token: Option<Token>, out: &mut Vec<u8>, len: usize) {
    match token {
        Some(token) => token.put_body(out, len),
        None => out.resize(out.len() + len, b'x'),
    }
}

/// Appends a head; without a length the body is chunked.
fn head(out: &mut Vec<u8>, status: u16, len: Option<usize>, token: Option<Token>, stay: bool) {
    let reason = if status == 200 { "OK" } else { "No" };
    let mut text = format!("HTTP/1.1 {status} {reason}\r\n");
    text += &len.map_or("transfer-encoding: chunked\r\n".into(), |len| format!("content-length: {len}\r\n"));
    text += "content-type: text/plain\r\n";
    if let Some(token) = token {
        text += &format!("{TOKEN_HEADER}: {}\r\n", String::from_utf8_lossy(token.bytes()));
        text += &len.map_or(String::new(), |len| format!("{BYTES_HEADER}: {len}\r\n"));
    }
    text += if stay { "\r\n" } else { "connection: close\r\n\r\n" };
    out.extend_from_slice(text.as_bytes());
}

/// Says in a head that has no length how long the body was when it was made.
fn insert_made(out: &mut Vec<u8>, len: usize) {
    out.truncate(out.len() - 2);
    write!(out, "{BYTES_HEADER}: {len}\r\n\r\n").expect("writing into memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Answer;

    const ASK: Ask = Ask { token: None, is_head: false, keep_alive: true, wrong_body: false, answers: 1 };

    /// Statuses of 400 answers that were whole, and what came after each of the 400.
    fn check(options: Options, ask: Ask) -> (Vec<u16>, Vec<Then>) {
        let mut manner = Manner::new(options, 0);
        let (mut status, mut thens) = (vec![], vec![]);
        for _ in 0..400 {
            let mut out = vec![];
            thens.push(manner.answer(&ask, &mut out));
            let mut answer = Answer::default();
            answer.reset(ask.token);
            if let (used, Some(done)) = answer.feed(&out, ask.is_head).unwrap() {
                assert_eq!(used, out.len());
                status.push(done.status);
            }
        }
        (status, thens)
    }

    #[test]
    fn an_answer_is_the_tokens_own_whatever_frames_it() {
        let token = Some(Token::new(5));
        for chunked in [false, true] {
            for is_head in [false, true] {
                let options = Options { body_bytes: (0, 20_000), chunked, ..Options::default() };
                let (status, thens) = check(options, Ask { token, is_head, ..ASK });
                assert_eq!((status, thens), (vec![200; 400], vec![Then::Stay; 400]), "{chunked} {is_head}");
            }
        }
    }

    #[test]
    fn each_fault_happens_at_about_its_chance() {
        let of = |thens: &[Then], then| thens.iter().filter(|t| **t == then).count();
        let (status, thens) = check(Options { cut_chance: 0.5, ..Options::default() }, ASK);
        assert!((140..260).contains(&of(&thens, Then::Drop)) && status.len() == of(&thens, Then::Stay));
        let (status, thens) = check(Options { stall_chance: 0.5, ..Options::default() }, ASK);
        assert!((140..260).contains(&of(&thens, Then::Stall)) && status.len() == of(&thens, Then::Stay));
        let (status, thens) = check(Options { close_chance: 0.5, ..Options::default() }, ASK);
        assert!((140..260).contains(&of(&thens, Then::Drop)) && status.len() == 400);
        let (status, _) = check(Options { error_chance: 0.5, ..Options::default() }, ASK);
        assert!((140..260).contains(&status.iter().filter(|s| **s == 503).count()));
    }

    #[test]
    fn a_connections_last_answer_says_so_unless_it_is_not_to() {
        let options = Options { close_after: Some(3), announce: true, ..Options::default() };
        let last = |options, answers| Manner::new(options, 0).answer(&Ask { answers, ..ASK }, &mut vec![]);
        assert_eq!((last(options, 2), last(options, 3)), (Then::Stay, Then::Announced));
        assert_eq!(last(Options { announce: false, ..options }, 3), Then::Drop);
        let (status, _) = check(Options::default(), Ask { wrong_body: true, ..ASK });
        assert_eq!(status, vec![422; 400]);
    }
}
