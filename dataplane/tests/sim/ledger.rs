//! What was asked, what was done, and what was said of it: each request has a token, and its bodies are made of it.

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// An honest upstream.
    App,
    /// An upstream that lies.
    Liar,
    /// The record store.
    Record,
    /// Nobody: the router answers itself.
    Nobody,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Entry {
    method: &'static str,
    #[allow(dead_code, reason = "shown in messages")]
    aim: Aim,
    /// A server has begun to answer: what breaks off after that may reach the client as nothing but an end.
    pub begun: bool,
    /// Upstreams or stores that saw its head.
    pub seen: u32,
    /// Times that it was done.
    pub done: u32,
    /// The client was told that nothing was done.
    pub denied: bool,
}

/// Every request of a world.
#[derive(Default)]
pub struct Ledger(Vec<Entry>);

impl Ledger {
    pub fn add(&mut self, method: &'static str, aim: Aim) -> usize {
        self.0.push(Entry { method, aim, begun: false, seen: 0, done: 0, denied: false });
        self.0.len() - 1
    }

    pub fn of(&self, token: usize) -> &Entry {
        self.0.get(token).unwrap_or_else(|| panic!("nobody ever asked for token {token}"))
    }

    fn twice_is_once(&self, token: usize) -> bool {
        matches!(self.of(token).method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS")
    }

    /// A server has begun to read it.
    pub fn see(&mut self, token: usize) {
        let again = self.twice_is_once(token);
        let e = &mut self.0[token];
        e.seen += 1;
        assert!(e.seen <= if again { 4 } else { 1 }, "seen {} times: token {token} {e:?}", e.seen);
    }

    /// A server has written a part of its answer.
    pub fn begin(&mut self, token: usize) {
        self.0[token].begun = true;
    }

    /// A server has done it.
    pub fn done(&mut self, token: usize) {
        let again = self.twice_is_once(token);
        let e = &mut self.0[token];
        e.done += 1;
        assert!(e.done <= if again { 4 } else { 1 }, "done {} times: token {token} {e:?}", e.done);
        assert!(!e.denied || again, "done after it was denied: token {token} {e:?}");
    }

    /// Its client was told that nothing was done.
    pub fn deny(&mut self, token: usize) {
        let again = self.twice_is_once(token);
        let e = &mut self.0[token];
        e.denied = true;
        assert!(e.done == 0 || again, "denied although it was done: token {token} {e:?}");
    }
}

/// Bytes `from .. from + len` of the body that belongs to `token`.
pub fn body(token: usize, from: usize, len: usize) -> Vec<u8> {
    let unit = format!("[t{token}]");
    unit.bytes().cycle().skip(from % unit.len()).take(len).collect()
}

/// Panics unless `data` is what stands at `from` of the body of `token`.
pub fn check_body(who: &str, token: usize, from: usize, data: &[u8]) {
    let expected = body(token, from, data.len());
    if data != expected {
        let shown = |d: &[u8]| String::from_utf8_lossy(&d[..d.len().min(120)]).into_owned();
        panic!("{who}: token {token} at {from}: expected {:?}, came {:?}", shown(&expected), shown(data));
    }
}
