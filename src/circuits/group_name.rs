//! What supernodes that were found are called: by what their members share.

use std::collections::BTreeMap;

use petgraph::graph::NodeIndex;

use crate::graph::{Circuit, NodeId, NodeKind};
use crate::text::{quoted, terminal};

/// What most of `members` share, the strongest of them first: their label; what their labels say of one token; a token that
/// they name; the words that all of them begin with; the target that they push most; else what the first one is called.
pub(super) fn shared_name(circuit: &Circuit, members: &[NodeIndex]) -> String {
    let labels: Vec<&str> = members.iter().filter_map(|&member| circuit.node(member).label.as_deref()).collect();
    let of_labels = |parts: &dyn Fn(&str) -> Vec<String>| {
        let of_each: Vec<Vec<String>> = labels.iter().map(|label| parts(label)).collect();
        most_shared(&of_each, members.len())
    };
    let whole = |label: &str| vec![label.to_owned()];
    let named = of_labels(&whole).or_else(|| of_labels(&statements)).or_else(|| of_labels(&tokens));
    let named = named.or_else(|| (labels.len() == members.len()).then(|| common_beginning(&labels)).flatten());
    let pushed = || {
        let of_each: Vec<Vec<String>> =
            members.iter().map(|&m| pushed_target(circuit, m).into_iter().collect()).collect();
        most_shared(&of_each, members.len()).map(|target| format!("pushes {target}"))
    };
    let first = || match (labels.first(), circuit.node(members[0]).id) {
        (Some(label), _) => format!("{label} …"),
        (None, NodeId::Feature { layer, feature, .. }) => format!("{layer}_{feature} …"),
        (None, _) => "group".to_owned(),
    };
    named.or_else(pushed).unwrap_or_else(first)
}

/// What more than half of `n` members have, whatever its case: of several such things the one that most have, of equal ones
/// the one that comes first.
fn most_shared(of_each: &[Vec<String>], n: usize) -> Option<String> {
    // By its lower case: how many have it, where it comes first, and how it is written there.
    let mut counts: BTreeMap<String, (usize, (usize, usize), &str)> = BTreeMap::new();
    for (member, parts) in of_each.iter().enumerate() {
        let mut seen: Vec<String> = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let lower = part.to_lowercase();
            if !seen.contains(&lower) {
                counts.entry(lower.clone()).or_insert((0, (place, member), part)).0 += 1;
                seen.push(lower);
            }
        }
    }
    let shared = counts.into_values().filter(|(count, ..)| count * 2 > n);
    let best = shared.max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    best.map(|(.., part)| part.to_owned())
}

/// What a label says of each token that it names, and its clauses without tokens: `says "Austin" / "Dallas"` says `says
/// "Austin"` and `says "Dallas"`, and `asks for capital (at "is"), two-hop` says `asks for capital` and `two-hop`. What is
/// mixed says nothing.
fn statements(label: &str) -> Vec<String> {
    let verb = label.split('"').next().unwrap_or_default();
    if verb.starts_with("mixed") {
        return Vec::new();
    }
    // What stands after other tokens does not name those.
    let own = label.split("\" after ").next().map_or(label, |own| &label[..(own.len() + 1).min(label.len())]);
    let of_tokens = match verb.contains(", ") || verb.contains('(') {
        true => Vec::new(),
        false => tokens(own).into_iter().map(|token| format!("{verb}{token}")).collect(),
    };
    let clauses = label.split(", ").filter_map(|clause| clause.split(" (").next());
    let clauses = clauses.filter(|clause| !clause.is_empty() && !clause.contains('"')).map(str::to_owned);
    of_tokens.into_iter().chain(clauses).collect()
}

/// The texts in quotes of a label, quotes included.
fn tokens(label: &str) -> Vec<String> {
    label.split('"').skip(1).step_by(2).filter(|text| !text.is_empty()).map(|text| format!("\"{text}\"")).collect()
}

/// The words that all labels begin with.
fn common_beginning(labels: &[&str]) -> Option<String> {
    let first: Vec<&str> = labels.first()?.split_whitespace().collect();
    let shared_with = |label: &&str| first.iter().zip(label.split_whitespace()).take_while(|(a, b)| **a == *b).count();
    let n_words = labels.iter().map(shared_with).min().unwrap_or(0);
    let beginning = first[..n_words].join(" ");
    let beginning = beginning.trim_end_matches([',', '/', '(', ':', ' ']);
    // Half of a quotation is no name.
    let is_whole = beginning.matches('"').count().is_multiple_of(2);
    (is_whole && !beginning.is_empty() && beginning != "mixed").then(|| beginning.to_owned())
}

/// The target that a node pushes upwards most, a token in quotes, if it pushes one.
fn pushed_target(circuit: &Circuit, node: NodeIndex) -> Option<String> {
    let outputs = circuit.outputs(node).into_iter();
    let targets = outputs.filter(|out| circuit.node(out.node).id.kind() == NodeKind::Target && out.edge.weight > 0.0);
    let most = targets.max_by(|a, b| a.edge.weight.total_cmp(&b.edge.weight))?;
    let text = circuit.node(most.node).text.trim();
    // A difference has quotes of its own.
    Some(if text.contains('"') { terminal(text) } else { quoted(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(labels: &[&str], parts: fn(&str) -> Vec<String>) -> Option<String> {
        most_shared(&labels.iter().map(|label| parts(label)).collect::<Vec<_>>(), labels.len())
    }

    #[test]
    fn labels_share_what_most_of_them_say() {
        let labels = ["says \"Austin\" / \"Dallas\"", "says \"austin\"", "\"Texas\""];
        assert_eq!(shared(&labels, statements).as_deref(), Some("says \"Austin\""));
        let labels = ["\"capital\" / \"Capital\"", "\"of\" after \"capital\"", "mixed: \"capital\" / \"is\""];
        assert_eq!(shared(&labels, statements), None);
        assert_eq!(shared(&labels, tokens).as_deref(), Some("\"capital\""));
        assert_eq!(shared(&["\"a\"", "\"b\""], tokens), None, "half is not most");
        let labels =
            ["Oklahoma (answer position), asks for capital, pushes \"DE\"", "asks for capital (at \"is\"), two-hop"];
        assert_eq!(shared(&labels, statements).as_deref(), Some("asks for capital"));
        assert_eq!(shared(&["\"b\" / \"a\"", "\"a\" / \"b\""], tokens).as_deref(), Some("\"b\""), "the first");
        assert_eq!(common_beginning(&["say a", "say b"]).as_deref(), Some("say"));
        assert_eq!(common_beginning(&["\"of the\" / \"x\"", "\"of the\" after"]).as_deref(), Some("\"of the\""));
        assert_eq!(common_beginning(&["\"of a\"", "\"of b\""]), None);
    }
}
