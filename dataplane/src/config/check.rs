//! What every part of the check uses: problems with their lines, addresses.

use super::machine::Machine;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// A check under way.
pub(super) struct Check<'a> {
    /// The directory of the configuration file: paths in it are relative to that, wherever the program is started.
    pub base: &'a Path,
    pub text: &'a str,
    /// What a layout is made for.
    pub machine: &'a Machine,
    pub found: Vec<(usize, String)>,
    /// Line and address of each listener of this node.
    pub own: Vec<(usize, SocketAddr)>,
}

impl Check<'_> {
    /// What `path` in the configuration means.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// No two listeners share an address: the second would find it taken, or worse, share it.
    pub(super) fn told_apart(&mut self) {
        let own = std::mem::take(&mut self.own);
        for (i, (line, at)) in own.iter().enumerate() {
            if let Some((before, _)) = own[..i].iter().find(|(_, other)| other == at) {
                self.found.push((*line, format!("{at} is listened at already by line {before}")));
            }
        }
    }

    pub(super) fn addresses(&mut self, raw: &Spanned<Vec<String>>) -> Option<Vec<SocketAddr>> {
        let line = self.line(raw.span().start);
        let parsed: Vec<_> = raw.get_ref().iter().map(|a| parse_address(a)).collect();
        self.found.extend(parsed.iter().filter_map(|p| p.as_ref().err().map(|e| (line, e.clone()))));
        parsed.into_iter().collect::<Result<_, _>>().ok()
    }

    /// Addresses that this node listens at.
    pub(super) fn own_addresses(&mut self, raw: &Spanned<Vec<String>>) -> Option<Vec<SocketAddr>> {
        let all = self.addresses(raw)?;
        all.iter().for_each(|at| self.listens(raw.span().start, *at));
        Some(all)
    }

    pub(super) fn own_address(&mut self, raw: &Spanned<String>) -> Option<SocketAddr> {
        let at = self.address(raw)?;
        self.listens(raw.span().start, at);
        Some(at)
    }

    fn listens(&mut self, at: usize, address: SocketAddr) {
        let line = self.line(at);
        match address.port() {
            0 => {
                self.found.push((line, format!("{address}: nobody could find a port that the kernel chose; name one")))
            }
            _ => self.own.push((line, address)),
        }
    }

    pub(super) fn address(&mut self, raw: &Spanned<String>) -> Option<SocketAddr> {
        parse_address(raw.get_ref()).map_err(|e| self.say(raw, e)).ok()
    }

    pub(super) fn say<T>(&mut self, at: &Spanned<T>, what: impl Into<String>) {
        self.found.push((self.line(at.span().start), what.into()));
    }

    pub(super) fn none<T, R>(&mut self, at: &Spanned<T>, what: impl Into<String>) -> Option<R> {
        self.say(at, what);
        None
    }

    fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\": expected an address and a port, such as 127.0.0.1:8080"))
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}
