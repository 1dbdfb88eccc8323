//! A token that only one request has, and the body that only this token makes: so that a mix-up of two requests shows.
//!
//! ```text
//! x-token: 00f3a1b2c4d5e6f7
//! body     00f3a1b2c4d5e6f7 00000000000000\n      token, space, number of the line in hex, newline: 32 bytes a line,
//!          00f3a1b2c4d5e6f7 00000000000001\n      cut off wherever the body ends
//! ```
//! Each line's number makes a piece that is lost, doubled or moved show as well.

/// The header that carries the token, both ways.
pub const TOKEN_HEADER: &str = "x-token";
/// The header that says how long the body was when it was made, whatever frames it now.
pub const BYTES_HEADER: &str = "x-body-bytes";
/// Bytes of one line of a body.
const LINE: usize = 32;

/// A request's own number, as it travels: 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; 16]);

impl Token {
    pub fn new(number: u64) -> Token {
        let mut token = [0; 16];
        hex(&mut token, number);
        Token(token)
    }

    /// What a header says.
    pub fn read(value: &[u8]) -> Option<Token> {
        value.try_into().ok().map(Token)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a body of `len` bytes.
    pub fn put_body(&self, out: &mut Vec<u8>, len: usize) {
        let end = out.len() + len;
        for number in 0..len.div_ceil(LINE) {
            out.extend_from_slice(&self.line(number as u64));
        }
        out.truncate(end);
    }

    fn line(&self, number: u64) -> [u8; LINE] {
        let mut line = [b' '; LINE];
        line[..16].copy_from_slice(&self.0);
        hex(&mut line[17..31], number);
        line[31] = b'\n';
        line
    }
}

/// `number` in hex, right-aligned.
fn hex(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[number as usize & 15];
        number >>= 4;
    }
}

/// Compares a body, as it comes in pieces, with the one that a token makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    token: Token,
    at: u64,
    /// Where it first differed.
    wrong_at: Option<u64>,
}

impl Check {
    pub fn new(token: Token) -> Check {
        Check { token, at: 0, wrong_at: None }
    }

    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.wrong_at.is_none() {
            let line = self.token.line(self.at / LINE as u64);
            let from = (self.at % LINE as u64) as usize;
            let n = bytes.len().min(LINE - from);
            if let Some(off) = (0..n).find(|i| bytes[*i] != line[from + i]) {
                self.wrong_at = Some(self.at + off as u64);
            }
            self.at += n as u64;
            bytes = &bytes[n..];
        }
    }

    /// Whether all of it, `len` bytes if that was said, was the token's.
    pub fn verdict(&self, len: Option<u64>) -> Result<(), String> {
        let token = String::from_utf8_lossy(self.token.bytes());
        match (self.wrong_at, len) {
            (Some(at), _) => Err(format!("byte {at} of a body is not the one of token {token}")),
            (None, Some(len)) if len != self.at => {
                Err(format!("a body of {} bytes, token {token} made {len}", self.at))
            }
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(number: u64, len: usize) -> Vec<u8> {
        let mut out = vec![];
        Token::new(number).put_body(&mut out, len);
        out
    }

    fn check(number: u64, bytes: &[u8], said: Option<u64>, expected: Result<(), &str>) {
        for piece in [1, 7, 31, 32, 33, bytes.len().max(1)] {
            let mut check = Check::new(Token::new(number));
            bytes.chunks(piece).for_each(|piece| check.feed(piece));
            match (check.verdict(said), expected) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (seen, _) => panic!("pieces of {piece}: {seen:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn a_body_is_known_as_its_own_tokens_and_as_no_other() {
        assert_eq!(body(0xf3, 34), b"00000000000000f3 00000000000000\n00");
        check(7, &body(7, 1000), Some(1000), Ok(()));
        check(7, &body(7, 0), None, Ok(()));
        check(7, &body(8, 1000), None, Err("byte 15 of a body"));
        check(7, &body(7, 999), Some(1000), Err("a body of 999 bytes"));
    }

    #[test]
    fn a_piece_that_is_lost_doubled_or_moved_shows() {
        let whole = body(7, 96);
        check(7, &[&whole[..32], &whole[64..]].concat(), None, Err("byte 62"));
        check(7, &[&whole[..32], &whole[..32]].concat(), None, Err("byte 62"));
        check(7, &[&whole[..64], &body(9, 96)[64..]].concat(), None, Err("byte 79"));
    }
}
