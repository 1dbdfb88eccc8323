//! Holds connections that have had one answer and ask for nothing more, and says at the end how many still serve.

use crate::answer::{Answer, Wrong};
use crate::script::Script;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Requests on idle connections are numbered from here, so that no other request of the run has their tokens.
const FIRST_NUMBER: u64 = 1 << 62;

/// Idle connections, each of which has been served once.
pub struct Held<'a> {
    script: &'a Script,
    streams: Vec<TcpStream>,
    timeout: Duration,
}

impl Held<'_> {
    /// Opens `count` connections one after the other; the first that is not served ends it with an error.
    pub fn open(address: SocketAddr, script: &Script, count: usize, timeout: Duration) -> Result<Held<'_>, String> {
        let mut held = Held { script, streams: Vec::with_capacity(count), timeout };
        for at in 0..count {
            let failed = |why: String| format!("idle connection {} of {count}: {why}", at + 1);
            let stream = TcpStream::connect_timeout(&address, timeout).map_err(|e| failed(e.to_string()))?;
            stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
            held.streams.push(stream);
            held.ask(at, 0).map_err(failed)?;
        }
        Ok(held)
    }

    /// Asks once more on each: how many still serve, and why the first that does not does not.
    pub fn alive(&self) -> (u64, Option<String>) {
        let answers: Vec<_> = (0..self.streams.len()).map(|at| self.ask(at, 1)).collect();
        let alive = answers.iter().filter(|a| a.is_ok()).count() as u64;
        (alive, answers.into_iter().find_map(Result::err))
    }

    fn ask(&self, at: usize, turn: u64) -> Result<(), String> {
        let (mut stream, until) = (&self.streams[at], Instant::now() + self.timeout);
        let number = FIRST_NUMBER + 2 * at as u64 + turn;
        let (mut request, mut answer, mut buffer) = (vec![], Answer::default(), [0; 16 * 1024]);
        self.script.put(number, &mut request);
        answer.reset(self.script.token(number));
        stream.write_all(&request).map_err(|e| e.to_string())?;
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
            match stream.read(&mut buffer) {
                Ok(0) => return Err("it was closed".into()),
                Ok(n) => match answer.feed(&buffer[..n], self.script.is_head()) {
                    Ok((_, None)) => {}
                    Ok((used, Some(done))) if used == n && done.keep_alive && done.status < 400 => return Ok(()),
                    Ok((_, Some(done))) => return Err(format!("answer {}, and it does not stay open", done.status)),
                    Err(Wrong::Garbled(why) | Wrong::Mixed(why)) => return Err(why),
                },
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}
