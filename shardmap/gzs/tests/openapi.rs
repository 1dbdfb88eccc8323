//! `openapi.json` says of each shape of `api.rs` what serde writes and reads: the same fields, with the same types, of which the same must
//! be there. And it has each route that the head of `api.rs` names, and no other.

use gzs::api::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

const API: &str = include_str!("../src/api.rs");
const DESCRIPTION: &str = include_str!("../openapi.json");

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).unwrap()
}

// ---- the shapes ----------------------------------------------------------------------------------------------------------

/// A shape once with everything in it and once with as little as can be, and which of its fields a reader insists on.
struct Shape {
    name: &'static str,
    full: Value,
    bare: Value,
    must: BTreeSet<String>,
}

/// Who reads a shape decides what `required` means: of a question, what must be sent; of an answer, what is always there.
fn question<T: Serialize + DeserializeOwned>(name: &'static str, full: T, bare: T) -> Shape {
    let full = serde_json::to_value(full).unwrap();
    assert!(serde_json::from_value::<T>(full.clone()).is_ok(), "{name} cannot be read again");
    let lacks = |field: &String| {
        let mut less = full.as_object().unwrap().clone();
        less.remove(field);
        serde_json::from_value::<T>(Value::Object(less)).is_err()
    };
    let must = keys(&full).into_iter().filter(lacks).collect();
    Shape { name, bare: serde_json::to_value(bare).unwrap(), full, must }
}

fn answer<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &'static str, full: T, bare: T) -> Shape {
    let (full, bare) = (read_again(name, full), read_again(name, bare));
    Shape { name, full, must: keys(&bare), bare }
}

/// As text and back it is what it was: as a value alone, a field that is written twice would not be seen.
fn read_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, told: T) -> Value {
    let text = serde_json::to_string(&told).unwrap();
    match serde_json::from_str::<T>(&text) {
        Ok(read) => assert_eq!(read, told, "{name}: read again from {text}"),
        Err(e) => panic!("{name} cannot be read again: {e}: {text}"),
    }
    serde_json::from_str(&text).unwrap()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

fn whats() -> Vec<(&'static str, What, What)> {
    let (zone, to) = (|| "bj".to_owned(), || "sh".to_owned());
    let all = vec![
        ("Move", What::Move { shards: vec![341], to: to() }, What::Move { shards: vec![], to: to() }),
        ("Evacuate", What::Evacuate { zone: zone(), to: Some(to()) }, What::Evacuate { zone: zone(), to: None }),
        ("Restore", What::Restore { zone: zone() }, What::Restore { zone: zone() }),
        ("TakeOver", What::TakeOver { zone: zone(), to: Some(to()) }, What::TakeOver { zone: zone(), to: None }),
        ("Unlock", What::Unlock { shards: vec![341] }, What::Unlock { shards: vec![] }),
        ("AddZone", What::AddZone { zone: zone() }, What::AddZone { zone: zone() }),
        (
            "AddGlobal",
            What::AddGlobal { name: "users".into(), zone: zone() },
            What::AddGlobal { name: String::new(), zone: zone() },
        ),
        ("RemoveZone", What::RemoveZone { zone: zone() }, What::RemoveZone { zone: zone() }),
        (
            "ChangeFences",
            What::Fences { from_epoch: 7, geojson: geojson(), datum: Some("GCJ-02".into()) },
            What::Fences { from_epoch: 7, geojson: Value::Null, datum: None },
        ),
    ];
    for (_, what, _) in &all {
        match what {
            // A new kind makes the compiler ask here: it needs a line above and a schema.
            What::Move { .. }
            | What::Evacuate { .. }
            | What::Restore { .. }
            | What::TakeOver { .. }
            | What::Unlock { .. }
            | What::AddZone { .. }
            | What::RemoveZone { .. }
            | What::AddGlobal { .. }
            | What::Fences { .. } => {}
        }
    }
    all
}

fn geojson() -> Value {
    json!({"type": "FeatureCollection", "features": []})
}

/// As an operation's view has it: fences are left out.
fn as_shown(what: What) -> What {
    match what {
        What::Fences { from_epoch, .. } => What::Fences { from_epoch, geojson: Value::Null, datum: None },
        other => other,
    }
}

fn op_ask(what: What, full: bool) -> OpAsk {
    let said = |s: &str| if full { s.to_owned() } else { String::new() };
    OpAsk { what, by: said("li"), why: said("lighter"), force: full, limit_ms: full.then_some(60_000) }
}

fn share() -> ShareView {
    ShareView { shard: 341, from: "bj".into(), to: "sh".into(), state: "given".into(), epoch: 42 }
}

fn op_view(what: What, full: bool) -> OpView {
    let list = |n: usize| vec![share(); n];
    OpView {
        id: 1,
        what: as_shown(what),
        by: "li".into(),
        why: "lighter".into(),
        forced: if full { vec!["a reason".into()] } else { vec![] },
        state: "done".into(),
        says: "each shard is given".into(),
        begun_ms: 1,
        ended_ms: full.then_some(2),
        limit_ms: 60_000,
        shards: list(usize::from(full)),
    }
}

fn told() -> NodeTold {
    let stream = StreamTold { durable: 9, applied: BTreeMap::from([("sh".into(), 8)]) };
    let report = ShardTold { fence_seq: Some(7), applied: BTreeMap::from([(1, 8)]), ..ShardTold::default() };
    let log = LogTold { streams: vec![stream], reports: vec![report], ..LogTold::default() };
    NodeTold { name: "bj-1".into(), router: Some(RouterTold::default()), log: Some(log), ..NodeTold::default() }
}

fn state() -> State {
    let node = NodeState { name: "bj-1".into(), kind: "log".into(), ..NodeState::default() };
    let zone = ZoneState {
        name: "bj".into(),
        id: Some(0),
        state: "up".into(),
        lacks: BTreeMap::from([("sh".into(), 1)]),
        unknown: vec![UnknownRange { stream: 0, first: 1, last: 2 }],
        nodes: vec![node],
        ..ZoneState::default()
    };
    State {
        stopped: Some("an old backup".into()),
        zones: vec![zone],
        shards: vec![shard_state()],
        ops: whats().into_iter().map(|(_, what, _)| op_view(what, true)).collect(),
        audit: vec![AuditView { op: Some(1), changes: vec!["a line".into()], ..AuditView::default() }],
        ..State::default()
    }
}

fn shard_state() -> ShardState {
    let (owner, to, global) = (Some("bj".into()), Some("sh".into()), Some("users".into()));
    ShardState { kind: "moving".into(), owner, to, global, ..ShardState::default() }
}

fn fences_ask() -> FencesAsk {
    let town = Town { name: "Zito".into(), lng: 95.83613, lat: 30.73893 };
    FencesAsk { geojson: geojson(), datum: Some("WGS84".into()), towns: vec![town] }
}

fn fences_preview() -> FencesPreview {
    let give = GiveView {
        from: Some(341),
        to: Some(352),
        from_zone: Some("sh".into()),
        to_zone: Some("bj".into()),
        samples: vec!["121.5,31.2".into()],
        ..GiveView::default()
    };
    let name = || vec!["Shanghai".to_owned()];
    let town = TownView { name: "Zito".into(), from: Some(341), to: Some(352) };
    FencesPreview {
        notes: name(),
        added: name(),
        removed: name(),
        changed: name(),
        gives: vec![give],
        bare: vec![341],
        held: vec![341],
        towns: vec![town],
        ..FencesPreview::default()
    }
}

/// Every struct of `api.rs`; `OpAsk` and `OpView` once for each kind of operation.
fn shapes() -> Vec<Shape> {
    let log = || told().log.unwrap();
    let zone = || state().zones.remove(0);
    let ask = ReportAsk { shards: vec![341], ..ReportAsk::default() };
    let lease = LeaseTold { shard: 1024, owner_epoch: 7, lease_ms: 3000 };
    let asked = NodeAsked { asks: vec![ask.clone()], leases: vec![lease.clone()], ..NodeAsked::default() };
    let mut all = vec![
        question("NodeTold", told(), NodeTold::default()),
        question("RouterTold", RouterTold::default(), RouterTold::default()),
        question("LogTold", log(), LogTold::default()),
        question("StreamTold", log().streams.remove(0), StreamTold::default()),
        question("ShardTold", log().reports.remove(0), ShardTold::default()),
        answer("NodeAsked", asked, NodeAsked::default()),
        answer("LeaseTold", lease, LeaseTold::default()),
        answer("ReportAsk", ask, ReportAsk::default()),
        answer("ShareView", share(), share()),
        answer("State", state(), State::default()),
        answer("ZoneState", zone(), ZoneState { state: "up".into(), ..ZoneState::default() }),
        answer("UnknownRange", zone().unknown.remove(0), UnknownRange::default()),
        answer("NodeState", zone().nodes.remove(0), NodeState { kind: "log".into(), ..NodeState::default() }),
        answer("ShardState", shard_state(), ShardState { kind: "lost".into(), ..ShardState::default() }),
        answer("AuditView", state().audit.remove(0), AuditView::default()),
        question("FencesAsk", fences_ask(), FencesAsk { geojson: geojson(), ..FencesAsk::default() }),
        question("Town", fences_ask().towns.remove(0), Town::default()),
        answer("FencesPreview", fences_preview(), FencesPreview::default()),
        answer("GiveView", fences_preview().gives.remove(0), GiveView::default()),
        answer("TownView", fences_preview().towns.remove(0), TownView::default()),
        answer("Fault", Fault { error: "no".into(), reasons: vec!["a reason".into()] }, Fault::default()),
    ];
    for (name, full, bare) in whats() {
        all.push(question(name, full.clone(), bare.clone()));
        all.push(question("OpAsk", op_ask(full.clone(), true), op_ask(bare.clone(), false)));
        all.push(answer("OpView", op_view(full, true), op_view(bare, false)));
    }
    all
}

// ---- reading schemas -----------------------------------------------------------------------------------------------------

fn named<'a>(doc: &'a Value, name: &str) -> &'a Value {
    let found = doc.pointer(&format!("/components/schemas/{name}"));
    found.unwrap_or_else(|| panic!("openapi.json has no schema {name}"))
}

fn resolved<'a>(doc: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(to) => doc.pointer(to.trim_start_matches('#')).unwrap_or_else(|| panic!("nothing is at {to}")),
        None => schema,
    }
}

/// The fields that a schema names for this value, and those that must be there: of all parts of `allOf`, and of the alternative of its kind.
fn fields<'a>(doc: &'a Value, schema: &'a Value, value: &Value) -> (BTreeMap<String, &'a Value>, BTreeSet<String>) {
    let schema = resolved(doc, schema);
    let (mut named, mut must) = (BTreeMap::new(), BTreeSet::new());
    let own_kind = |s: &&Value| resolved(doc, s)["properties"]["kind"]["const"] == value["kind"];
    let parts = list(&schema["allOf"]).iter().chain(list(&schema["oneOf"]).iter().filter(own_kind));
    for part in parts {
        let (more, musts) = fields(doc, part, value);
        named.extend(more);
        must.extend(musts);
    }
    named.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, s)| (name.clone(), s)));
    must.extend(list(&schema["required"]).iter().map(|name| name.as_str().unwrap().to_owned()));
    (named, must)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        many => list(many).iter().filter_map(Value::as_str).collect(),
    }
}

/// May it be null? Then serde must write null, or leave the field out, for `None`.
fn may_be_null(doc: &Value, schema: &Value) -> bool {
    let schema = resolved(doc, schema);
    types(schema).contains(&"null") || list(&schema["anyOf"]).iter().any(|s| may_be_null(doc, s))
}

/// Where `value` is not what `schema` says; fields that it does not name count.
fn misfits(doc: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let schema = resolved(doc, schema);
    let alternatives = list(&schema["anyOf"]);
    if !alternatives.is_empty() {
        let fits = alternatives.iter().any(|s| misfits(doc, s, value, at).is_empty());
        return if fits { vec![] } else { vec![format!("{at}: {value} fits no alternative")] };
    }
    let mut wrong = Vec::new();
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() || n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let composed = !list(&schema["allOf"]).is_empty() || !list(&schema["oneOf"]).is_empty();
    if !types(schema).contains(&kind) && !composed {
        wrong.push(format!("{at}: {value} is {kind}, the schema says {}", schema["type"]));
    }
    let words = list(&schema["enum"]);
    if !words.is_empty() && !words.contains(value) {
        wrong.push(format!("{at}: {value} is none of {words:?}"));
    }
    for (n, item) in list(value).iter().enumerate() {
        wrong.extend(misfits(doc, &schema["items"], item, &format!("{at}[{n}]")));
    }
    if let Some(object) = value.as_object() {
        wrong.extend(misfits_of_object(doc, schema, object, value, at));
    }
    wrong
}

fn misfits_of_object(doc: &Value, schema: &Value, object: &Map<String, Value>, value: &Value, at: &str) -> Vec<String> {
    let (named, must) = fields(doc, schema, value);
    let mut wrong = Vec::new();
    for (name, inner) in object {
        match named.get(name).copied().or(schema.get("additionalProperties")) {
            Some(schema) => wrong.extend(misfits(doc, schema, inner, &format!("{at}.{name}"))),
            None => wrong.push(format!("{at}.{name}: the schema does not name it")),
        }
    }
    wrong.extend(must.iter().filter(|m| !object.contains_key(*m)).map(|m| format!("{at}.{m}: must be there, is not")));
    wrong
}

// ---- what must hold ------------------------------------------------------------------------------------------------------

#[test]
fn every_shape_has_the_fields_that_the_description_names_and_no_others() {
    let doc = description();
    for shape in shapes() {
        let (named, must) = fields(&doc, named(&doc, shape.name), &shape.full);
        let named: BTreeSet<_> = named.into_keys().collect();
        assert_eq!(named, keys(&shape.full), "{}: left what openapi.json names, right what serde writes", shape.name);
        assert_eq!(must, shape.must, "{}: left what openapi.json requires, right what is needed", shape.name);
    }
}

#[test]
fn every_value_is_of_the_type_that_the_description_names() {
    let doc = description();
    for shape in shapes() {
        for value in [&shape.full, &shape.bare] {
            let wrong = misfits(&doc, named(&doc, shape.name), value, shape.name);
            assert!(wrong.is_empty(), "{wrong:#?} in {value:#}");
        }
    }
}

#[test]
fn what_may_be_null_is_what_serde_writes_null_for() {
    let doc = description();
    for shape in shapes() {
        for (name, schema) in fields(&doc, named(&doc, shape.name), &shape.full).0 {
            let none = shape.bare.get(&name).is_none_or(Value::is_null);
            let optional = may_be_null(&doc, schema) || (shape.name == "Fault" && name == "reasons");
            assert_eq!(optional, none, "{}.{name}: may be null there, is null or missing here", shape.name);
        }
    }
}

#[test]
fn every_shape_of_the_source_is_described_and_looked_at() {
    let doc = description();
    let tried: BTreeSet<_> = shapes().iter().map(|s| s.name).chain(["Role", "What"]).collect();
    let words = API.lines().filter_map(|l| l.strip_prefix("pub struct ").or(l.strip_prefix("pub enum ")));
    let names: Vec<_> = words.filter_map(|l| l.split([' ', '(']).next()).collect();
    assert!(names.len() > 15, "the source has more shapes than {names:?}");
    for name in names {
        named(&doc, name);
        assert!(tried.contains(name), "{name} has no sample in this test");
    }
}

#[test]
fn the_words_of_closed_sets_are_those_of_the_source() {
    let doc = description();
    let roles = [Role::Node, Role::Read, Role::Operate, Role::Admin];
    assert_eq!(named(&doc, "Role")["enum"], serde_json::to_value(roles).unwrap());
    let kinds: Vec<_> =
        whats().into_iter().map(|(_, what, _)| serde_json::to_value(what).unwrap()["kind"].clone()).collect();
    let mapped = keys(&named(&doc, "What")["discriminator"]["mapping"]);
    assert_eq!(mapped, kinds.iter().map(|k| k.as_str().unwrap().to_owned()).collect(), "the kinds of operations");
    let sets = [
        ("OpView", "state"),
        ("ShareView", "state"),
        ("ZoneState", "state"),
        ("NodeState", "kind"),
        ("ShardState", "kind"),
    ];
    for (name, field) in sets {
        let (fields, _) = fields(&doc, named(&doc, name), &json!({"kind": "move"}));
        let words = list(&fields[field]["enum"]);
        assert!(!words.is_empty(), "{name}.{field} has a closed set of words");
        for word in words.iter().filter_map(Value::as_str) {
            assert!(API.contains(&format!("`{word}`")), "{name}.{field}: api.rs does not know `{word}`");
        }
    }
}

/// The head of `api.rs`: method, path with `{id}` for `ID`, names of the query's keys.
fn routes() -> Vec<(String, String, Vec<String>)> {
    let lines = API.lines().filter_map(|l| l.strip_prefix("//! "));
    let routes = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let method = words.next().filter(|w| ["GET", "POST", "PUT", "DELETE", "PATCH"].contains(w))?;
        let (path, query) = words.next().map(|p| p.split_once('?').unwrap_or((p, "")))?;
        let keys = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key.to_owned());
        Some((method.to_lowercase(), path.replace("/ID", "/{id}"), keys.collect()))
    });
    routes.collect()
}

#[test]
fn the_description_has_every_route_of_the_source_and_no_other() {
    let doc = description();
    let (routes, mut described) = (routes(), BTreeSet::new());
    for (path, methods) in doc["paths"].as_object().unwrap() {
        described.extend(methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())));
    }
    let told: BTreeSet<_> = routes.iter().map(|(method, path, _)| (method.clone(), path.clone())).collect();
    assert!(told.len() > 10, "the head of api.rs names more routes than {told:?}");
    assert_eq!(described, told, "left openapi.json, right api.rs");
    for (method, path, keys) in routes {
        let parameters = list(&doc["paths"][&path][&method]["parameters"]);
        let named = |place: &str| -> Vec<_> {
            parameters.iter().filter(|p| p["in"] == place).map(|p| p["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(named("query"), keys, "the query of {method} {path}");
        assert_eq!(named("path").len(), path.matches('{').count(), "the parts of the path {path}");
    }
}

#[test]
fn every_route_says_its_role_and_its_errors_and_leads_somewhere() {
    let doc = description();
    let roles = list(&named(&doc, "Role")["enum"]).to_vec();
    for (method, path, _) in routes() {
        let route = &doc["paths"][&path][&method];
        if path != "/openapi.json" {
            let role = &route["security"][0]["bearer"][0];
            assert!(roles.contains(role), "{method} {path} names no role, but {role}");
            for status in ["401", "403"] {
                assert!(route["responses"][status].is_object(), "{method} {path} does not name {status}");
            }
        }
        for (status, said) in route["responses"].as_object().unwrap() {
            let error = status.starts_with(['4', '5']);
            let schema = resolved(&doc, said).pointer("/content/application~1json/schema/$ref");
            let fault = schema.is_some_and(|s| s == "#/components/schemas/Fault");
            assert_eq!(error, fault, "{method} {path} {status}: errors, and only they, are Faults");
        }
    }
    let mut loose = Vec::new();
    every_ref(&doc, &mut |to| loose.extend(doc.pointer(to.trim_start_matches('#')).is_none().then(|| to.to_owned())));
    assert!(loose.is_empty(), "nothing is at {loose:?}");
}

fn every_ref(value: &Value, told: &mut impl FnMut(&str)) {
    match value {
        Value::Object(object) => {
            if let Some(to) = object.get("$ref").and_then(Value::as_str) {
                told(to);
            }
            object.values().for_each(|v| every_ref(v, told));
        }
        Value::Array(items) => items.iter().for_each(|v| every_ref(v, told)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
