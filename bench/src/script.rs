//! Says what each request is: its number decides its path, its header from a list, its token and its body.

use crate::random::Random;
use crate::target::Url;
use crate::token::{BYTES_HEADER, TOKEN_HEADER, Token};
use std::fs::File;
use std::io::{Read, Write};

/// A body from the command line or a file, and a list, may be this long.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// What all requests of a run have in common, and what they take in turn. The same number is the same request.
#[derive(Debug, Clone)]
pub struct Script {
    method: String,
    paths: Vec<String>,
    /// One of these for each request, `name: value`; may be empty.
    choices: Vec<String>,
    /// Host and the headers of every request, each with its line end.
    common: String,
    body: Body,
    /// Requests carry a token, and answers have to show it.
    tokens: bool,
    seed: u64,
}

/// What follows the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The same bytes for all.
    Fixed(Vec<u8>),
    /// So many bytes, uniformly drawn: with tokens the token's own, else all `x`.
    Drawn { least: usize, most: usize },
}

impl Script {
    /// The same request for all. `headers` are `name: value`; `host` and `content-length` are ours.
    pub fn new(method: &str, url: &Url, headers: &[String], body: Body) -> Result<Script, String> {
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err(format!("--method `{method}`: expected upper-case letters, as GET or POST"));
        }
        let mut common = String::new();
        let mut host = format!("host: {}\r\n", url.authority);
        for header in headers {
            match checked(header)? {
                (name, value) if name.eq_ignore_ascii_case("host") => host = format!("host: {value}\r\n"),
                (name, value) => common.push_str(&format!("{name}: {value}\r\n")),
            }
        }
        common.push_str(&host);
        let (method, paths) = (method.to_owned(), vec![url.path.clone()]);
        Ok(Script { method, paths, choices: vec![], common, body, tokens: false, seed: 0 })
    }

    /// Requests take one of these paths each, instead of the URL's.
    pub fn with_paths(mut self, paths: Vec<String>) -> Result<Script, String> {
        if let Some(bad) = paths.iter().find(|p| !p.starts_with('/') || !p.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(format!(
                "path `{}`: expected it to begin with / and to be percent-encoded",
                bad.escape_debug()
            ));
        }
        if !paths.is_empty() {
            self.paths = paths;
        }
        Ok(self)
    }

    /// Requests take one of these headers each, besides those that all have.
    pub fn with_choices(mut self, headers: &[String]) -> Result<Script, String> {
        for header in headers {
            let (name, value) = checked(header)?;
            self.choices.push(format!("{name}: {value}\r\n"));
        }
        Ok(self)
    }

    /// Each request carries a token of its own; `seed` tells one run's from another's, and decides what is drawn.
    pub fn with_tokens(mut self, tokens: bool, seed: u64) -> Script {
        (self.tokens, self.seed) = (tokens, seed);
        self
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The token of request `number`, if requests have tokens.
    pub fn token(&self, number: u64) -> Option<Token> {
        // Splitmix64 maps each state to another output, so no two numbers of a run share a token.
        self.tokens.then(|| Token::new(Random(Random(self.seed).bits().wrapping_add(number)).bits()))
    }

    /// Appends request `number`.
    pub fn put(&self, number: u64, out: &mut Vec<u8>) {
        let mut random = Random(self.seed ^ number.wrapping_mul(0xD134_2543_DE82_EF95));
        let path = &self.paths[random.below(self.paths.len() as u64) as usize];
        let choice = self.choices.get(random.below(self.choices.len() as u64) as usize).map_or("", String::as_str);
        for part in [self.method.as_str(), " ", path, " HTTP/1.1\r\n", choice, &self.common] {
            out.extend_from_slice(part.as_bytes());
        }
        let token = self.token(number);
        let (len, made) = match &self.body {
            Body::Fixed(bytes) => (bytes.len(), false),
            Body::Drawn { least, most } => (random.between(*least, *most), true),
        };
        let mut field = |name: &str, value: &dyn std::fmt::Display| {
            write!(out, "{name}: {value}\r\n").expect("writing into memory does not fail");
        };
        if let Some(token) = token {
            field(TOKEN_HEADER, &String::from_utf8_lossy(token.bytes()));
        }
        if token.is_some() && made {
            field(BYTES_HEADER, &len);
        }
        if len > 0 || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            field("content-length", &len);
        }
        out.extend_from_slice(b"\r\n");
        match (&self.body, token) {
            (Body::Fixed(bytes), _) => out.extend_from_slice(bytes),
            (Body::Drawn { .. }, Some(token)) => token.put_body(out, len),
            (Body::Drawn { .. }, None) => out.resize(out.len() + len, b'x'),
        }
    }
}

/// A header that the driver may send: name and value.
fn checked(header: &str) -> Result<(&str, &str), String> {
    let (name, value) = split_header(header)?;
    match name.to_ascii_lowercase().as_str() {
        "content-length" | "transfer-encoding" => {
            Err(format!("--header `{header}`: the driver frames the body itself"))
        }
        TOKEN_HEADER | BYTES_HEADER => Err(format!("--header `{header}`: the driver's own, see --tokens")),
        _ => Ok((name, value)),
    }
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
    match body.strip_prefix('@') {
        Some(path) => load("--body", path),
        None if body.len() > BODY_BYTES_MAX => Err(format!("--body of more than {BODY_BYTES_MAX} bytes")),
        None => Ok(body.as_bytes().to_vec()),
    }
}

/// The lines of a file that are not empty.
pub fn load_lines(option: &str, path: &str) -> Result<Vec<String>, String> {
    let text = String::from_utf8(load(option, path)?).map_err(|_| format!("{option} {path}: not UTF-8"))?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(String::from).collect();
    if lines.is_empty() { Err(format!("{option} {path}: no lines")) } else { Ok(lines) }
}

fn load(option: &str, path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("{option} {path}: {e}"))?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(format!("{option} {path}: more than {BODY_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn script(method: &str, headers: &[&str], body: Body) -> Result<Script, String> {
        let headers: Vec<String> = headers.iter().map(|h| h.to_string()).collect();
        Script::new(method, &Url { authority: "h:1", path: "/p".into() }, &headers, body)
    }

    fn text(script: &Script, number: u64) -> String {
        let mut out = vec![];
        script.put(number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_request_has_one_host_and_a_length_when_it_has_a_body() {
        let check = |method, headers: &[&str], body: &str, expected| {
            let script = script(method, headers, Body::Fixed(body.as_bytes().to_vec())).unwrap();
            assert_eq!(text(&script, 3), expected);
        };
        check("GET", &[], "", "GET /p HTTP/1.1\r\nhost: h:1\r\n\r\n");
        let expected = "POST /p HTTP/1.1\r\nx-shard: loc=1,2\r\nhost: z\r\ncontent-length: 2\r\n\r\nab";
        check("POST", &["x-shard: loc=1,2", "Host:  z"], "ab", expected);
        for bad in ["no colon", ": v", "a b: c", "a: b\r\nc: d", "Content-Length: 3", "X-Token: 1"] {
            assert!(script("GET", &[bad], Body::Fixed(vec![])).is_err(), "{bad}");
        }
        assert!(script("GE T", &[], Body::Fixed(vec![])).is_err());
    }

    #[test]
    fn a_number_decides_a_request_and_no_two_share_a_token() {
        let choices = ["x-shard: shopid=1".to_owned(), "x-shard: shopid=2".to_owned()];
        let script = script("POST", &[], Body::Drawn { least: 10, most: 100 }).unwrap();
        let script = script.with_choices(&choices).unwrap().with_paths(vec!["/a".into(), "/b".into()]).unwrap();
        let script = script.with_tokens(true, 9);
        let all: BTreeSet<String> = (0..1000).map(|n| text(&script, n)).collect();
        assert_eq!((all.len(), text(&script, 5)), (1000, text(&script, 5)));
        for part in ["POST /a ", "shopid=2", "content-length: 33\r\n"] {
            let seen = all.iter().filter(|r| r.contains(part)).count();
            assert!((1..999).contains(&seen), "{part}: {seen}");
        }
        let tokens: BTreeSet<_> = (0..100_000).map(|n| script.token(n).unwrap().bytes().to_vec()).collect();
        assert_eq!(tokens.len(), 100_000);
        assert!(script.with_paths(vec!["no-slash".into()]).is_err());
    }
}
