//! `ezctl map` as a person or a script meets it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

const MAP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml");

fn ezctl(args: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn the_demo_map_passes_its_check() {
    let (code, out, _) = ezctl(&["map", "check", "--map", MAP], "");
    assert!(code == 0 && out.contains("ok: epoch 1, 34 fences, 34 shards, 2 zones"), "{code} {out}");
    let (code, out, _) = ezctl(&["map", "check", "--map", MAP, "--json"], "");
    assert!(code == 0 && out.starts_with('{') && out.contains("\"ok\":true"), "{code} {out}");
}

#[test]
fn a_place_on_the_command_line_is_answered_also_with_negative_degrees() {
    let (code, out, _) = ezctl(&["map", "locate", "--map", MAP, "121.52669", "31.2302"], "");
    assert_eq!((code, out.as_str()), (0, "Shanghai 341 sh inside\n"));
    let (code, out, _) = ezctl(&["map", "locate", "--map", MAP, "-58.4", "-34.6"], "");
    assert_eq!((code, out.as_str()), (0, "- 121 bj default\n"));
}

#[test]
fn malformed_lines_are_named_and_the_rest_goes_on() {
    let (code, out, err) = ezctl(&["map", "locate", "--map", MAP, "-"], "121.5,31.2\nfoo\n181,0\n116.4,39.9");
    assert_eq!((code, out.as_str()), (2, "Shanghai 341 sh inside\nBeijing 121 bj inside\n"));
    assert!(err.contains("line 2: \"foo\"") && err.contains("line 3: \"181,0\""), "{err}");
}

#[test]
fn wrong_input_is_exit_2_and_a_faulty_map_is_exit_1_of_check() {
    let (code, _, err) = ezctl(&["map", "locate", "--map", MAP, "nowhere", "0"], "");
    assert!(code == 2 && err.contains("\"nowhere,0\" is no place"), "{code} {err}");
    let (code, _, err) = ezctl(&["map", "check", "--map", "no-such-file"], "");
    assert!(code == 2 && err.contains("no-such-file"), "{code} {err}");
    let (code, out, _) = ezctl(&["map", "check", "--map", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], "");
    assert!(code == 1 && out.contains("Cargo.toml:"), "{code} {out}");
}

#[test]
fn a_map_beside_itself_shows_no_change() {
    let (code, out, _) = ezctl(&["map", "diff", MAP, MAP], "");
    assert_eq!((code, out.as_str()), (0, "the same map\n"));
}

#[test]
fn who_asks_line_by_line_is_answered_line_by_line_and_json_names_each_field() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"))
        .args(["map", "locate", "--map", MAP, "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    for (place, fence) in [("111.67,40.82", "Inner Mongolia"), ("121.5,31.2", "Shanghai")] {
        writeln!(input, "{place}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains(&format!("\"fence\":\"{fence}\"")) && line.contains("\"how\":\"inside\""), "{line}");
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "",
        "map",
        "map check",
        "map locate",
        "map diff",
        "log",
        "log ls",
        "log dump",
        "log verify",
        "route",
        "route explain",
    ] {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let (code, out, _) = ezctl(&args, "");
        assert!(code == 0 && out.contains("Example") && out.contains("ezctl "), "{command}: {out}");
    }
}
