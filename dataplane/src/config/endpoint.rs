//! Endpoints: where a service or another zone's routers run. An address or a name, a table that says more, or a list for each
//! zone.

use super::check::Check;
use super::name::{Place, place};
use serde::Deserialize;
use toml::{Spanned, Value};

/// So many endpoints may stand for one another, with all addresses of their names.
pub const ENDPOINTS_MAX: usize = 256;
/// The largest weight.
const WEIGHT_MAX: i64 = 1000;

/// One place where requests can be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub at: Place,
    /// Its share, against the weights of the others; of a name: that of each address.
    pub weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    addr: String,
    #[serde(default = "one")]
    weight: i64,
    zone: Option<String>,
}

fn one() -> i64 {
    1
}

impl Check<'_> {
    /// The endpoints that a node of zone `own` uses: of a plain list those that name no other zone, of a table of lists its
    /// zone's.
    pub(super) fn endpoints(&mut self, raw: &Spanned<Value>, own: &str) -> Vec<Endpoint> {
        let found = match raw.get_ref() {
            Value::Table(zones) => {
                let mut mine = vec![];
                for (zone, list) in zones {
                    let list = self.endpoint_list(raw, list, zone);
                    if zone == own {
                        mine = list;
                    }
                }
                mine
            }
            list => self.endpoint_list(raw, list, own),
        };
        for (i, e) in found.iter().enumerate() {
            if found[..i].iter().any(|other| other.at == e.at) {
                self.say(raw, format!("endpoint {} is named twice: give it a weight", e.at));
            }
        }
        if found.len() > ENDPOINTS_MAX {
            self.say(raw, format!("{} endpoints, at most {ENDPOINTS_MAX}", found.len()));
        }
        found
    }

    /// One, or several in a list.
    fn endpoint_list(&mut self, at: &Spanned<Value>, raw: &Value, own: &str) -> Vec<Endpoint> {
        let one = std::slice::from_ref(raw);
        let all = raw.as_array().map_or(one, Vec::as_slice);
        if all.is_empty() {
            self.say(at, "an empty list: expected at least one endpoint");
        }
        all.iter().filter_map(|e| self.endpoint(at, e, own)).collect()
    }

    fn endpoint(&mut self, at: &Spanned<Value>, raw: &Value, own: &str) -> Option<Endpoint> {
        let table = match raw {
            Value::String(addr) => Table { addr: addr.clone(), weight: 1, zone: None },
            Value::Table(_) => match raw.clone().try_into::<Table>() {
                Ok(table) => table,
                Err(e) => return self.none(at, format!("an endpoint: {}", e.message())),
            },
            other => {
                let seen = other.type_str();
                return self.none(
                    at,
                    format!("an endpoint is \"address:port\", \"name:port\" or {{ addr = \"..\" }}, seen: {seen}"),
                );
            }
        };
        if !(1..=WEIGHT_MAX).contains(&table.weight) {
            self.say(at, format!("weight = {} of {}: expected 1 to {WEIGHT_MAX}", table.weight, table.addr));
        }
        let addr = place(&table.addr).map_err(|e| self.say(at, e)).ok()?;
        let mine = table.zone.is_none_or(|z| z == own);
        mine.then_some(Endpoint { at: addr, weight: u32::try_from(table.weight).unwrap_or(1) })
    }
}
