//! Finds where an HTTP/1.1 body ends, and its data between the framing, without keeping any of it.

/// A chunk's size line with its extensions, and each trailer line, may be this long.
const LINE_BYTES_MAX: u32 = 4096;
/// All trailer lines together.
const TRAILER_BYTES_MAX: u32 = 16 * 1024;

/// How far the body has been read. `feed` moves it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunk),
    /// An answer without a length: it ends with the connection.
    UntilClose,
}

/// Where in the chunked coding (RFC 9112 §7.1) the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Size { size: u64, digits: u32, line: u32 },
    Extension { size: u64, line: u32 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer { line: u32, total: u32 },
    TrailerLf { line: u32, total: u32 },
}

impl Body {
    /// A chunked body of which nothing has been read.
    pub const CHUNKED: Body = Body::Chunked(Chunk::SIZE);

    /// Takes bytes: how many of them belonged to the body, and whether it is whole. `data` gets those without framing.
    pub fn feed(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> Result<(usize, bool), String> {
        match self {
            Body::UntilClose => {
                data(bytes);
                Ok((bytes.len(), false))
            }
            Body::Length(left) => {
                let used = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= used as u64;
                data(&bytes[..used]);
                Ok((used, *left == 0))
            }
            Body::Chunked(chunk) => chunk.feed(bytes, data),
        }
    }
}

impl Chunk {
    const SIZE: Chunk = Chunk::Size { size: 0, digits: 0, line: 0 };

    fn feed(&mut self, bytes: &[u8], data: &mut impl FnMut(&[u8])) -> Result<(usize, bool), String> {
        let mut at = 0;
        while at < bytes.len() {
            if let Chunk::Data { left } = self {
                let used = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                data(&bytes[at..at + used]);
                at += used;
                *left -= used as u64;
                if *left == 0 {
                    *self = Chunk::DataCr;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            match self.step(byte)? {
                Some(next) => *self = next,
                None => return Ok((at, true)),
            }
        }
        Ok((at, false))
    }

    /// The state after one byte of framing; `None` when that byte ends the body.
    fn step(self, byte: u8) -> Result<Option<Chunk>, String> {
        Ok(Some(match (self, byte) {
            (Chunk::Size { size, digits, line }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from((byte as char).to_digit(16).expect("the pattern admits hex digits only"));
                if digits == 16 {
                    return Err("chunk size of more than 16 digits".into());
                }
                Chunk::Size { size: size << 4 | digit, digits: digits + 1, line: line + 1 }
            }
            (Chunk::Size { digits: 0, .. }, _) => return Err(format!("chunk size starts with byte {byte:#04x}")),
            (Chunk::Size { size, .. } | Chunk::Extension { size, .. }, b'\r') => Chunk::SizeLf { size },
            (Chunk::Size { size, line, .. }, b';' | b' ' | b'\t') => Chunk::Extension { size, line: line + 1 },
            (Chunk::Size { .. }, _) => return Err(format!("chunk size holds byte {byte:#04x}")),
            (Chunk::Extension { line: LINE_BYTES_MAX.., .. }, _) => return Err("chunk size line too long".into()),
            (Chunk::Extension { .. }, b'\n') => return Err("chunk size line ends without CR".into()),
            (Chunk::Extension { size, line }, _) => Chunk::Extension { size, line: line + 1 },
            (Chunk::SizeLf { size: 0 }, b'\n') => Chunk::Trailer { line: 0, total: 0 },
            (Chunk::SizeLf { size }, b'\n') => Chunk::Data { left: size },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::SIZE,
            (Chunk::Trailer { line, total }, b'\r') => Chunk::TrailerLf { line, total },
            (Chunk::Trailer { total: TRAILER_BYTES_MAX.., .. }, _) => return Err("trailers too long".into()),
            (Chunk::Trailer { .. }, b'\n') => return Err("trailer line ends without CR".into()),
            (Chunk::Trailer { line, total }, _) => Chunk::Trailer { line: line + 1, total: total + 1 },
            (Chunk::TrailerLf { line: 0, .. }, b'\n') => return Ok(None),
            (Chunk::TrailerLf { total, .. }, b'\n') => Chunk::Trailer { line: 0, total },
            (Chunk::SizeLf { .. } | Chunk::DataCr | Chunk::DataLf | Chunk::TrailerLf { .. }, _) => {
                return Err(format!("byte {byte:#04x} where a chunk's CR LF was expected"));
            }
            (Chunk::Data { .. }, _) => unreachable!("feed takes data in one piece"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body's length on the wire, the same in one piece and byte by byte; `None` if it is not whole.
    fn check(mut body: Body, bytes: &[u8], expected: Result<Option<usize>, &str>) {
        let start = body;
        let whole = body.feed(bytes, &mut |_| {}).map(|(used, done)| done.then_some(used));
        let mut body = start;
        let mut single = Ok(None);
        for at in 0..bytes.len() {
            match body.feed(&bytes[at..=at], &mut |_| {}) {
                Ok((_, false)) => {}
                Ok((_, true)) => single = Ok(Some(at + 1)),
                Err(fault) => single = Err(fault),
            }
            if single != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, single, "cut into single bytes the body must read the same");
        match (whole, expected) {
            (Err(fault), Err(part)) => assert!(fault.contains(part), "{fault}"),
            (whole, expected) => assert_eq!(whole, expected.map_err(String::from)),
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        check(Body::Length(3), b"abcGET", Ok(Some(3)));
        check(Body::Length(3), b"ab", Ok(None));
        check(Body::UntilClose, b"anything", Ok(None));
        check(Body::CHUNKED, b"0\r\n\r\nGET", Ok(Some(5)));
        check(Body::CHUNKED, b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", Ok(Some(32)));
        check(Body::CHUNKED, b"0\r\nDigest: x\r\nA: b\r\n\r\n", Ok(Some(22)));
        check(Body::CHUNKED, b"5\r\nab", Ok(None));
    }

    #[test]
    fn the_data_is_what_stands_between_the_framing() {
        let (mut body, mut data) = (Body::CHUNKED, vec![]);
        let done = body.feed(b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n", &mut |d| data.extend_from_slice(d));
        assert_eq!((done.unwrap().1, data.as_slice()), (true, b"abcde".as_slice()));
    }

    #[test]
    fn broken_chunks_are_refused() {
        check(Body::CHUNKED, b"\r\n", Err("starts with byte 0x0d"));
        check(Body::CHUNKED, b"zz\r\n", Err("starts with byte 0x7a"));
        check(Body::CHUNKED, b"1g\r\n", Err("holds byte 0x67"));
        check(Body::CHUNKED, b"3\r\nabcd\r\n", Err("0x64 where"));
        check(Body::CHUNKED, b"3\nabc", Err("holds byte 0x0a"));
        check(Body::CHUNKED, b"11111111111111111\r\n", Err("16 digits"));
        let long = [b"1;".as_slice(), &vec![b'x'; 5000], b"\r\n"].concat();
        check(Body::CHUNKED, &long, Err("line too long"));
        let long = [b"0\r\n".as_slice(), &vec![b'x'; 17_000], b"\r\n\r\n"].concat();
        check(Body::CHUNKED, &long, Err("trailers too long"));
    }

    #[test]
    fn the_largest_chunk_size_does_not_overflow() {
        check(Body::CHUNKED, b"ffffffffffffffff\r\nabc", Ok(None));
    }
}
