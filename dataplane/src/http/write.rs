//! Writes heads and chunk frames into a buffer that the caller keeps from request to request.

use super::head::Fieldset;
use super::{Request, Response};

/// `value` in decimal.
pub fn decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0u8; 20];
    let (mut at, mut left) = (digits.len(), value);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The size line of a chunk of `len` bytes; data and CR LF follow.
pub fn chunk_size(out: &mut Vec<u8>, len: usize) {
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for i in (0..digits).rev() {
        out.push(b"0123456789abcdef"[len >> (i * 4) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// One piece of a body, framed as a chunk if it is to be; an empty piece is nothing.
pub fn piece(out: &mut Vec<u8>, data: &[u8], chunked: bool) {
    if data.is_empty() {
        return;
    }
    if chunked {
        chunk_size(out, data.len());
    }
    out.extend_from_slice(data);
    if chunked {
        out.extend_from_slice(b"\r\n");
    }
}

/// The end of a chunked body, with its trailer section: whole lines that `trailer::check` has judged, or nothing.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    for part in [b"0\r\n", trailers, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// One field whose value is a number.
pub fn number_field(out: &mut Vec<u8>, name_colon: &str, value: u64) {
    out.extend_from_slice(name_colon.as_bytes());
    decimal(out, value);
    out.extend_from_slice(b"\r\n");
}

/// One field.
pub fn field(out: &mut Vec<u8>, name_colon: &str, value: &[u8]) {
    for part in [name_colon.as_bytes(), value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The first line of a request that travels on, and its fields that do, but for some.
pub fn request(out: &mut Vec<u8>, r: &Request<'_, '_>, without: Fieldset) {
    out.extend_from_slice(r.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(r.path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields(out, r.fields_without(without));
}

/// The first line of a response that travels on, and its fields that do.
pub fn response(out: &mut Vec<u8>, r: &Response<'_, '_>) {
    status_line(out, r.status, r.reason);
    fields(out, r.fields());
}

/// `HTTP/1.1 200 OK`.
pub fn status_line(out: &mut Vec<u8>, status: u16, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn fields<'a, 'b: 'a>(out: &mut Vec<u8>, all: impl Iterator<Item = &'a httparse::Header<'b>>) {
    for h in all {
        out.extend_from_slice(h.name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(h.value);
        out.extend_from_slice(b"\r\n");
    }
}

/// The reason phrases of the statuses that a router gives itself.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        507 => "Insufficient Storage",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_standard_library_writes_them() {
        for n in [0, 1, 9, 10, 15, 16, 255, 256, 4095, 4096, 65535, 1 << 20] {
            let (mut d, mut h) = (vec![], vec![]);
            decimal(&mut d, n as u64);
            chunk_size(&mut h, n);
            assert_eq!((d, h), (n.to_string().into_bytes(), format!("{n:x}\r\n").into_bytes()));
        }
    }
}
