//! Logs of many segments: what is read side by side says the same as what is read in order.

use super::ezctl;
use super::writer::{Temp, orders};
use replog::open::{Depth, Floor, examine};
use replog::uring::dir::Dir;
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn what_is_read_side_by_side_comes_to_the_verdict_of_an_open() {
    let data = Temp::new("side");
    orders(&data.0, 300);
    let mut names: Vec<_> = std::fs::read_dir(&data.0).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|n| n.extension().is_some_and(|e| e == "rlog"));
    names.sort();
    assert!(names.len() > 15, "{}", names.len());
    let check = |expected: i32| {
        let found = examine(&mut Dir::new(&data.0), Floor::default(), Depth::Whole).unwrap();
        let (code, out, err) = ezctl(&["verify", "--json"], &[&data.0]);
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code, expected, "{out}{err}");
        assert_eq!(line["last_seq"], found.last_seq, "{out}");
        assert_eq!(line["segments"], found.segments.len(), "{out}");
        let why = if code == 0 { String::new() } else { found.verdict.to_string() };
        assert!(line["why"] == *why, "{out} {why}");
        line["damage"].as_array().unwrap().len()
    };
    assert_eq!(check(0), 0);
    // From the newest to the oldest, so that each is the first that is damaged; all of them are listed.
    for (count, name) in names.iter().rev().enumerate() {
        let file = File::options().read(true).write(true).open(name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 140).unwrap();
        if byte == [0] {
            continue; // the newest may hold no batch yet
        }
        file.write_all_at(&[byte[0] ^ 1], 4096 + 140).unwrap();
        assert!(check(2) > count.saturating_sub(1), "{}", name.display());
    }
    std::fs::remove_file(&names[4]).unwrap();
    for name in &names[..4] {
        let file = File::options().read(true).write(true).open(name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 140).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 4096 + 140).unwrap();
    }
    check(3);
}
