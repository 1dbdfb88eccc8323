//! Reads HTTP/1.1 as the simulated peers do: strictly, and with no line in common with the router's own parser.

/// A message's first line and its fields, names in lower case.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: String,
    pub fields: Vec<(String, String)>,
}

/// What a reader has come to.
#[derive(Debug)]
pub enum Event {
    Head(Head),
    Data(Vec<u8>),
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Head,
    Length(usize),
    Size,
    Chunk(usize),
    Trailer,
    UntilClose,
    End,
}

/// Reads messages of one direction, one after the other.
pub struct Reader {
    buf: Vec<u8>,
    state: State,
    answers: bool,
}

impl Head {
    /// The value of a field that may be there once.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(n, _)| n == name);
        let first = all.next();
        assert!(all.next().is_none(), "several {name}: {self:?}");
        first.map(|(_, v)| v.as_str())
    }

    /// Of an answer.
    pub fn status(&self) -> u16 {
        self.line.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {:?}", self.line))
    }

    fn parse(raw: &[u8]) -> Head {
        let text = String::from_utf8_lossy(raw);
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_string();
        let field = |l: &str| {
            let (name, value) = l.split_once(": ").unwrap_or_else(|| panic!("not a field: {l:?} in {text:?}"));
            assert!(name.bytes().all(|b| b.is_ascii_graphic()) && !value.contains(['\r', '\n', '\0']), "{l:?}");
            (name.to_lowercase(), value.to_string())
        };
        Head { line, fields: lines.filter(|l| !l.is_empty()).map(field).collect() }
    }
}

impl Reader {
    /// Of requests.
    pub fn requests() -> Reader {
        Reader { buf: vec![], state: State::Head, answers: false }
    }

    /// Of answers.
    pub fn answers() -> Reader {
        Reader { answers: true, ..Reader::requests() }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Between two messages, with nothing left over?
    pub fn at_start(&self) -> bool {
        self.state == State::Head && self.buf.is_empty()
    }

    /// In a body that ends with the connection?
    pub fn until_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// The next event; `None`: more bytes are needed. `to_head`: the answer is one to HEAD. Panics at what is not HTTP.
    pub fn next(&mut self, to_head: bool) -> Option<Event> {
        match self.state {
            State::Head => {
                let head = Head::parse(&self.cut(b"\r\n\r\n")?);
                self.state = if self.answers { answer_body(&head, to_head) } else { request_body(&head) };
                Some(Event::Head(head))
            }
            State::Length(0) | State::End => {
                self.state = State::Head;
                Some(Event::End)
            }
            _ if self.buf.is_empty() => None,
            State::Length(n) => {
                let data = self.take(n);
                self.state = State::Length(n - data.len());
                Some(Event::Data(data))
            }
            State::UntilClose => Some(Event::Data(std::mem::take(&mut self.buf))),
            State::Size => {
                let line = self.cut(b"\r\n")?;
                let text = std::str::from_utf8(&line).expect("a chunk size is text");
                let n = usize::from_str_radix(text, 16).unwrap_or_else(|_| panic!("not a chunk size: {text:?}"));
                self.state = if n == 0 { State::Trailer } else { State::Chunk(n + 2) };
                self.next(to_head)
            }
            State::Chunk(n) if n <= 2 => {
                if self.buf.len() < 2 {
                    return None;
                }
                let end = self.take(2);
                assert_eq!(end, b"\r\n", "after a chunk's data");
                self.state = State::Size;
                self.next(to_head)
            }
            State::Chunk(n) => {
                let data = self.take(n - 2);
                self.state = State::Chunk(n - data.len());
                Some(Event::Data(data))
            }
            State::Trailer => {
                let line = self.cut(b"\r\n")?;
                if line.is_empty() {
                    self.state = State::End;
                }
                let text = String::from_utf8_lossy(&line).to_lowercase();
                assert!(!text.starts_with("x-ezone") && !text.starts_with("content-length"), "trailer {text:?}");
                self.next(to_head)
            }
        }
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        let n = n.min(self.buf.len());
        self.buf.drain(..n).collect()
    }

    /// What comes before `end`, which is dropped.
    fn cut(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        let at = self.buf.windows(end.len()).position(|w| w == end);
        let Some(at) = at else {
            assert!(self.buf.len() < 100_000, "a line or head without end");
            return None;
        };
        let line = self.take(at);
        self.take(end.len());
        Some(line)
    }
}

fn lengths(head: &Head) -> (Option<usize>, bool) {
    let length = head.get("content-length").map(|v| v.parse().unwrap_or_else(|_| panic!("length {v:?}")));
    let chunked = head.get("transfer-encoding").map(|v| assert_eq!(v, "chunked")).is_some();
    assert!(length.is_none() || !chunked, "both framings: {head:?}");
    (length, chunked)
}

fn request_body(head: &Head) -> State {
    assert!(head.line.ends_with(" HTTP/1.1"), "{head:?}");
    match lengths(head) {
        (_, true) => State::Size,
        (Some(n), _) => State::Length(n),
        (None, false) => State::End,
    }
}

fn answer_body(head: &Head, to_head: bool) -> State {
    assert!(head.line.starts_with("HTTP/1.1 "), "{head:?}");
    let framed = lengths(head);
    match (head.status(), framed) {
        (100..=199 | 204 | 304, _) => State::End,
        _ if to_head => State::End,
        (_, (_, true)) => State::Size,
        (_, (Some(n), _)) => State::Length(n),
        (_, (None, false)) => State::UntilClose,
    }
}
