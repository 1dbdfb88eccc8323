//! The body of `POST /tx`: several operations of one shard, as JSON.
//!
//! ```text
//! {"ops": [{"op": "put", "table": "orders", "key": "17", "value": {"dish": "noodles"}, "if_match": "1.5.0.2"},
//!          {"op": "put", "table": "notes", "key": "17", "text": "no onions", "if_absent": true},
//!          {"op": "put", "table": "photos", "key": "17", "base64": "iVBORw0K"},
//!          {"op": "mint", "table": "items", "value": {"count": 2}},
//!          {"op": "delete", "table": "carts", "key": "9", "if_match": "*"}]}
//! ```
//!
//! A value is the bytes of the JSON after `value` as they stand there, or the UTF-8 of `text`, or what `base64` says (RFC 4648 §4).

use crate::http::Fault;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use replog::Version;
use replog::commit::{Condition, STEPS_MAX, Step};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'b> {
    #[serde(borrow)]
    ops: Vec<Op<'b>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Put,
    Mint,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Op<'b> {
    op: Kind,
    #[serde(borrow)]
    table: Cow<'b, str>,
    #[serde(borrow)]
    key: Option<Cow<'b, str>>,
    #[serde(borrow, default, deserialize_with = "as_it_stands")]
    value: Option<&'b RawValue>,
    #[serde(borrow)]
    text: Option<Cow<'b, str>>,
    #[serde(borrow)]
    base64: Option<Cow<'b, str>>,
    #[serde(borrow)]
    if_match: Option<Cow<'b, str>>,
    #[serde(default)]
    if_absent: bool,
}

/// `null` is a value, too.
fn as_it_stands<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The operations in `body`, in their order. Their number, tables, keys and conditions are legal; whether a row comes twice, and what
/// they weigh together, the log says.
pub(super) fn steps(body: &[u8]) -> Result<Vec<Step>, Fault> {
    let bad = |e: serde_json::Error| {
        let expected = r#"{"ops": [{"op": "put", "table": "..", "key": "..", "value": ..}, ..]}"#;
        Fault::bad("not a transaction", e.to_string(), expected)
    };
    let ops = serde_json::from_slice::<Body<'_>>(body).map_err(bad)?.ops;
    if ops.is_empty() || ops.len() > STEPS_MAX {
        let status = if ops.is_empty() { 400 } else { 413 };
        let fault =
            Fault::bad("a number of operations that a transaction cannot have", ops.len().to_string(), "1 to 128");
        return Err(Fault { status, ..fault });
    }
    ops.into_iter().enumerate().map(|(at, op)| step(op).map_err(|fault| of_operation(at, fault))).collect()
}

fn of_operation(at: usize, fault: Fault) -> Fault {
    Fault { seen: format!("operation {at}: {}", fault.seen), ..fault }
}

fn step(op: Op<'_>) -> Result<Step, Fault> {
    if !super::store::is_table(&op.table) {
        return Err(Fault::bad("illegal table name", op.table.as_bytes(), "1 to 64 of a-z, 0-9 and _"));
    }
    let only = condition(&op)?;
    let key = match (op.op, &op.key) {
        (Kind::Mint, None) => None,
        (Kind::Mint, Some(key)) => return Err(Fault::bad("a key that is to be minted", key.as_bytes(), "no key")),
        (Kind::Put | Kind::Delete, Some(key)) if (1..=super::store::KEY_BYTES_MAX).contains(&key.len()) => {
            Some(Bytes::copy_from_slice(key.as_bytes()))
        }
        (Kind::Put | Kind::Delete, other) => {
            let seen = other.as_ref().map_or("no key".to_owned(), |k| format!("{} bytes", k.len()));
            return Err(Fault::bad("illegal key", seen, "1 to 512 bytes"));
        }
    };
    let value = value(&op)?;
    Ok(Step { table: Bytes::copy_from_slice(op.table.as_bytes()), key, value, only })
}

fn condition(op: &Op<'_>) -> Result<Condition, Fault> {
    let only = match (op.if_match.as_deref(), op.if_absent) {
        (None, false) => Condition::Any,
        (None, true) => Condition::Absent,
        (Some("*"), false) => Condition::Present,
        (Some(text), false) => {
            let version = Version::parse(text.as_bytes());
            version.map(Condition::At).ok_or_else(|| {
                Fault::bad("malformed if_match", text.as_bytes(), "* or a version, as an answer shows it")
            })?
        }
        (Some(_), true) => return Err(Fault::bad("if_match and if_absent", "both", "one of them")),
    };
    if op.op == Kind::Mint && only != Condition::Any {
        return Err(Fault::bad("a condition on a row that is new", "mint", "no condition"));
    }
    Ok(only)
}

fn value(op: &Op<'_>) -> Result<Option<Bytes>, Fault> {
    let expected = "one of value, text and base64; none for a delete";
    let value = match (op.value, &op.text, &op.base64) {
        (Some(json), None, None) => Some(Bytes::copy_from_slice(json.get().as_bytes())),
        (None, Some(text), None) => Some(Bytes::copy_from_slice(text.as_bytes())),
        (None, None, Some(code)) => {
            let bytes = STANDARD.decode(code.as_bytes());
            Some(bytes.map_err(|e| Fault::bad("malformed base64", e.to_string(), "RFC 4648 §4, with padding"))?.into())
        }
        (None, None, None) => None,
        _ => return Err(Fault::bad("several values", "more than one", expected)),
    };
    match (op.op, &value) {
        (Kind::Put | Kind::Mint, Some(_)) | (Kind::Delete, None) => Ok(value),
        (Kind::Put | Kind::Mint, None) => Err(Fault::bad("no value", "none", expected)),
        (Kind::Delete, Some(_)) => Err(Fault::bad("a delete with a value", "a value", expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_stand_in_the_body() {
        let body = r#"{"ops": [
            {"op":"put","table":"t","key":"a","value": {"b" : 1.50, "big":12345678901234567890123 }},
            {"op":"put","table":"t","key":"b","value":null,"if_match":"1.5.0.2"},
            {"op":"put","table":"t","key":"c\n","text":"\u00e9\n","if_absent":true},
            {"op":"put","table":"t","key":"d","base64":"AP8=","if_match":"*"},
            {"op":"mint","table":"u","text":""},
            {"op":"delete","table":"t","key":"e"}]}"#;
        let steps = steps(body.as_bytes()).unwrap();
        let values: Vec<_> = steps.iter().map(|s| s.value.as_deref()).collect();
        let json: &[u8] = br#"{"b" : 1.50, "big":12345678901234567890123 }"#;
        let expected: [Option<&[u8]>; 6] =
            [Some(json), Some(b"null"), Some("\u{e9}\n".as_bytes()), Some(&[0, 255]), Some(b""), None];
        assert_eq!(values, expected);
        let only: Vec<_> = steps.iter().map(|s| s.only).collect();
        let at = Condition::At(Version::parse(b"1.5.0.2").unwrap());
        let any = Condition::Any;
        assert_eq!(only, [any, at, Condition::Absent, Condition::Present, any, any]);
        assert_eq!((steps[2].key.as_deref(), steps[4].key.as_deref()), (Some(&b"c\n"[..]), None));
    }

    #[test]
    fn what_is_no_transaction_is_refused_with_what_was_seen() {
        let op = |fields: &str| format!(r#"{{"ops":[{{"op":"delete","table":"t","key":"ok"}},{{{fields}}}]}}"#);
        let put = |more: &str| op(&format!(r#""op":"put","table":"t",{more}"#));
        let many = format!(r#"{{"ops":[{}]}}"#, vec![r#"{"op":"delete","table":"t","key":"k"}"#; 129].join(","));
        for (body, status, error, seen) in [
            ("".to_owned(), 400, "not a transaction", "EOF"),
            ("[]".into(), 400, "not a transaction", ""),
            (r#"{"ops":[],"x":1}"#.into(), 400, "not a transaction", "unknown field `x`"),
            (r#"{"ops":[]}"#.into(), 400, "a number of operations that a transaction cannot have", "0"),
            (many, 413, "a number of operations that a transaction cannot have", "129"),
            (put(r#""key":"k""#), 400, "no value", "operation 1: none"),
            (put(r#""value":1"#), 400, "illegal key", "operation 1: no key"),
            (put(r#""key":"","value":1"#), 400, "illegal key", "operation 1: 0 bytes"),
            (put(r#""key":"k","value":1,"text":"a""#), 400, "several values", "operation 1"),
            (put(r#""key":"k","value":1,"value":2"#), 400, "not a transaction", "duplicate field"),
            (put(r#""key":"k","base64":"AP8""#), 400, "malformed base64", "operation 1"),
            (put(r#""key":"k","value":1,"if_match":"x""#), 400, "malformed if_match", "operation 1: x"),
            (put(r#""key":"k","value":1,"if_match":"*","if_absent":true"#), 400, "if_match and if_absent", "both"),
            (op(r#""op":"mint","table":"t","key":"k","value":1"#), 400, "a key that is to be minted", "operation 1: k"),
            (op(r#""op":"mint","table":"t","value":1,"if_absent":true"#), 400, "a condition on a row that is new", ""),
            (op(r#""op":"delete","table":"t","key":"k","value":1"#), 400, "a delete with a value", "operation 1"),
            (op(r#""op":"put","table":".answers","key":"k","value":1"#), 400, "illegal table name", ".answers"),
            (op(r#""op":"patch","table":"t","key":"k","value":1"#), 400, "not a transaction", "unknown variant"),
        ] {
            let fault = steps(body.as_bytes()).map(|_| ()).unwrap_err();
            assert_eq!((fault.status, fault.error), (status, error), "{body}");
            assert!(fault.seen.contains(seen), "{body}: {}", fault.seen);
        }
    }
}
