//! Labels in words.

use std::collections::BTreeMap;

use super::label_text::{Key, LabelText, View};
use super::place_states::PlaceState;
use super::token_classes::{Affix, TokenClass, is_continuation};
use super::tokens::TokenStore;
use crate::text::{shortened, terminal};

/// Tokens that a label names; of more it says that there are more.
const N_NAMED: usize = 3;

/// A token that stands at this share of the places a label names is named with them.
const USUAL: f64 = 0.95;

/// Longer tokens are cut.
const MAX_CHARS: usize = 24;

/// What the parts of a label are called, any of which holds.
pub(super) fn parts_named(
    store: &TokenStore,
    text: &LabelText,
    parts: &[(View, Vec<Key>)],
    pushed: Option<&[u32]>,
) -> String {
    let names: Vec<String> = parts.iter().map(|(view, keys)| name(store, text, *view, keys, pushed)).collect();
    names.join(", ")
}

/// What a condition of one of some keys is called. `pushed` are tokens that the feature pushes: where it stands before
/// one of those, it says it.
fn name(store: &TokenStore, text: &LabelText, view: View, keys: &[Key], pushed: Option<&[u32]>) -> String {
    let first = || keys.iter().map(|key| key[0]);
    match view {
        View::Token | View::Word => tokens_named(store, first(), N_NAMED),
        View::Class => classes(keys, 0),
        View::AfterClass => format!("after {}", classes(keys, 0)),
        View::NextClass => format!("before {}", classes(keys, 0)),
        View::ClassAfter | View::ClassBefore => {
            let word = if view == View::ClassAfter { "after" } else { "before" };
            let names = keys.iter().map(|key| {
                let [own, other] = [key[0], key[1]].map(|class| TokenClass::of_number(class).name());
                format!("{own} {word} {other}")
            });
            names.collect::<Vec<_>>().join(" / ")
        }
        View::State => keys.iter().map(|key| PlaceState::of_number(key[0]).name()).collect::<Vec<_>>().join(" / "),
        View::Within => format!("in text with {}", tokens_named(store, first(), N_NAMED)),
        View::Affix => match keys.first().and_then(|key| text.affix_names.get(key[0] as usize)) {
            Some(Affix::Begins(letters)) => format!("words with \"{letters}-\""),
            Some(Affix::Ends(letters)) => format!("words with \"-{letters}\""),
            None => String::new(),
        },
        View::After | View::Soon => {
            let place = if view == View::After { "after" } else { "soon after" };
            let named = tokens_named(store, first(), N_NAMED);
            match usual_token(text, view, keys) {
                Some(token) => format!("{} {place} {named}", quoted(&store.text(token))),
                None => format!("{place} {named}"),
            }
        }
        View::Pair => phrases(store, keys, 2),
        View::Triple => phrases(store, keys, 3),
        View::Next => {
            // What it says comes first in its name.
            let (said, others): (Vec<u32>, Vec<u32>) =
                first().partition(|token| pushed.is_some_and(|pushed| pushed.contains(token)));
            let verb = if said.is_empty() { "before" } else { "says" };
            format!("{verb} {}", tokens_named(store, said.into_iter().chain(others), N_NAMED))
        }
        View::Place => {
            let places: Vec<String> = first().map(|place| place.to_string()).collect();
            format!("at position {}", places.join(" / "))
        }
    }
}

/// Names of the classes of some keys.
fn classes(keys: &[Key], at: usize) -> String {
    keys.iter().map(|key| TokenClass::of_number(key[at]).name()).collect::<Vec<_>>().join(" / ")
}

/// The token that nearly always stands where a condition holds.
fn usual_token(text: &LabelText, view: View, keys: &[Key]) -> Option<u32> {
    let positions = text.positions_of_any(view, keys);
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    positions.iter().for_each(|&at| *counts.entry(text.tokens[at as usize]).or_default() += 1);
    let (&token, &n) = counts.iter().max_by_key(|&(_, &n)| n)?;
    (n as f64 >= USUAL * positions.len() as f64).then_some(token)
}

/// `"is" after "capital of" / "city of"` where all phrases end alike, else the phrases.
fn phrases(store: &TokenStore, keys: &[Key], len: usize) -> String {
    let joined = |tokens: &[u32]| quoted(&store.texts(tokens.iter().copied()).concat());
    match keys {
        [first, rest @ ..] if rest.iter().all(|key| key[len - 1] == first[len - 1]) => {
            let before = keys.iter().map(|key| joined(&key[..len - 1]));
            format!("{} after {}", quoted(&store.text(first[len - 1])), listed(before, N_NAMED))
        }
        _ => listed(keys.iter().map(|key| joined(&key[..len])), N_NAMED),
    }
}

/// The first of some tokens, each in quotes.
pub(super) fn tokens_named(store: &TokenStore, tokens: impl IntoIterator<Item = u32>, n: usize) -> String {
    listed(tokens.into_iter().map(|token| quoted(&store.text(token))), n)
}

/// The first of some names, those that look the same once.
fn listed(names: impl Iterator<Item = String>, n: usize) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut is_more = false;
    for name in names {
        if shown.contains(&name) {
            continue;
        }
        if shown.len() == n {
            is_more = true;
            break;
        }
        shown.push(name);
    }
    let more = if is_more { " / …" } else { "" };
    format!("{}{more}", shown.join(" / "))
}

/// A token in quotes, without the space before it; the rest of a word has dots instead.
fn quoted(text: &str) -> String {
    let word = text.trim();
    if word.is_empty() {
        return if text.contains('\n') { "line break".into() } else { "space".into() };
    }
    let dots = if is_continuation(text) { "…" } else { "" };
    format!("\"{dots}{}\"", terminal(&shortened(word, MAX_CHARS)))
}
