//! Which conditions best say where a feature is active: learnt on one half of a text, scored on the other.

use super::label_text::{Key, KeyMap, LabelText, View};

/// Fewer activations on the learnt half say nothing; the other half must have at least one.
const MIN_LEARNT: usize = 3;

/// A feature that is active on more than this share of positions is called so.
const EVERYWHERE: f64 = 0.5;

/// With fewer activations to learn from, a key that was seen once may be all that there is.
const FEW_LEARNT: usize = 8;

/// Keys of a view that are tried.
const MAX_KEYS: usize = 256;

/// What a key must explain at least, in positions: a key that holds by chance explains one.
const KEY_COST: f64 = 1.0;

/// Parts of a label: conditions of several views, any of which may hold.
const MAX_PARTS: usize = 2;

/// What a further part must add to F1.
const PART_GAIN: f64 = 0.05;

/// What says so much is not added to.
const GOOD: f64 = 0.8;

/// A key that was seen once is taken for a set of tokens where it held at no more than so many places.
const MAX_SEEN_ONCE: usize = 3;

/// What best says where a feature is active.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Conditions, one of which holds; keys of each most frequent first. Empty: almost everywhere.
    pub parts: Vec<(View, Vec<Key>)>,
    /// On the scored half: positions named and active, named, active.
    n_both: usize,
    n_named: usize,
    pub n_active: usize,
}

impl Found {
    pub(super) fn precision(&self) -> f64 {
        self.n_both as f64 / self.n_named.max(1) as f64
    }

    pub(super) fn recall(&self) -> f64 {
        self.n_both as f64 / self.n_active.max(1) as f64
    }

    pub(super) fn f1(&self) -> f64 {
        f1(self.n_both, self.n_named, self.n_active, 0)
    }

    pub(super) fn is_everywhere(&self) -> bool {
        self.parts.is_empty()
    }
}

/// The harmonic mean of precision and recall, each key paid for as if it named [`KEY_COST`] positions more.
pub(super) fn f1(n_both: usize, n_named: usize, n_active: usize, n_keys: usize) -> f64 {
    2.0 * n_both as f64 / ((n_named + n_active) as f64 + KEY_COST * n_keys as f64).max(1.0)
}

/// What a label must be better by than a plainer one.
fn handicap(view: View, n_keys: usize) -> f64 {
    let of_view = match view {
        View::Token => 0.0,
        View::Word => 0.005,
        View::Class => -0.03,
        View::Affix | View::After => 0.02,
        View::Next | View::State => 0.03,
        View::Pair | View::Soon | View::Place | View::AfterClass | View::NextClass => 0.05,
        View::Triple | View::ClassAfter | View::ClassBefore | View::Within => 0.08,
    };
    of_view + if n_keys > 3 { 0.03 } else { 0.0 }
}

/// Positions, one bit each.
#[derive(Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Self {
        Bits(vec![0; n.div_ceil(64)])
    }

    fn has(&self, at: u32) -> bool {
        self.0[at as usize / 64] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: u32) {
        self.0[at as usize / 64] |= 1 << (at % 64);
    }
}

/// What conditions name of the learnt half so far.
#[derive(Clone)]
struct Named {
    positions: Bits,
    n: usize,
    n_both: usize,
    n_keys: usize,
}

/// The best conditions, on the learnt half, scored on the other; nothing for a feature that is too rare.
pub(super) fn best(text: &LabelText, active: &[u32]) -> Option<Found> {
    let (learnt, scored) = active.split_at(text.n_learnt_of(active));
    if learnt.len() < MIN_LEARNT || scored.is_empty() {
        return None;
    }
    let n_active = scored.len();
    if learnt.len() as f64 > EVERYWHERE * text.n_counted[0] as f64 {
        return Some(Found { parts: Vec::new(), n_both: n_active, n_named: text.n_counted[1], n_active });
    }
    let mut is_active = Bits::new(text.n_learnt);
    learnt.iter().for_each(|&at| is_active.set(at));
    let search = Search { text, learnt, is_active };
    let mut named = Named { positions: Bits::new(text.n_learnt), n: 0, n_both: 0, n_keys: 0 };
    let mut parts: Vec<(View, Vec<Key>)> = Vec::new();
    while parts.len() < MAX_PARTS && search.f1(&named) < GOOD {
        let before = search.f1(&named);
        let candidates = View::ALL.into_iter().filter(|view| parts.iter().all(|(other, _)| other != view));
        let candidates = candidates.filter_map(|view| {
            let (keys, f1) = search.best_keys(view, &named);
            (!keys.is_empty()).then(|| (f1 - handicap(view, keys.len()), view, keys))
        });
        // Of equal ones the first.
        let Some((score, view, keys)) = candidates.reduce(|a, b| if b.0 > a.0 { b } else { a }) else { break };
        if !parts.is_empty() && score < before + PART_GAIN {
            break;
        }
        keys.iter().for_each(|&key| search.add(&mut named, view, key));
        parts.push((view, keys));
    }
    if parts.is_empty() {
        return None;
    }
    let mut all: Vec<u32> = parts.iter().flat_map(|(view, keys)| text.positions_of_any(*view, keys)).collect();
    all.sort_unstable();
    all.dedup();
    let held_out = &all[text.n_learnt_of(&all)..];
    Some(Found { parts, n_both: n_common(held_out, scored), n_named: held_out.len(), n_active })
}

struct Search<'a> {
    text: &'a LabelText,
    learnt: &'a [u32],
    is_active: Bits,
}

impl Search<'_> {
    fn f1(&self, named: &Named) -> f64 {
        f1(named.n_both, named.n, self.learnt.len(), named.n_keys)
    }

    /// Adds what a key names.
    fn add(&self, named: &mut Named, view: View, key: Key) {
        let positions = self.text.positions(view, key);
        for &at in &positions[..self.text.n_learnt_of(positions)] {
            if !named.positions.has(at) {
                named.positions.set(at);
                named.n += 1;
                named.n_both += usize::from(self.is_active.has(at));
            }
        }
        named.n_keys += 1;
    }

    /// The conditions of a view that, with what is `named` already, say best where the feature is active: by precision, as
    /// long as F1 grows; with that F1. Most frequent first.
    fn best_keys(&self, view: View, named: &Named) -> (Vec<Key>, f64) {
        let mut counts: KeyMap<usize> = KeyMap::default();
        let mut keys = Vec::new();
        for &position in self.learnt.iter().filter(|&&at| !named.positions.has(at)) {
            self.text.keys_of(view, position as usize, &mut keys);
            keys.iter().for_each(|&key| *counts.entry(key).or_default() += 1);
        }
        let n_named = |key: Key| self.text.n_learnt_of(self.text.positions(view, key));
        let of_key = |(key, n): (Key, usize)| match view.max_keys() {
            // Few keys must each say much.
            Some(_) => (f1(n, n_named(key), self.learnt.len(), 0), key, n),
            None => ((n as f64 - 0.5) / n_named(key) as f64, key, n),
        };
        // What was seen once may be chance: whether a view says where the feature is active, other keys tell, where there
        // are others.
        let has_others = self.learnt.len() >= FEW_LEARNT;
        let (once, mut ranked): (Vec<Ranked>, Vec<Ranked>) =
            counts.into_iter().map(of_key).partition(|&(.., n)| has_others && n == 1);
        let by_precision = |a: &Ranked, b: &Ranked| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        ranked.sort_by(by_precision);
        ranked.truncate(view.max_keys().unwrap_or(MAX_KEYS));
        let (mut n_best, mut best) = (0, self.f1(named));
        let mut now = named.clone();
        for (i, &(_, key, _)) in ranked.iter().enumerate() {
            self.add(&mut now, view, key);
            if self.f1(&now) > best {
                (n_best, best) = (i + 1, self.f1(&now));
            }
        }
        ranked.truncate(n_best);
        ranked.sort_by(|a, b| b.2.cmp(&a.2).then(a.1.cmp(&b.1)));
        // Once the view is found to say it, its rare keys are likely to as well: each is worth it that is right more often
        // than half of F1.
        if view.is_set_of_tokens() && n_best > 0 {
            let mut once: Vec<Ranked> = once
                .into_iter()
                .filter(|&(precision, key, _)| precision > best / 2.0 && n_named(key) <= MAX_SEEN_ONCE)
                .collect();
            once.sort_by(by_precision);
            ranked.extend(once);
        }
        (ranked.into_iter().map(|(_, key, _)| key).collect(), best)
    }
}

/// How much a key says, the key, and at how many learnt positions it holds.
type Ranked = (f64, Key, usize);

/// How many positions two ascending lists share.
pub(super) fn n_common(a: &[u32], b: &[u32]) -> usize {
    let (mut at, mut n) = (0, 0);
    for position in a {
        while at < b.len() && b[at] < *position {
            at += 1;
        }
        n += usize::from(b.get(at) == Some(position));
    }
    n
}
