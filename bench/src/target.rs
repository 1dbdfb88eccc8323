//! Turns a URL into an address and a path.

use std::net::{SocketAddr, ToSocketAddrs};

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
}
