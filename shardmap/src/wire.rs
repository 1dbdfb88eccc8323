//! Little-endian bytes in and out, for the binary form of a map: a reader that hostile bytes cannot make panic or allocate
//! more than a small multiple of their own length.

/// Why bytes are no map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// Where it was seen.
    pub at_byte: usize,
    /// What was expected.
    pub what: &'static str,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no map at byte {}: {}", self.at_byte, self.what)
    }
}
impl std::error::Error for Malformed {}

/// Reads from the front.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub fn fault(&self, what: &'static str) -> Malformed {
        Malformed { at_byte: self.at, what }
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some(taken) = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)) else {
            return Err(self.fault("more bytes were announced than there are"));
        };
        self.at += len;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("take gives the length asked for"))
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_le_bytes)
    }

    /// A count of items of at least `bytes_min` bytes each: one that the rest cannot hold is refused before room is made.
    pub fn count(&mut self, bytes_min: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count > (self.bytes.len() - self.at) / bytes_min {
            return Err(self.fault("a count of more items than the rest can hold"));
        }
        Ok(count)
    }

    pub fn name(&mut self, bytes_max: usize) -> Result<String, Malformed> {
        let len = usize::from(self.u16()?);
        if len > bytes_max {
            return Err(self.fault("a name longer than allowed"));
        }
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.fault("a name that is not UTF-8"))
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.fault("bytes after the end")) }
    }
}

/// Writes a name with its length.
pub fn put_name(out: &mut Vec<u8>, name: &str) {
    let len = u16::try_from(name.len()).expect("names are bounded where a map is made");
    out.extend(len.to_le_bytes());
    out.extend(name.as_bytes());
}

/// Writes a count as [`Reader::count`] reads it.
pub fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).expect("counts are bounded where a map is made").to_le_bytes());
}
