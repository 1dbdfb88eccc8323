//! What names may look like, wherever they are given.

/// Bytes of a word.
pub const WORD_BYTES_MAX: usize = 64;

/// Of a table, and of a global service: 1 to 64 of a-z, 0-9 and _.
pub fn is_word(name: &str) -> bool {
    (1..=WORD_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Of a zone, in a certificate (one segment of a SPIFFE ID's path, section 2.2) and as a directory, of at most `most` bytes.
pub fn is_segment(name: &str, most: usize) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=most).contains(&name.len()) && name.bytes().all(fits) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_by_length_and_characters() {
        for (name, word, segment) in [
            ("orders_7", true, true),
            ("", false, false),
            ("Sh", false, true),
            ("a.b-c", false, true),
            (".", false, false),
            ("..", false, false),
            ("a/b", false, false),
            ("\u{4e0a}", false, false),
        ] {
            assert_eq!((is_word(name), is_segment(name, 64)), (word, segment), "{name}");
        }
        assert!(is_word(&"a".repeat(64)) && !is_word(&"a".repeat(65)));
        assert!(is_segment(&"a".repeat(9), 9) && !is_segment(&"a".repeat(9), 8));
    }
}
