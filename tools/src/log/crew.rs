//! Reads the segments of a log side by side, past the page cache: while one is checked, others are read.
//!
//! What a sealed segment holds is kept between two looks at a log that is being written, so that the second reads only what is new.
//! Memory: two windows of 4 MiB for each of at most eight readers, and what is found.

use super::files::Files;
use super::progress::Progress;
use replog::open::{Content, Course, Depth, Floor, Found, Storage, Task};
use replog::uring::direct::Direct;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Segments that are read at a time, however many processors there are.
const READERS_MAX: usize = 8;

/// Examines one log, every byte of it, as often as asked.
pub struct Crew {
    dir: PathBuf,
    progress: Progress,
    /// Whole segments that have a successor, by name: as long as their headers say the same, they need not be read again.
    whole: HashMap<String, (Task, Content)>,
}

/// What a reader has to say of a task.
type Answer = (usize, io::Result<Content>);

impl Crew {
    /// For the log in `dir`; nothing is read yet.
    pub fn new(dir: &Path, progress: Progress) -> Crew {
        Crew { dir: dir.to_owned(), progress, whole: HashMap::new() }
    }

    /// Reads what was not read before. A segment that went while it was read is an error of kind `NotFound`.
    pub fn examine(&mut self) -> io::Result<Found> {
        let mut files = Files::new(&self.dir);
        let mut course = Course::survey(&mut files, Floor::default(), Depth::Whole)?;
        let mut tasks = course.tasks();
        tasks.retain(|task| self.whole.get(&task.name).is_none_or(|(seen, _)| seen != task));
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let readers =
            (thread::available_parallelism().map_or(1, usize::from) * 2).clamp(2, READERS_MAX).min(tasks.len());
        let (dir, progress) = (self.dir.clone(), self.progress.clone());
        thread::scope(|scope| {
            let (send, answers) = sync_channel(readers.max(1));
            for _ in 0..readers {
                let (send, progress) = (send.clone(), progress.clone());
                let (dir, tasks, next, stop) = (&dir, &tasks, &next, &stop);
                scope.spawn(move || read(dir, tasks, next, stop, progress, &send));
            }
            drop(send);
            let done = self.collect(&mut course, &mut files, &tasks, answers);
            stop.store(true, Ordering::Relaxed);
            done
        })?;
        Ok(course.finish())
    }

    /// Hands the course what was read, in its own order. That the answers end here lets the readers end.
    fn collect(
        &mut self,
        course: &mut Course,
        files: &mut Files,
        tasks: &[Task],
        answers: Receiver<Answer>,
    ) -> io::Result<()> {
        let mut early = BTreeMap::new();
        let mut at = 0;
        while let Some(task) = course.next(files)? {
            if let Some((_, content)) = self.whole.get(&task.name).filter(|(seen, _)| *seen == task) {
                course.take(content.clone());
                continue;
            }
            assert_eq!(tasks.get(at), Some(&task), "the course takes its tasks in the order that it gave");
            let content = loop {
                if let Some(content) = early.remove(&at) {
                    break content;
                }
                let (of, content) = answers.recv().map_err(|_| io::Error::other("a reader has ended too early"))?;
                early.insert(of, content);
            }?;
            at += 1;
            if task.end.is_some() && content.is_whole() {
                self.whole.insert(task.name.clone(), (task, content.clone()));
            }
            course.take(content);
        }
        Ok(())
    }
}

/// One reader: takes the next task that nobody has, until there is none.
fn read(
    dir: &Path,
    tasks: &[Task],
    next: &AtomicUsize,
    stop: &AtomicBool,
    progress: Progress,
    answers: &SyncSender<Answer>,
) {
    let mut files = Counting { files: Direct::new(dir), progress };
    while !stop.load(Ordering::Relaxed) {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(task) = tasks.get(at) else { return };
        let content = task.read(&mut files).and_then(|content| match content.is_whole() {
            true => Ok(content),
            // It was retired under the reader, which may have seen anything.
            false if files.files.is_gone(&task.name) => {
                let text = format!("{}: retired while it was read", task.name);
                Err(io::Error::new(io::ErrorKind::NotFound, text))
            }
            false => Ok(content),
        });
        if answers.send((at, content)).is_err() {
            return; // nobody wants to know any more
        }
    }
}

/// Tells the progress what is read.
struct Counting {
    files: Direct,
    progress: Progress,
}

impl Storage for Counting {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<bytes::Bytes> {
        let bytes = self.files.read(name, pos, len)?;
        self.progress.at(name, pos + bytes.len() as u64);
        Ok(bytes)
    }
}
