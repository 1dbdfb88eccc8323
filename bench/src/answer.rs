//! Reads one HTTP/1.1 answer from bytes as they come: its status, where it ends, whether the connection stays open,
//! and whether it is the one to the request that was asked.

use crate::body::Body;
use crate::request::{digits, names};
use crate::token::{BYTES_HEADER, Check, TOKEN_HEADER, Token};

/// All heads of one answer, interim ones (1xx) among them, may be this long together.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;

/// An answer as far as it has been read.
#[derive(Debug, Default)]
pub struct Answer {
    /// An unfinished head.
    head: Vec<u8>,
    head_bytes: usize,
    body: Option<Body>,
    status: u16,
    keep_alive: bool,
    /// The request's token, if the answer has to show that it is this request's.
    expected: Option<Token>,
    check: Option<Check>,
    /// How long the body was when it was made.
    made_bytes: Option<u64>,
}

/// What is wrong with an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is no HTTP/1.1 answer.
    Garbled(String),
    /// It is another request's, or a part of it is.
    Mixed(String),
}

/// What an answer said once it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub status: u16,
    pub keep_alive: bool,
}

impl Answer {
    /// Forgets the last answer and keeps the memory. `expected`: what the next one must carry, in its head and body.
    pub fn reset(&mut self, expected: Option<Token>) {
        self.head.clear();
        self.head_bytes = 0;
        self.body = None;
        (self.expected, self.check, self.made_bytes) = (expected, None, None);
    }

    /// Whether any byte of it has come.
    pub fn has_begun(&self) -> bool {
        self.body.is_some() || self.head_bytes + self.head.len() > 0
    }

    /// Takes bytes: how many of them were its own, and the answer once it is whole. `to_head`: it answers a HEAD request.
    pub fn feed(&mut self, mut bytes: &[u8], to_head: bool) -> Result<(usize, Option<Done>), Wrong> {
        let all = bytes.len();
        if self.body.is_none() {
            if self.head.is_empty() {
                bytes = &bytes[self.heads(bytes, to_head)?..];
            } else {
                let mut head = std::mem::take(&mut self.head);
                let before = head.len();
                head.extend_from_slice(bytes);
                let used = self.heads(&head, to_head)?;
                // A final head that is whole now was not before, so it ends within the new bytes.
                bytes = if self.body.is_some() { &bytes[used - before..] } else { &[] };
                head.drain(..if self.body.is_some() { head.len() } else { used });
                self.head = head;
            }
        }
        let Some(body) = &mut self.body else {
            self.head.extend_from_slice(bytes);
            return match self.head_bytes + self.head.len() {
                0..HEAD_BYTES_MAX => Ok((all, None)),
                seen => Err(Wrong::Garbled(format!("head of {seen} bytes and no end, at most {HEAD_BYTES_MAX}"))),
            };
        };
        let check = &mut self.check;
        let mut data = |part: &[u8]| check.iter_mut().for_each(|c| c.feed(part));
        let (used, done) = body.feed(bytes, &mut data).map_err(Wrong::Garbled)?;
        let left = bytes.len() - used;
        Ok((all - left, if done { Some(self.done(to_head)?) } else { None }))
    }

    /// The connection has ended: whole only if the answer was to end that way.
    pub fn end(&self) -> Result<Option<Done>, Wrong> {
        match self.body {
            Some(Body::UntilClose) => Ok(Some(Done { keep_alive: false, ..self.done(false)? })),
            Some(Body::Length(_) | Body::Chunked(_)) | None => Ok(None),
        }
    }

    fn done(&self, to_head: bool) -> Result<Done, Wrong> {
        let made = self.made_bytes.filter(|_| !to_head);
        self.check.map_or(Ok(()), |c| c.verdict(made)).map_err(Wrong::Mixed)?;
        Ok(Done { status: self.status, keep_alive: self.keep_alive })
    }

    /// Reads heads off the start of `bytes`, stepping over 1xx; the bytes used. Sets `body` at the final one.
    fn heads(&mut self, bytes: &[u8], to_head: bool) -> Result<usize, Wrong> {
        let mut at = 0;
        while self.body.is_none() {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            match response.parse(&bytes[at..]) {
                Ok(httparse::Status::Complete(used)) => at += used,
                Ok(httparse::Status::Partial) => break,
                Err(fault) => return Err(Wrong::Garbled(format!("head: {fault}"))),
            }
            let status = response.code.unwrap_or(0);
            if status == 101 || status < 100 {
                return Err(Wrong::Garbled(format!("status {status}, which nobody asked for")));
            }
            if status >= 200 {
                self.begin(status, &response, to_head).map_err(Wrong::Garbled)?;
                self.recognize(&response)?;
            }
        }
        self.head_bytes += at;
        if self.head_bytes > HEAD_BYTES_MAX {
            let what = format!("heads of {} bytes, at most {HEAD_BYTES_MAX}", self.head_bytes);
            return Err(Wrong::Garbled(what));
        }
        Ok(at)
    }

    /// A 2xx must carry the request's token; an error may come from a proxy, which knows of none. 422 is the backend's
    /// word that the request's body was another's.
    fn recognize(&mut self, response: &httparse::Response) -> Result<(), Wrong> {
        let Some(expected) = self.expected else { return Ok(()) };
        let header = |name| response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
        self.made_bytes = header(BYTES_HEADER).and_then(digits);
        let shown = String::from_utf8_lossy(expected.bytes());
        match header(TOKEN_HEADER) {
            _ if self.status == 422 => Err(Wrong::Mixed(format!("the backend got another body with token {shown}"))),
            Some(token) if token == expected.bytes() => {
                self.check = Some(Check::new(expected));
                Ok(())
            }
            Some(token) => {
                let seen = String::from_utf8_lossy(token);
                Err(Wrong::Mixed(format!("an answer with token {seen} to the request with token {shown}")))
            }
            None if self.status < 300 => Err(Wrong::Mixed(format!("an answer without the token {shown}"))),
            None => Ok(()),
        }
    }

    /// RFC 9112 §6.3: what body follows a final head.
    fn begin(&mut self, status: u16, response: &httparse::Response, to_head: bool) -> Result<(), String> {
        self.status = status;
        self.keep_alive = response.version == Some(1);
        let mut length = None;
        let mut chunked = false;
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                let shown = || String::from_utf8_lossy(header.value);
                let value = digits(header.value).ok_or_else(|| format!("content-length `{}`", shown()))?;
                if length.is_some_and(|seen| seen != value) {
                    return Err(format!("two content-lengths, the second `{}`", shown()));
                }
                length = Some(value);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                if !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(format!("transfer-encoding `{}`", String::from_utf8_lossy(header.value)));
                }
                chunked = true;
            } else if header.name.eq_ignore_ascii_case("connection") {
                self.keep_alive |= names(header.value, "keep-alive");
                self.keep_alive &= !names(header.value, "close");
            }
        }
        self.body = Some(match (chunked, length) {
            _ if to_head || status == 204 || status == 304 => Body::Length(0),
            (true, Some(_)) => return Err("both content-length and transfer-encoding".into()),
            (true, None) => Body::CHUNKED,
            (false, Some(length)) => Body::Length(length),
            (false, None) => Body::UntilClose,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in one piece and byte by byte.
    fn check(bytes: &str, to_head: bool, expected: Result<Option<(u16, bool)>, &str>) {
        let feed = |answer: &mut Answer, bytes: &[u8]| match answer.feed(bytes, to_head) {
            Ok((used, done)) if used == bytes.len() => Ok(done),
            Ok((used, _)) => Err(format!("{} bytes after the end", bytes.len() - used)),
            Err(Wrong::Garbled(fault) | Wrong::Mixed(fault)) => Err(fault),
        };
        let shown = |done: Option<Done>| done.map(|d| (d.status, d.keep_alive));
        let whole = feed(&mut Answer::default(), bytes.as_bytes()).map(shown);
        let mut answer = Answer::default();
        let mut single = Ok(None);
        for at in 0..bytes.len() {
            single = match (single, feed(&mut answer, &bytes.as_bytes()[at..=at])) {
                (Ok(None), Ok(None)) if at + 1 == bytes.len() => Ok(answer.end().unwrap()),
                (Ok(None), result) => result,
                (Ok(Some(_)), _) => Err("1 bytes after the end".into()),
                (fault, _) => fault,
            };
        }
        for (how, seen) in [("whole", whole), ("single bytes", single.map(shown))] {
            match (seen, &expected) {
                (Err(fault), Err(part)) => assert!(fault.contains(part), "{how}: {fault}"),
                (seen, expected) => assert_eq!(seen, expected.map_err(String::from), "{how}: {bytes}"),
            }
        }
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false, Ok(Some((200, true))));
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", false, Ok(None));
        check("HTTP/1.1 204 No\r\n\r\n", false, Ok(Some((204, true))));
        check("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", false, Ok(Some((304, true))));
        check("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, Ok(Some((200, true))));
        check("HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", false, Ok(Some((404, true))));
        check("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false, Ok(Some((200, false))));
        check("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false, Ok(Some((200, false))));
        check(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 OK\r\nContent-Length: 1\r\n\r\nx",
            false,
            Ok(Some((201, true))),
        );
    }

    #[test]
    fn what_is_no_answer_is_a_fault() {
        check("nonsense", false, Err("head"));
        check("HTTP/1.1 101 Switch\r\n\r\n", false, Err("101"));
        check("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", false, Err("content-length `x`"));
        check("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", false, Err("two content-lengths"));
        check("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false, Err("both"));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", false, Err("gzip"));
        check("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", false, Err("1 bytes after"));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", false, Err("chunk size"));
        check(&format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(66_000)), false, Err("no end"));
        check(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(3000), false, Err("at most"));
    }

    #[test]
    fn an_answer_without_a_length_ends_with_the_connection() {
        let mut answer = Answer::default();
        assert_eq!(answer.end(), Ok(None));
        assert_eq!(answer.feed(b"HTTP/1.1 200 OK\r\n\r\nany", false), Ok((22, None)));
        assert_eq!(answer.end(), Ok(Some(Done { status: 200, keep_alive: false })));
    }

    #[test]
    fn an_answer_to_another_request_is_a_mix_up() {
        let check = |head: &str, of: u64, expected: Result<(), &str>| {
            let mut bytes = format!("HTTP/1.1 {head}\r\ncontent-length: 40\r\n\r\n").into_bytes();
            Token::new(of).put_body(&mut bytes, 40);
            let mut answer = Answer::default();
            answer.reset(Some(Token::new(7)));
            match (answer.feed(&bytes, false), expected) {
                (Ok((_, Some(_))), Ok(())) => {}
                (Err(Wrong::Mixed(why)), Err(part)) => assert!(why.contains(part), "{why}"),
                (seen, _) => panic!("{head}: {seen:?}, expected {expected:?}"),
            }
        };
        check("200 OK\r\nx-token: 0000000000000007\r\nx-body-bytes: 40", 7, Ok(()));
        check("200 OK\r\nx-token: 0000000000000007", 8, Err("byte 15 of a body"));
        check("200 OK\r\nx-token: 0000000000000007\r\nx-body-bytes: 41", 7, Err("40 bytes"));
        check("200 OK\r\nx-token: 0000000000000008", 7, Err("token 0000000000000008"));
        check("500 No\r\nx-token: 0000000000000008", 7, Err("token 0000000000000008"));
        check("200 OK", 7, Err("without the token"));
        check("503 Busy", 8, Ok(()));
        check("422 No\r\nx-token: 0000000000000007", 7, Err("another body"));
    }
}
