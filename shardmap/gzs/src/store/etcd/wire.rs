//! What etcd is asked and answers, as the JSON of its gRPC gateway, which each etcd since 3.4 serves at its client address: keys and
//! values in base64, 64-bit numbers as text. Source of the shapes: etcd's `api/etcdserverpb/rpc.proto` and "etcd gateway" of its manual.
//!
//! The gateway and not gRPC itself: that needs a protocol compiler on every machine on which this is built, for six questions.

use crate::change::Unstored;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// Reaches an etcd: one question, one answer.
pub trait Gateway {
    /// Posts `body` to a path, such as `/v3/kv/txn`; status and body of the answer. Else why there is none: what was asked for may have
    /// been done all the same.
    fn post(&mut self, path: &str, body: &str) -> Result<(u16, String), String>;
}

/// Values of one key in one put: etcd takes 1.5 MiB a request, in base64 and with its companions.
pub(super) const PART_BYTES_MAX: usize = 512 << 10;

/// What etcd says instead: 3.4 and 3.5 as `error`, 3.6 as `message` alone.
#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    message: String,
}

/// The head of each answer.
#[derive(Deserialize, Default)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "number")]
    pub revision: i64,
}

#[derive(Deserialize, Default)]
pub(super) struct Pair {
    #[serde(default, deserialize_with = "bytes")]
    pub key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    pub value: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    pub create_revision: i64,
    #[serde(default, deserialize_with = "number")]
    pub mod_revision: i64,
    #[serde(default, deserialize_with = "number")]
    pub version: i64,
}

#[derive(Deserialize, Default)]
pub(super) struct Range {
    #[serde(default)]
    pub header: Header,
    #[serde(default)]
    pub kvs: Vec<Pair>,
}

#[derive(Deserialize)]
pub(super) struct Put {}

#[derive(Deserialize, Default)]
pub(super) struct Txn {
    #[serde(default)]
    pub header: Header,
    #[serde(default)]
    pub succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Deserialize)]
struct Response {
    response_range: Option<Range>,
}

impl Txn {
    /// What was read, in the order in which it was asked for; nothing for what was written.
    pub fn ranges(self) -> impl Iterator<Item = Range> {
        self.responses.into_iter().filter_map(|r| r.response_range)
    }
}

#[derive(Deserialize, Default)]
pub(super) struct Granted {
    #[serde(default)]
    pub header: Header,
    #[serde(rename = "ID", default, deserialize_with = "number")]
    pub id: i64,
    #[serde(rename = "TTL", default, deserialize_with = "number")]
    pub ttl: i64,
}

#[derive(Deserialize)]
pub(super) struct Kept {
    pub result: Granted,
}

/// Asks, and reads the answer.
pub(super) fn ask<T: serde::de::DeserializeOwned>(
    etcd: &mut impl Gateway,
    path: &str,
    body: &Value,
) -> Result<T, Unstored> {
    let (status, answer) = etcd.post(path, &body.to_string()).map_err(|e| {
        Unstored::Failed(format!("etcd: {e} (asked for {path}; what was asked may have been done all the same)"))
    })?;
    if status != 200 {
        let refusal: Refusal = serde_json::from_str(&answer).unwrap_or_default();
        let why = if refusal.error.is_empty() { refusal.message } else { refusal.error };
        return Err(Unstored::Failed(format!("etcd refuses {path} with {status}: {why}")));
    }
    serde_json::from_str(&answer).map_err(|_| {
        let seen: String = answer.chars().take(200).collect();
        Unstored::Failed(format!("etcd answers {path} with \"{seen}\", expected the JSON of its gateway"))
    })
}

pub(super) fn range(key: &str, revision: i64) -> Value {
    json!({"key": b64(key.as_bytes()), "revision": revision.to_string()})
}

/// Every key that begins with `prefix`, by key.
pub(super) fn all(prefix: &str, revision: i64) -> Value {
    let mut asked = range(prefix, revision);
    asked["range_end"] = json!(b64(&after(prefix)));
    asked["sort_order"] = json!("ASCEND");
    asked["sort_target"] = json!("KEY");
    asked
}

pub(super) fn put(key: &str, value: &[u8]) -> Value {
    json!({"request_put": {"key": b64(key.as_bytes()), "value": b64(value)}})
}

pub(super) fn delete(key: &str) -> Value {
    json!({"request_delete_range": {"key": b64(key.as_bytes())}})
}

/// Deletes what begins with `prefix`.
pub(super) fn delete_all(prefix: &str) -> Value {
    json!({"request_delete_range": {"key": b64(prefix.as_bytes()), "range_end": b64(&after(prefix))}})
}

/// Deletes what begins with `prefix`, but for what begins with `but`, which lies in it.
pub(super) fn delete_all_but(prefix: &str, but: &str) -> [Value; 2] {
    let delete = |from: &[u8], to: &[u8]| json!({"request_delete_range": {"key": b64(from), "range_end": b64(to)}});
    [delete(prefix.as_bytes(), but.as_bytes()), delete(&after(but), &after(prefix))]
}

/// The first key beyond all that begin with `prefix`, which ends with an ASCII character.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// `what`: `CREATE`, `MOD`, `VERSION` with the field of the same name, in lower case.
pub(super) fn is(what: &str, field: &str, key: &str, number: i64) -> Value {
    let mut compare = json!({"target": what, "result": "EQUAL", "key": b64(key.as_bytes())});
    compare[field] = json!(number.to_string());
    compare
}

pub(super) fn holds(key: &str, value: &[u8]) -> Value {
    json!({"target": "VALUE", "result": "EQUAL", "key": b64(key.as_bytes()), "value": b64(value)})
}

pub(super) fn txn(compare: &[Value], success: &[Value], failure: &[Value]) -> Value {
    json!({"compare": compare, "success": success, "failure": failure})
}

pub(super) fn read_in_txn(key: &str) -> Value {
    json!({"request_range": {"key": b64(key.as_bytes())}})
}

pub(super) fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Result<(u16, &'static str), &'static str>);

    impl Gateway for Says {
        fn post(&mut self, _: &str, _: &str) -> Result<(u16, String), String> {
            self.0.map(|(status, body)| (status, body.to_owned())).map_err(str::to_owned)
        }
    }

    fn said(answer: Result<(u16, &'static str), &'static str>) -> String {
        ask::<Range>(&mut Says(answer), "/v3/kv/range", &json!({})).err().unwrap().to_string()
    }

    #[test]
    fn answers_are_read_and_nonsense_is_said() {
        let answer =
            r#"{"header":{"revision":"7"},"kvs":[{"key":"YQ==","mod_revision":"2","value":"bWU="}],"count":"1"}"#;
        let read: Range = ask(&mut Says(Ok((200, answer))), "/v3/kv/range", &json!({})).unwrap();
        assert_eq!((read.header.revision, read.kvs[0].value.as_slice(), read.kvs[0].mod_revision), (7, &b"me"[..], 2));
        assert_eq!(
            said(Ok((503, r#"{"error":"etcdserver: no leader","code":14}"#))),
            "etcd refuses /v3/kv/range with 503: etcdserver: no leader"
        );
        assert_eq!(
            said(Ok((400, r#"{"message":"etcdserver: mvcc: required revision has been compacted","code":11}"#))),
            "etcd refuses /v3/kv/range with 400: etcdserver: mvcc: required revision has been compacted"
        );
        assert!(said(Ok((502, "<html>"))).contains("refuses /v3/kv/range with 502"));
        assert!(said(Ok((200, "<html>"))).contains("answers /v3/kv/range with \"<html>\", expected the JSON"));
        assert!(said(Ok((200, r#"{"kvs":[{"value":"%"}]}"#))).contains("expected the JSON"));
        assert!(said(Err("refused")).contains("may have been done all the same"));
    }

    #[test]
    fn all_but_one_leaves_that_one_alone() {
        let [before, behind] = delete_all_but("e/map/", "e/map/ab/");
        let key = |v: &Value, end: &str| {
            String::from_utf8(STANDARD.decode(v["request_delete_range"][end].as_str().unwrap()).unwrap()).unwrap()
        };
        assert_eq!((key(&before, "key"), key(&before, "range_end")), ("e/map/".into(), "e/map/ab/".into()));
        assert_eq!((key(&behind, "key"), key(&behind, "range_end")), ("e/map/ab0".into(), "e/map0".into()));
    }
}
