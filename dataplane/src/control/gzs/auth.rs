//! Who asks, and what he may do: bearer tokens (RFC 6750 §2.1) with roles.

use crate::config::{TokenFile, file};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use gzs::api::Role;

/// Bytes of a token's file.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Fewer bytes could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// Everybody who is known. Tokens are kept as their digests: comparing these tells nobody how much of a guess was right.
#[derive(Default)]
pub struct Callers(Vec<(blake3::Hash, String, Role)>);

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// His name; empty: there are no tokens, so nobody has one.
    pub name: String,
    /// What he may do.
    pub role: Role,
}

/// Why he may not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Barred {
    /// He shows no token, or one that nobody has.
    Unknown,
    /// His role is not enough.
    Role {
        /// His.
        has: Role,
        /// What it takes.
        needs: Role,
    },
}

impl Callers {
    /// The tokens in the files that the configuration names.
    pub fn read(files: &[TokenFile]) -> Result<Callers, String> {
        let mut known: Vec<(blake3::Hash, String, Role)> = vec![];
        for t in files {
            let wrong = |e: String| format!("{}: {e}", t.file.display());
            let text = file::read_text(&t.file, TOKEN_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
            let token = text.trim();
            if token.len() < TOKEN_BYTES_MIN {
                return Err(wrong(format!("a token of {} bytes, expected at least {TOKEN_BYTES_MIN}", token.len())));
            }
            let hash = blake3::hash(token.as_bytes());
            if let Some((_, other, _)) = known.iter().find(|(h, ..)| *h == hash) {
                return Err(wrong(format!("the token of \"{}\" is that of \"{other}\"", t.name)));
            }
            known.push((hash, t.name.clone(), t.role));
        }
        Ok(Callers(known))
    }

    /// Who shows this, if he may do what takes `needs`. A node may do only what nodes do; what nodes do, readers and above may not but
    /// for maps, which the caller asks for with `Role::Read` too.
    pub fn admit(&self, headers: &HeaderMap, needs: &[Role]) -> Result<Caller, Barred> {
        if self.0.is_empty() {
            return Ok(Caller { name: String::new(), role: Role::Admin });
        }
        let shown = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| blake3::hash(token.trim().as_bytes()))
        });
        // `blake3::Hash` compares in constant time.
        let known = shown.and_then(|hash| self.0.iter().find(|(h, ..)| *h == hash));
        let Some((_, name, role)) = known else { return Err(Barred::Unknown) };
        let enough = |needs: &Role| match (needs, role) {
            (Role::Node, Role::Node) => true,
            (Role::Node, _) | (_, Role::Node) => false,
            (needs, has) => has >= needs,
        };
        match needs.iter().any(enough) {
            true => Ok(Caller { name: name.clone(), role: *role }),
            false => Err(Barred::Role { has: *role, needs: needs.last().copied().unwrap_or(Role::Admin) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers(all: &[(&str, Role)]) -> Callers {
        Callers(all.iter().map(|(t, role)| (blake3::hash(t.as_bytes()), (*t).to_owned(), *role)).collect())
    }

    fn check(callers: &Callers, shown: &str, needs: &[Role], expected: Result<&str, Barred>) {
        let mut headers = HeaderMap::new();
        if !shown.is_empty() {
            headers.insert(AUTHORIZATION, shown.parse().unwrap());
        }
        assert_eq!(callers.admit(&headers, needs).map(|c| c.name), expected.map(str::to_owned), "{shown} {needs:?}");
    }

    #[test]
    fn each_role_may_do_what_it_may() {
        let all = callers(&[("n", Role::Node), ("r", Role::Read), ("o", Role::Operate), ("a", Role::Admin)]);
        check(&all, "Bearer n", &[Role::Node], Ok("n"));
        check(&all, "bearer n", &[Role::Node, Role::Read], Ok("n"));
        check(&all, "Bearer r", &[Role::Node, Role::Read], Ok("r"));
        check(&all, "Bearer a", &[Role::Operate], Ok("a"));
        check(&all, "Bearer r", &[Role::Operate], Err(Barred::Role { has: Role::Read, needs: Role::Operate }));
        check(&all, "Bearer n", &[Role::Read], Err(Barred::Role { has: Role::Node, needs: Role::Read }));
        check(&all, "Bearer a", &[Role::Node], Err(Barred::Role { has: Role::Admin, needs: Role::Node }));
        for stranger in ["", "Bearer x", "Basic r", "Bearer", "r"] {
            check(&all, stranger, &[Role::Read], Err(Barred::Unknown));
        }
        check(&Callers::default(), "", &[Role::Admin], Ok(""));
    }
}
