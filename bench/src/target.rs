//! Turns a URL, a method, headers and a body into an address and the bytes of a request.

use std::net::{SocketAddr, ToSocketAddrs};

/// A body from the command line or a file may be this long.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Where the requests go and what they are.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub request: Vec<u8>,
    /// The method is HEAD: answers have no body.
    pub is_head: bool,
}

/// The parts of `http://host:port/path`.
#[derive(Debug, PartialEq, Eq)]
pub struct Url<'a> {
    pub authority: &'a str,
    pub path: String,
}

pub fn parse_url(url: &str) -> Result<Url<'_>, String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("URL `{url}`: scheme `{scheme}`, expected http")),
        None => url,
    };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = path.split('#').next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return Err(format!("URL `{url}`: expected http://host:port/path"));
    }
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("URL `{url}`: spaces, controls and non-ASCII characters must be percent-encoded"));
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Url { authority, path: format!("{slash}{path}") })
}

/// Resolves the URL's host. Loads on machines other than this one only with `allow_remote`.
pub fn resolve(authority: &str, allow_remote: bool) -> Result<SocketAddr, String> {
    let port_given = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let with_port = if port_given { authority.to_string() } else { format!("{authority}:80") };
    let mut addresses = with_port.to_socket_addrs().map_err(|e| format!("host `{authority}`: {e}"))?;
    let address = addresses.next().ok_or_else(|| format!("host `{authority}`: no address"))?;
    if !address.ip().is_loopback() && !allow_remote {
        return Err(format!("{address} is not this machine: --allow-remote says that its owner agrees to the load"));
    }
    if address.port() == 0 {
        return Err(format!("host `{authority}`: port 0, expected 1 to 65535"));
    }
    Ok(address)
}

/// The request's bytes. `headers` are `name: value`; `host` and `content-length` are ours.
pub fn build(method: &str, url: &Url, headers: &[String], body: &[u8]) -> Result<Vec<u8>, String> {
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
        return Err(format!("--method `{method}`: expected upper-case letters, as GET or POST"));
    }
    let mut head = format!("{method} {} HTTP/1.1\r\n", url.path);
    let mut host = format!("host: {}\r\n", url.authority);
    for header in headers {
        let (name, value) = split_header(header)?;
        match name.to_ascii_lowercase().as_str() {
            "host" => host = format!("host: {value}\r\n"),
            "content-length" | "transfer-encoding" => {
                return Err(format!("--header `{header}`: the driver frames the body itself"));
            }
            _ => head.push_str(&format!("{name}: {value}\r\n")),
        }
    }
    head.push_str(&host);
    if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    Ok([head.as_bytes(), body].concat())
}

fn split_header(header: &str) -> Result<(&str, &str), String> {
    let bad = || format!("--header `{}`: expected `name: value`", header.escape_debug());
    let (name, value) = header.split_once(':').ok_or_else(bad)?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f) {
        return Err(bad());
    }
    Ok((name, value.trim()))
}

/// `--body`: the text itself, or `@file`.
pub fn load_body(body: &str) -> Result<Vec<u8>, String> {
    let bytes = match body.strip_prefix('@') {
        None => body.as_bytes().to_vec(),
        Some(path) => {
            use std::io::Read;
            let mut bytes = Vec::new();
            std::fs::File::open(path)
                .and_then(|f| f.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
                .map_err(|e| format!("--body @{path}: {e}"))?;
            bytes
        }
    };
    if bytes.len() > BODY_BYTES_MAX {
        return Err(format!("--body of more than {BODY_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_splits_into_authority_and_path() {
        let check = |url: &str, authority: &str, path: &str| {
            assert_eq!(parse_url(url).map(|u| (u.authority.to_string(), u.path)), Ok((authority.into(), path.into())));
        };
        check("http://127.0.0.1:80/a?b=c", "127.0.0.1:80", "/a?b=c");
        check("http://localhost", "localhost", "/");
        check("[::1]:8080?x", "[::1]:8080", "/?x");
        check("http://h/a#b", "h", "/a");
        for bad in ["https://h/", "http://", "http:///x", "http://u:p@h/", "http://h/a b", "http://h/\r\n", "ftp://h"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_machine_is_loaded_only_when_allowed() {
        assert_eq!(resolve("127.0.0.1:81", false), Ok(([127, 0, 0, 1], 81).into()));
        assert_eq!(resolve("127.0.0.1", false), Ok(([127, 0, 0, 1], 80).into()));
        assert!(resolve("[::1]:80", false).is_ok());
        assert!(resolve("192.0.2.1:80", false).unwrap_err().contains("--allow-remote"));
        assert!(resolve("192.0.2.1:80", true).is_ok());
        assert!(resolve("127.0.0.1:0", false).is_err());
        assert!(resolve("127.0.0.1:99999", false).is_err());
    }

    #[test]
    fn a_request_has_one_host_and_a_length_when_it_has_a_body() {
        let url = Url { authority: "h:1", path: "/p".into() };
        let text = |method, headers: &[&str], body: &str| {
            let headers: Vec<String> = headers.iter().map(|h| h.to_string()).collect();
            build(method, &url, &headers, body.as_bytes()).map(|b| String::from_utf8(b).unwrap())
        };
        assert_eq!(text("GET", &[], "").unwrap(), "GET /p HTTP/1.1\r\nhost: h:1\r\n\r\n");
        assert_eq!(
            text("POST", &["x-shard: loc=1,2", "Host:  z"], "ab").unwrap(),
            "POST /p HTTP/1.1\r\nx-shard: loc=1,2\r\nhost: z\r\ncontent-length: 2\r\n\r\nab"
        );
        for bad in ["no colon", ": v", "a b: c", "a: b\r\nc: d", "Content-Length: 3"] {
            assert!(text("GET", &[bad], "").is_err(), "{bad}");
        }
        assert!(text("GE T", &[], "").is_err());
    }
}
