//! One keep-alive HTTP/1.1 connection: writes a request, reads its answer.

use bytes::{Buf, BytesMut};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;
const FIELDS_MAX: usize = 64;

/// An answer, as far as the demo wants to know it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// `x-ezone`: the zone that served it.
    pub zone: Option<String>,
    /// `x-ezone-outcome: unknown`: nobody can tell whether it was done.
    pub unknown: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// An open connection.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    buffer: BytesMut,
    /// The last answer was the last on this connection.
    closing: bool,
}

struct Head {
    response: Response,
    bytes: usize,
    /// `None`: the body ends with the connection.
    body_bytes: Option<usize>,
    closing: bool,
}

impl Client {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> io::Result<Client> {
        let socket = TcpStream::connect(to).await?;
        socket.set_nodelay(true)?;
        Ok(Client { socket, buffer: BytesMut::with_capacity(2048), closing: false })
    }

    /// Can one more request be sent? A connection that the server closed while it was idle says no.
    pub fn is_open(&self) -> bool {
        let idle = matches!(self.socket.try_read(&mut [0; 1]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        !self.closing && self.buffer.is_empty() && idle
    }

    /// Writes a whole request and reads its answer. After an error nobody knows whether it was acted on.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Response> {
        self.socket.write_all(request).await?;
        loop {
            if let Some(head) = head(&self.buffer)? {
                self.buffer.advance(head.bytes);
                if head.response.status >= 200 {
                    return self.body(head).await;
                }
                continue; // 1xx: the answer follows
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(wrong(format!("an answer's head of more than {HEAD_BYTES_MAX} bytes")));
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn body(&mut self, head: Head) -> io::Result<Response> {
        let mut response = head.response;
        self.closing = head.closing || head.body_bytes.is_none();
        let Some(bytes) = head.body_bytes else { return Ok(response) }; // the status says enough
        if bytes > BODY_BYTES_MAX {
            return Err(wrong(format!("an answer of {bytes} bytes, at most {BODY_BYTES_MAX}")));
        }
        while self.buffer.len() < bytes {
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        response.body = self.buffer.split_to(bytes).to_vec();
        Ok(response)
    }
}

fn head(from: &[u8]) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(bytes) = parsed.parse(from).map_err(|e| wrong(format!("not an answer: {e}")))?
    else {
        return Ok(None);
    };
    let status = parsed.code.unwrap_or(0);
    let mut head = Head {
        response: Response { status, ..Response::default() },
        bytes,
        body_bytes: matches!(status, 204 | 304).then_some(0),
        closing: parsed.version == Some(0),
    };
    for field in parsed.headers {
        let value = String::from_utf8_lossy(field.value);
        match field.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let bytes = value.trim().parse().map_err(|_| wrong(format!("a content-length of {value:?}")))?;
                head.body_bytes = Some(bytes);
            }
            "connection" => head.closing |= value.eq_ignore_ascii_case("close"),
            "x-ezone" => head.response.zone = Some(value.into_owned()),
            "x-ezone-outcome" => head.response.unknown = value.eq_ignore_ascii_case("unknown"),
            _ => {}
        }
    }
    Ok(Some(head))
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
