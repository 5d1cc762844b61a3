//! The text that labels are learnt from and scored on: which positions a condition holds at, for every condition that
//! the text has.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use super::accumulate::sequence_hash;
use super::files::FeatureSet;
use super::place_states::{PlaceState, place_states};
use super::token_classes::{Affix, TokenClass, affixes, classes};

/// How far back "soon after" looks.
const SOON: usize = 8;

/// Later places in a sequence are no conditions.
const LAST_PLACE: usize = 4;

/// How far back "in text with" looks.
const WITHIN: usize = 32;

/// Tokens that are more often than one in so many say nothing of the text around them.
const FREQUENT: usize = 250;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum View {
    /// The token is one of some.
    Token,
    /// So it is but for spaces around it and case.
    Word,
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
    /// One of some tokens that are not frequent is among the 32 before.
    Within,
    /// The next token is one of some.
    Next,
    /// The token before is of a class.
    AfterClass,
    /// The next token is of a class.
    NextClass,
    /// The token is of a class, and the one before too.
    ClassAfter,
    /// The token is of a class, and the next one too.
    ClassBefore,
    /// It is at one of the first places of its sequence.
    Place,
    /// What its place in the text is like, such as within brackets.
    State,
}

impl View {
    pub(super) const ALL: [View; 16] = [
        View::Token,
        View::Word,
        View::Class,
        View::Affix,
        View::After,
        View::Pair,
        View::Triple,
        View::Soon,
        View::Within,
        View::Next,
        View::AfterClass,
        View::NextClass,
        View::ClassAfter,
        View::ClassBefore,
        View::Place,
        View::State,
    ];

    /// Whether its keys are tokens, of which a rare one is likely to be in a set that others like it are in.
    pub(super) fn is_set_of_tokens(self) -> bool {
        matches!(self, View::Token | View::Word)
    }

    /// Keys that make a name, where several make none.
    pub(super) fn max_keys(self) -> Option<usize> {
        match self {
            View::Affix => Some(1),
            View::Class | View::AfterClass | View::NextClass | View::ClassAfter | View::ClassBefore | View::State => {
                Some(2)
            }
            _ => None,
        }
    }
}

/// By condition. The order of its entries is the same in every run, but nothing rests on it.
pub(super) type KeyMap<V> = HashMap<Key, V, BuildHasherDefault<KeyHasher>>;

/// Some millions of conditions are looked up for every feature: quick, since nobody chooses them to collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(4) {
            let word = word.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
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
    /// Of each token.
    classes: Vec<Vec<TokenClass>>,
    affixes: Vec<Vec<u32>>,
    pub affix_names: Vec<Affix>,
    /// Of each token, the first one that is the same word.
    words: Vec<u32>,
    is_frequent: Vec<bool>,
    /// Of each position.
    states: Vec<Vec<PlaceState>>,
    /// Where each condition holds, ascending.
    index: Vec<KeyMap<Vec<u32>>>,
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
            words: Vec::new(),
            is_frequent: Vec::new(),
            states: Vec::new(),
            index: vec![KeyMap::default(); View::ALL.len()],
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
        text.describe_places(set);
        text.build_index();
        text
    }

    /// The classes and affixes of the tokens that occur.
    fn describe_tokens(&mut self, set: &FeatureSet) {
        self.classes = vec![Vec::new(); set.tokens().d_vocab()];
        self.affixes = vec![Vec::new(); set.tokens().d_vocab()];
        self.words = vec![0; set.tokens().d_vocab()];
        self.is_frequent = vec![false; set.tokens().d_vocab()];
        let mut counts: HashMap<u32, usize> = HashMap::new();
        self.tokens.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        let mut numbers: HashMap<Affix, u32> = HashMap::new();
        let mut words: HashMap<String, u32> = HashMap::new();
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
            let word = text.trim().to_lowercase();
            self.words[token as usize] = if word.is_empty() { token } else { *words.entry(word).or_insert(token) };
            self.is_frequent[token as usize] = counts[&token] * FREQUENT > self.tokens.len();
            self.affixes[token as usize] = affixes(&text).into_iter().map(number).collect();
            self.classes[token as usize] = classes(&text);
        }
    }

    /// What the place of each position is like.
    fn describe_places(&mut self, set: &FeatureSet) {
        for ends in self.starts.windows(2) {
            let tokens = &self.tokens[ends[0]..ends[1]];
            self.states.extend(place_states(&set.tokens().texts(tokens.iter().copied())));
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
        let next = (position + 1 < end).then(|| token(position + 1));
        let classes = |token: Option<u32>| token.map_or(&[][..], |token| &self.classes[token as usize]);
        let own_and = |keys: &mut Vec<Key>, others: &[TokenClass]| {
            for &own in classes(Some(token(position))) {
                keys.extend(others.iter().map(|&other| [own as u32, other as u32, 0]));
            }
        };
        match view {
            View::Token => keys.push([token(position), 0, 0]),
            View::Word => keys.push([self.words[token(position) as usize], 0, 0]),
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
            View::Within => {
                let near = (1..=WITHIN).filter_map(back).filter(|&token| !self.is_frequent[token as usize]);
                keys.extend(near.map(|token| [self.words[token as usize], 0, 0]));
                keys.sort_unstable();
                keys.dedup();
            }
            View::Next => keys.extend(next.map(|next| [next, 0, 0])),
            View::AfterClass => keys.extend(classes(back(1)).iter().map(|&class| [class as u32, 0, 0])),
            View::NextClass => keys.extend(classes(next).iter().map(|&class| [class as u32, 0, 0])),
            View::ClassAfter => own_and(keys, classes(back(1))),
            View::ClassBefore => own_and(keys, classes(next)),
            View::State => keys.extend(self.states[position].iter().map(|&state| [state as u32, 0, 0])),
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
