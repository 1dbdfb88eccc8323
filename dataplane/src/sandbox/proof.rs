//! Proves from the driver's own tokens, never from the servers' counters, that no order was lost or doubled.

use super::report::{Outcome, Report};
use std::collections::{HashMap, HashSet};

/// How many examples of each fault are named.
const EXAMPLES_MAX: usize = 20;

/// What the zones hold at the end, against what the driver was told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// Acknowledged orders that some zone does not hold.
    pub lost: usize,
    /// The first of them: token, and the zones that lack it.
    pub lost_tokens: Vec<(String, Vec<String>)>,
    /// Tokens in more than one row of a zone, and ids that two acknowledged orders got.
    pub doubled: usize,
    /// The first of them, tokens or ids.
    pub doubled_tokens: Vec<String>,
    /// Rows of a zone whose token was never sent, and rows without a token.
    pub unasked: usize,
    /// Orders that were refused, and yet some zone holds them: the answer was wrong.
    pub refused_present: usize,
    /// Orders with an unknown outcome that some zone holds: fine, and worth knowing.
    pub unknown_present: usize,
}

impl Proof {
    /// Nothing lost, nothing doubled, nothing that nobody asked for or that was refused.
    pub fn holds(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.unasked == 0 && self.refused_present == 0
    }
}

/// Compares every zone's rows of the table of orders, key and value each, with the report.
pub fn prove<R, K, V>(zones: impl IntoIterator<Item = (String, R)>, report: &Report) -> Proof
where
    R: IntoIterator<Item = (K, V)>,
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let sent = report.orders.iter().filter(|o| o.sent.is_some());
    let sent: HashMap<&str, Outcome> = sent.map(|o| (o.token.as_str(), o.outcome)).collect();
    let mut proof = Proof::default();
    let mut doubled = HashSet::new();
    let mut held: Vec<(String, HashMap<String, u32>)> = Vec::new();
    for (zone, rows) in zones {
        let mut tokens: HashMap<String, u32> = HashMap::new();
        for (_, value) in rows {
            match token(value.as_ref()).filter(|t| sent.contains_key(t.as_str())) {
                Some(token) => *tokens.entry(token).or_default() += 1,
                None => proof.unasked += 1,
            }
        }
        doubled.extend(tokens.iter().filter(|t| *t.1 > 1).map(|t| t.0.clone()));
        held.push((zone, tokens));
    }
    doubled.extend(repeated_ids(report));
    proof.doubled = doubled.len();
    proof.doubled_tokens = doubled.into_iter().take(EXAMPLES_MAX).collect();
    for order in &report.orders {
        let lacking = || held.iter().filter(|z| !z.1.contains_key(&order.token)).map(|z| z.0.clone());
        match order.outcome {
            Outcome::Acknowledged if held.is_empty() || lacking().next().is_some() => {
                proof.lost += 1;
                if proof.lost_tokens.len() < EXAMPLES_MAX {
                    proof.lost_tokens.push((order.token.clone(), lacking().collect()));
                }
            }
            Outcome::Unknown => proof.unknown_present += usize::from(lacking().count() < held.len()),
            Outcome::Refused(_) => proof.refused_present += usize::from(lacking().count() < held.len()),
            Outcome::Acknowledged | Outcome::NotSent => {}
        }
    }
    proof
}

fn token(value: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(value).ok()?;
    Some(json.get("token")?.as_str()?.to_owned())
}

fn repeated_ids(report: &Report) -> impl Iterator<Item = String> {
    let mut seen = HashSet::new();
    let ids = report.orders.iter().filter(|o| o.outcome == Outcome::Acknowledged).filter_map(|o| o.id.clone());
    ids.filter(move |id| !seen.insert(id.clone()))
}

#[cfg(test)]
mod tests {
    use super::super::report::{Latencies, Order};
    use super::*;
    use hdrhistogram::Histogram;
    use std::time::Instant;

    fn report(orders: &[(&str, &str, Outcome)]) -> Report {
        let none = || Histogram::new(3).unwrap();
        let order = |&(token, id, outcome): &(&str, &str, Outcome)| Order {
            token: token.into(),
            due: Instant::now(),
            place: 0,
            sent: (outcome != Outcome::NotSent).then(Instant::now),
            answered: None,
            router: 0,
            zone: None,
            status: None,
            id: Some(id.into()),
            outcome,
        };
        let latencies =
            Latencies { all: none(), own_zone: none(), cross_zone: none(), by_zone: vec![], by_phase: vec![] };
        Report { orders: orders.iter().map(order).collect(), latencies }
    }

    /// Rows with these tokens in two zones.
    fn check(orders: &[(&str, &str, Outcome)], bj: &[&str], sh: &[&str]) -> Proof {
        let rows = |tokens: &[&str]| -> Vec<(String, String)> {
            tokens.iter().enumerate().map(|(i, t)| (i.to_string(), format!(r#"{{"token":"{t}"}}"#))).collect()
        };
        prove([("bj".to_string(), rows(bj)), ("sh".to_string(), rows(sh))], &report(orders))
    }
    const ACK: Outcome = Outcome::Acknowledged;

    #[test]
    fn what_was_acknowledged_and_is_in_both_zones_once_is_fine() {
        let proof =
            check(&[("a", "1", ACK), ("b", "2", ACK), ("c", "", Outcome::Refused(503))], &["a", "b"], &["b", "a"]);
        assert!(proof.holds());
        assert_eq!(proof, Proof::default());
    }

    #[test]
    fn an_acknowledged_order_that_one_zone_lacks_is_lost() {
        let proof = check(&[("a", "1", ACK), ("b", "2", ACK)], &["a", "b"], &["a"]);
        assert_eq!((proof.lost, proof.lost_tokens), (1, vec![("b".into(), vec!["sh".into()])]));
        assert_eq!(prove(Vec::<(String, Vec<(&[u8], &[u8])>)>::new(), &report(&[("a", "1", ACK)])).lost, 1, "no zone");
    }

    #[test]
    fn a_token_in_two_rows_or_an_id_given_twice_is_doubled() {
        let proof = check(&[("a", "1", ACK)], &["a", "a"], &["a", "a"]);
        assert_eq!((proof.doubled, proof.lost), (1, 0));
        assert_eq!(check(&[("a", "1", ACK), ("b", "1", ACK)], &["a", "b"], &["a", "b"]).doubled, 1);
    }

    #[test]
    fn a_row_that_nobody_asked_for_is_counted() {
        let proof = check(&[("a", "1", ACK), ("n", "", Outcome::NotSent)], &["a", "n"], &["a", "x"]);
        assert_eq!((proof.unasked, proof.holds()), (2, false));
        let broken = [("bj".to_string(), vec![("1", "not json"), ("2", "{}")])];
        assert_eq!(prove(broken, &report(&[])).unasked, 2);
    }

    #[test]
    fn a_refused_order_that_is_there_after_all_is_a_fault() {
        let proof = check(&[("r", "", Outcome::Refused(421))], &[], &["r"]);
        assert_eq!((proof.refused_present, proof.holds()), (1, false));
    }

    #[test]
    fn an_unknown_outcome_may_be_there_or_not() {
        let orders = [("u", "", Outcome::Unknown), ("v", "", Outcome::Unknown)];
        let proof = check(&orders, &["u"], &["u"]);
        assert_eq!((proof.unknown_present, proof.holds()), (1, true));
    }
}
