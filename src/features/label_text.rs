//! The text that labels are learnt from and scored on: which positions a condition holds at, for every condition that
//! the text has.

use std::collections::{HashMap, HashSet};

use super::accumulate::sequence_hash;
use super::files::FeatureSet;
use super::token_classes::{Affix, TokenClass, affixes, classes};

/// How far back "soon after" looks.
const SOON: usize = 8;

/// Later places in a sequence are no conditions.
const LAST_PLACE: usize = 4;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum View {
    /// The token is one of some.
    Token,
    /// It is of a class, such as month names.
    Class,
    /// It begins or ends with some letters.
    Affix,
    /// The token before is one of some.
    After,
    /// The token and the one before are one of some pairs.
    Pair,
    /// The token and the two before.
    Triple,
    /// One of some tokens is among the eight before.
    Soon,
    /// The next token is one of some.
    Next,
    /// It is at one of the first places of its sequence.
    Place,
}

impl View {
    pub(super) const ALL: [View; 9] = [
        View::Token,
        View::Class,
        View::Affix,
        View::After,
        View::Pair,
        View::Triple,
        View::Soon,
        View::Next,
        View::Place,
    ];

    /// Whether conditions of different keys can hold at the same position.
    pub(super) fn overlaps(self) -> bool {
        matches!(self, View::Class | View::Affix | View::Soon)
    }
}

/// A condition of a view: token ids, or the number of a class, an affix or a place.
pub(super) type Key = [u32; 3];

/// Positions are counted over the sequences that labels are learnt from, and then over those that they are scored on.
#[derive(Debug)]
pub(super) struct LabelText {
    pub tokens: Vec<u32>,
    /// The sequence of each position.
    sequences: Vec<u32>,
    /// First position of each sequence, and the number of positions.
    pub starts: Vec<usize>,
    /// Positions up to here are learnt from.
    pub n_learnt: usize,
    /// Hashes of the sequences that are scored on: whoever names a feature may not see these.
    pub scored: HashSet<u64>,
    /// Whether transcoders read there.
    counted: Vec<bool>,
    /// Counted positions learnt from, and scored on.
    pub n_counted: [usize; 2],
    classes: Vec<Vec<TokenClass>>,
    affixes: Vec<Vec<u32>>,
    pub affix_names: Vec<Affix>,
    /// Where each condition holds, ascending.
    index: Vec<HashMap<Key, Vec<u32>>>,
}

impl LabelText {
    /// Takes sequences of a text by hash, up to about `max_tokens`: every other one to learn from, the rest to score on.
    /// Of equal sequences one.
    pub(super) fn new(set: &FeatureSet, max_tokens: usize, n_excluded: impl Fn(&[u32]) -> usize) -> Self {
        let store = set.tokens();
        let sequence = |i: usize| store.sequence(i).map(|at| store.token(at));
        let mut ranked: Vec<(u64, usize)> = (0..store.n_sequences()).map(|i| (sequence_hash(sequence(i)), i)).collect();
        ranked.sort_unstable();
        ranked.dedup_by_key(|(hash, _)| *hash);
        let mut n = 0;
        let mut chosen: Vec<usize> = Vec::new();
        for (_, i) in ranked {
            if n >= max_tokens {
                break;
            }
            n += store.sequence(i).len();
            chosen.push(i);
        }
        let learnt = chosen.iter().step_by(2);
        let scored = chosen.iter().skip(1).step_by(2);
        let mut text = Self {
            tokens: Vec::new(),
            sequences: Vec::new(),
            starts: vec![0],
            n_learnt: 0,
            scored: HashSet::new(),
            counted: Vec::new(),
            n_counted: [0; 2],
            classes: Vec::new(),
            affixes: Vec::new(),
            affix_names: Vec::new(),
            index: vec![HashMap::new(); View::ALL.len()],
        };
        let n_learnt_sequences = learnt.len();
        for (number, &i) in learnt.chain(scored).enumerate() {
            let tokens: Vec<u32> = sequence(i).collect();
            let n_excluded = n_excluded(&tokens);
            text.counted.extend((0..tokens.len()).map(|offset| offset >= n_excluded));
            text.n_counted[usize::from(number >= n_learnt_sequences)] += tokens.len().saturating_sub(n_excluded);
            text.sequences.extend(tokens.iter().map(|_| number as u32));
            text.tokens.extend(tokens);
            text.starts.push(text.tokens.len());
            if number < n_learnt_sequences {
                text.n_learnt = text.tokens.len();
            } else {
                text.scored.insert(sequence_hash(sequence(i)));
            }
        }
        text.describe_tokens(set);
        text.build_index();
        text
    }

    /// The classes and affixes of the tokens that occur.
    fn describe_tokens(&mut self, set: &FeatureSet) {
        self.classes = vec![Vec::new(); set.tokens().d_vocab()];
        self.affixes = vec![Vec::new(); set.tokens().d_vocab()];
        let mut numbers: HashMap<Affix, u32> = HashMap::new();
        let occurring: HashSet<u32> = self.tokens.iter().copied().collect();
        let mut occurring: Vec<u32> = occurring.into_iter().collect();
        occurring.sort_unstable();
        for token in occurring {
            let text = set.tokens().text(token);
            let names = &mut self.affix_names;
            let number = |affix: Affix| {
                *numbers.entry(affix).or_insert_with_key(|affix| {
                    names.push(affix.clone());
                    names.len() as u32 - 1
                })
            };
            self.affixes[token as usize] = affixes(&text).into_iter().map(number).collect();
            self.classes[token as usize] = classes(&text);
        }
    }

    fn build_index(&mut self) {
        let mut keys = Vec::new();
        for position in 0..self.tokens.len() {
            if !self.counted[position] {
                continue;
            }
            for view in View::ALL {
                self.keys_of(view, position, &mut keys);
                for &key in &keys {
                    self.index[view as usize].entry(key).or_default().push(position as u32);
                }
            }
        }
    }

    /// The conditions of a view that hold at a position.
    pub(super) fn keys_of(&self, view: View, position: usize, keys: &mut Vec<Key>) {
        keys.clear();
        let sequence = self.sequences[position] as usize;
        let (start, end) = (self.starts[sequence], self.starts[sequence + 1]);
        let token = |at: usize| self.tokens[at];
        // The first token of a sequence stands for no text.
        let back = |n: usize| position.checked_sub(n).filter(|&at| at > start).map(token);
        match view {
            View::Token => keys.push([token(position), 0, 0]),
            View::Class => {
                keys.extend(self.classes[token(position) as usize].iter().map(|&class| [class as u32, 0, 0]));
            }
            View::Affix => keys.extend(self.affixes[token(position) as usize].iter().map(|&affix| [affix, 0, 0])),
            View::After => keys.extend(back(1).map(|before| [before, 0, 0])),
            View::Pair => keys.extend(back(1).map(|before| [before, token(position), 0])),
            View::Triple => {
                keys.extend(back(2).zip(back(1)).map(|(first, second)| [first, second, token(position)]));
            }
            View::Soon => {
                keys.extend((1..=SOON).filter_map(back).map(|before| [before, 0, 0]));
                keys.sort_unstable();
                keys.dedup();
            }
            View::Next => keys.extend((position + 1 < end).then(|| [token(position + 1), 0, 0])),
            View::Place => {
                let place = position - start;
                keys.extend((place <= LAST_PLACE).then_some([place as u32, 0, 0]));
            }
        }
    }

    /// Where a condition holds.
    pub(super) fn positions(&self, view: View, key: Key) -> &[u32] {
        self.index[view as usize].get(&key).map_or(&[], Vec::as_slice)
    }

    /// Where one of several conditions holds, ascending.
    pub(super) fn positions_of_any(&self, view: View, keys: &[Key]) -> Vec<u32> {
        let mut all: Vec<u32> = keys.iter().flat_map(|&key| self.positions(view, key)).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The tokens around a position that are in its sequence and stand for text.
    pub(super) fn around(&self, position: usize, before: usize, after: usize) -> std::ops::Range<usize> {
        let sequence = self.sequences[position] as usize;
        let first = (self.starts[sequence]..position).find(|&at| self.counted[at]).unwrap_or(position);
        position.saturating_sub(before).max(first)..(position + after + 1).min(self.starts[sequence + 1])
    }

    pub(super) fn is_counted(&self, position: usize) -> bool {
        self.counted[position]
    }

    /// How many of ascending positions are learnt from.
    pub(super) fn n_learnt_of(&self, positions: &[u32]) -> usize {
        positions.partition_point(|&position| (position as usize) < self.n_learnt)
    }
}
