//! Decodes a message body in pieces, wherever the bytes happen to be split: by length, by chunks, or until the close.
//!
//! Chunk extensions are read, bounded, and dropped. Trailer lines are given out as they stand, bounded too; `trailer` judges
//! them once they are whole.

use super::Fault;
use std::ops::Range;

/// Bytes of size lines, extensions and trailers that one body may spend beyond what its data allows.
const OVERHEAD_MAX: u32 = 8192;
/// Each chunk allows so many bytes beside its data, and each byte of data two more: small chunks are legal, and so are signatures
/// in extensions; extensions that outweigh their data only keep a reader busy.
const OVERHEAD_OF_CHUNK: u32 = 16;

/// How far a body has been read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing is left.
    Done,
    /// So many bytes are left.
    Length(u64),
    /// RFC 9112 §7.1.
    Chunked(Chunk),
    /// A response without a length: everything until the connection ends.
    UntilClose,
}

/// Where in a chunked body the next byte is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    at: At,
    /// Of the size line: its value so far; of the data: bytes left.
    left: u64,
    /// Spent of `OVERHEAD_MAX`.
    overhead: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// A first digit has to come.
    Size,
    Digits,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Line,
    /// In a trailer line.
    Trailer,
    TrailerLf,
    EndLf,
}

/// What the next bytes of a body are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Payload, at this place of the bytes given.
    Data(Range<usize>),
    /// Of the trailer section: whole lines or parts of them with their CR LF, without the empty line that ends it.
    Trailer(Range<usize>),
    /// Not known yet: give more bytes.
    More,
    /// The body is whole.
    End,
}

impl Body {
    /// A chunked body from its first byte.
    pub fn chunked() -> Body {
        Body::Chunked(Chunk { at: At::Size, left: 0, overhead: 0 })
    }

    /// Reads on: how many bytes of `from` were used, and what they were.
    pub fn next(&mut self, from: &[u8]) -> Result<(usize, Piece), Fault> {
        match self {
            Body::Done | Body::Length(0) => {
                *self = Body::Done;
                Ok((0, Piece::End))
            }
            _ if from.is_empty() => Ok((0, Piece::More)),
            Body::Length(left) => {
                let n = from.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                Ok((n, Piece::Data(0..n)))
            }
            Body::UntilClose => Ok((from.len(), Piece::Data(0..from.len()))),
            Body::Chunked(chunk) => {
                let (used, piece) = chunk.next(from)?;
                if piece == Piece::End {
                    *self = Body::Done;
                }
                Ok((used, piece))
            }
        }
    }

    /// Has it been read to its end? (`UntilClose` never is.)
    pub fn is_done(&self) -> bool {
        matches!(self, Body::Done | Body::Length(0))
    }
}

impl Chunk {
    fn next(&mut self, from: &[u8]) -> Result<(usize, Piece), Fault> {
        let mut trailer = matches!(self.at, At::Trailer | At::TrailerLf).then_some(0);
        for (i, &b) in from.iter().enumerate() {
            if self.at == At::Data {
                let n = (from.len() - i).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= n as u64;
                self.overhead = self.overhead.saturating_sub(u32::try_from(n).unwrap_or(u32::MAX).saturating_mul(2));
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return Ok((i + n, Piece::Data(i..i + n)));
            }
            self.overhead += 1;
            if self.overhead > OVERHEAD_MAX {
                return Err(Fault::bad("chunk extensions or trailers too long", "", "at most 8192 bytes of them"));
            }
            if self.at == At::Line {
                match trailer {
                    Some(since) if b == b'\r' => return Ok((i, Piece::Trailer(since..i))),
                    None if b != b'\r' => trailer = Some(i),
                    Some(_) | None => {}
                }
            }
            if self.step(b)? {
                return Ok((i + 1, Piece::End));
            }
        }
        Ok((from.len(), trailer.map_or(Piece::More, |since| Piece::Trailer(since..from.len()))))
    }

    /// Takes one byte that is not data; true at the end of the body.
    fn step(&mut self, b: u8) -> Result<bool, Fault> {
        self.at = match (self.at, b) {
            (At::Size | At::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digit(b)?;
                At::Digits
            }
            (At::Digits, b';') => At::Extension,
            (At::Digits | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, b'\t' | b' '..=b'~' | 0x80..) => At::Extension,
            (At::SizeLf, b'\n') if self.left == 0 => At::Line,
            (At::SizeLf, b'\n') => {
                self.overhead = self.overhead.saturating_sub(OVERHEAD_OF_CHUNK);
                At::Data
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Line, b'\r') => At::EndLf,
            (At::Line, b'!'..=b'~') => At::Trailer,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Trailer, b'\t' | b' '..=b'~' | 0x80..) => At::Trailer,
            (At::TrailerLf, b'\n') => At::Line,
            (At::EndLf, b'\n') => return Ok(true),
            (at, b) => return Err(Fault::bad("malformed chunked body", [b], at.expected())),
        };
        Ok(false)
    }

    fn digit(&mut self, b: u8) -> Result<(), Fault> {
        let value = u64::from(char::from(b).to_digit(16).expect("the caller matched a hex digit"));
        if self.left >> 59 != 0 {
            return Err(Fault::bad("chunk size too large", [b], "a size below 2^63"));
        }
        self.left = self.left << 4 | value;
        Ok(())
    }
}

impl At {
    fn expected(self) -> &'static str {
        match self {
            At::Size => "a chunk size in hexadecimal",
            At::Digits => "a hexadecimal digit, ';' or CR LF after the chunk size",
            At::Extension => "a printable chunk extension, then CR LF",
            At::Data | At::DataCr | At::DataLf => "CR LF after the chunk's data",
            At::Line | At::Trailer => "a trailer field or an empty line",
            At::SizeLf | At::TrailerLf | At::EndLf => "LF after CR",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `raw` given in two parts split at `at`: the payload and how many bytes were used, or the error.
    fn decode(body: Body, raw: &[u8], at: usize) -> Result<(Vec<u8>, usize), &'static str> {
        decode_all(body, raw, at).map(|(out, _, used)| (out, used))
    }

    fn decode_all(mut body: Body, raw: &[u8], at: usize) -> Result<(Vec<u8>, Vec<u8>, usize), &'static str> {
        let (mut out, mut trailers, mut used) = (vec![], vec![], 0);
        for part_end in [at, raw.len()] {
            loop {
                let from = &raw[used..part_end];
                let (n, piece) = body.next(from).map_err(|f| f.error)?;
                used += n;
                match piece {
                    Piece::Data(r) => out.extend_from_slice(&from[r]),
                    Piece::Trailer(r) => trailers.extend_from_slice(&from[r]),
                    Piece::More => break,
                    Piece::End => return Ok((out, trailers, used)),
                }
            }
        }
        Err("not whole")
    }

    #[test]
    fn a_body_is_the_same_wherever_it_is_split() {
        let chunked = b"4;a=\"b\"\r\nWiki\r\n6\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nx-trailer: 1\r\n\r\nNEXT";
        for at in 0..=chunked.len() {
            let (out, used) = decode(Body::chunked(), chunked, at).unwrap();
            assert_eq!(
                (out.as_slice(), used),
                (&b"Wikipedia in \r\n\r\nchunks."[..], chunked.len() - 4),
                "split at {at}"
            );
        }
        for at in 0..=9 {
            assert_eq!(decode(Body::Length(5), b"helloNEXT", at), Ok((b"hello".to_vec(), 5)));
        }
    }

    #[test]
    fn trailers_are_given_out_as_they_stand_wherever_they_are_split() {
        for trailers in ["", "a: 1\r\n", "a: 1\r\nb:\r\nlong-name: some value\r\n"] {
            let raw = format!("1\r\nx\r\n0\r\n{trailers}\r\nNEXT");
            for at in 0..=raw.len() {
                let (out, got, used) = decode_all(Body::chunked(), raw.as_bytes(), at).unwrap();
                let got = String::from_utf8(got).unwrap();
                assert_eq!((out.as_slice(), got.as_str(), used), (&b"x"[..], trailers, raw.len() - 4), "split at {at}");
            }
        }
    }

    #[test]
    fn a_malformed_chunk_is_refused_wherever_it_is_split() {
        let bad: [&[u8]; 12] = [
            b"\r\nabc",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"0\r\n x: folded\r\n\r\n",
            b"0\r\nx: 1\n\r\n",
            b"fffffffffffffffff\r\n",
        ];
        for raw in bad {
            for at in 0..=raw.len() {
                let got = decode(Body::chunked(), raw, at);
                assert!(
                    matches!(got, Err(e) if e != "not whole"),
                    "{:?} split at {at}: {got:?}",
                    super::super::shown(raw)
                );
            }
        }
        let endless = [&b"1;"[..], &[b'a'; 9000]].concat();
        assert_eq!(decode(Body::chunked(), &endless, 4), Err("chunk extensions or trailers too long"));
    }
}
