//! ^C and SIGTERM: the process ends at once, but at a whole line, with a clean terminal, and never in the middle of putting a repair in
//! place.

use indicatif::{ProgressBar, WeakProgressBar};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Whoever holds this is in the middle of a line.
static LINE: Mutex<()> = Mutex::new(());
/// A reader of the pipe that takes nothing is not waited for any longer.
const LINE_MAX: Duration = Duration::from_secs(1);
/// The signal that came; 0: none.
static CAME: AtomicI32 = AtomicI32::new(0);
/// The main thread looks at `CAME` and ends by itself.
static HELD: AtomicBool = AtomicBool::new(false);
static BARS: Mutex<Vec<WeakProgressBar>> = Mutex::new(Vec::new());

/// So much is collected before it is written.
const LINES_BYTES: usize = 32 * 1024;

/// Begins to watch for signals.
pub fn watch() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let again = CAME.swap(signal, Ordering::SeqCst) != 0;
            if again || !HELD.load(Ordering::SeqCst) {
                end(signal);
            }
        }
    });
    Ok(())
}

/// Has a signal come?
pub fn came() -> bool {
    CAME.load(Ordering::SeqCst) != 0
}

/// Until this is dropped a first signal does not end the process: whoever holds it asks `came`.
pub struct Hold;

impl Hold {
    /// Takes it.
    pub fn new() -> Hold {
        HELD.store(true, Ordering::SeqCst);
        Hold
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.store(false, Ordering::SeqCst);
        let signal = CAME.load(Ordering::SeqCst);
        if signal != 0 {
            end(signal);
        }
    }
}

/// This bar is taken off the terminal by a signal.
pub fn drawn(bar: &ProgressBar) {
    BARS.lock().unwrap_or_else(PoisonError::into_inner).push(bar.downgrade());
}

/// As a shell tells it: 128 and the signal.
fn end(signal: i32) -> ! {
    let began = Instant::now();
    let mut line = LINE.try_lock();
    while line.is_err() && began.elapsed() < LINE_MAX {
        thread::sleep(Duration::from_millis(5));
        line = LINE.try_lock();
    }
    let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner);
    bars.iter().filter_map(WeakProgressBar::upgrade).for_each(|bar| bar.finish_and_clear());
    let _message = io::stderr().lock(); // not in the middle of a message either
    process::exit(128 + signal)
}

/// Standard output, written in whole lines.
#[derive(Default)]
pub struct Lines {
    collected: Vec<u8>,
}

impl Lines {
    /// Writes what is collected up to byte `to`.
    fn emit(&mut self, to: usize) -> io::Result<()> {
        let _line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = io::stdout().lock();
        let done = out.write_all(&self.collected[..to]).and_then(|()| out.flush());
        self.collected.drain(..to);
        done
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.collected.extend_from_slice(bytes);
        if self.collected.len() >= LINES_BYTES
            && let Some(end) = self.collected.iter().rposition(|b| *b == b'\n')
        {
            self.emit(end + 1)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.emit(self.collected.len())
    }
}
