//! Files that an operator names. A pipe would let a running router wait for ever, a device or a disk image fill its memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of a regular file, at most `bytes_max` of them: anything else is refused unread.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let about = std::fs::metadata(path)?;
    if about.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !about.is_file() || about.len() > bytes_max {
        let seen = if about.is_file() { format!("{} bytes", about.len()) } else { "no regular file".into() };
        return Err(io::Error::other(format!("{seen}; expected a file of at most {bytes_max} bytes")));
    }
    let mut bytes = vec![];
    File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Likewise, and they are UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let not_text = |e| io::Error::new(io::ErrorKind::InvalidData, format!("not valid UTF-8: {e}"));
    String::from_utf8(read(path, bytes_max)?).map_err(not_text)
}
