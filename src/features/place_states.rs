//! What a place in a text is like, whatever token stands there.

use super::token_classes::is_continuation;

/// Declares the states, each once: with what it is called.
macro_rules! place_states {
    ($($state:ident => $name:literal,)*) => {
        /// What a place is like.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(super) enum PlaceState {
            $($state,)*
        }

        impl PlaceState {
            const ALL: &[PlaceState] = &[$(PlaceState::$state,)*];

            /// What it is called.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(PlaceState::$state => $name,)*
                }
            }
        }
    };
}

place_states! {
    LineStart => "beginnings of lines",
    InQuotes => "within quotation marks",
    InBrackets => "within brackets",
    Seen => "words seen before",
    SplitStart => "first parts of words",
    SplitEnd => "last parts of words",
    SplitWithin => "middle parts of words",
    QuotedLine => "in lines that begin with \">\"",
    HeaderLine => "in lines that begin with \"Name:\"",
    InAddress => "in addresses and paths",
}

use PlaceState::*;

impl PlaceState {
    /// The state of a number that `state as u32` gave.
    pub(super) fn of_number(number: u32) -> Self {
        Self::ALL[number as usize]
    }
}

/// The states of each token of a sequence, of which the first may stand for no text.
pub(super) fn place_states(texts: &[String]) -> Vec<Vec<PlaceState>> {
    let mut all = Vec::with_capacity(texts.len());
    let (mut is_in_quotes, mut depth, mut line, mut address) = (false, 0usize, String::new(), String::new());
    let mut seen = std::collections::HashSet::new();
    for (at, text) in texts.iter().enumerate() {
        let mut states = Vec::new();
        if at == 0 {
            all.push(states);
            continue;
        }
        let word = text.trim();
        let mut add = |state: PlaceState, holds: bool| {
            if holds {
                states.push(state);
            }
        };
        if text.starts_with(char::is_whitespace) {
            address.clear();
        }
        address.push_str(word);
        let is_text = !word.is_empty();
        add(LineStart, is_text && line.trim().is_empty());
        add(InQuotes, is_in_quotes);
        add(InBrackets, depth > 0);
        let is_long_word = word.chars().count() > 3 && word.chars().all(char::is_alphabetic);
        add(Seen, is_long_word && !seen.insert(word.to_lowercase()));
        // A word that was cut into parts: the rest of one has no space before it.
        let is_rest =
            at > 1 && is_continuation(text) && texts[at - 1].chars().next_back().is_some_and(char::is_alphabetic);
        let goes_on = texts.get(at + 1).is_some_and(|next| is_continuation(next));
        let is_letters = word.chars().next_back().is_some_and(char::is_alphabetic);
        add(SplitStart, is_letters && !is_rest && goes_on);
        add(SplitEnd, is_rest && !goes_on);
        add(SplitWithin, is_rest && goes_on);
        let begun = line.trim_start();
        add(QuotedLine, begun.starts_with('>'));
        let name = begun.split_once(':').map(|(name, _)| name);
        let is_name =
            |name: &str| name.starts_with(char::is_uppercase) && name.chars().all(|c| c.is_alphanumeric() || c == '-');
        add(HeaderLine, name.is_some_and(is_name));
        let is_address = |text: &str| text.contains("://") || text.contains('@') || text.matches('/').count() > 1;
        add(InAddress, is_address(&address));
        all.push(states);
        for c in text.chars() {
            match c {
                '"' => is_in_quotes = !is_in_quotes,
                '\u{201c}' => is_in_quotes = true,
                '\u{201d}' => is_in_quotes = false,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                '\n' => {
                    line.clear();
                    (is_in_quotes, depth) = (false, 0);
                    continue;
                }
                _ => {}
            }
            line.push(c);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_from_what_stands_before_them() {
        let states = |text: &[&str]| place_states(&text.iter().map(|&t| t.to_owned()).collect::<Vec<_>>());
        let of = |found: &[Vec<PlaceState>], state: PlaceState| -> Vec<usize> {
            (0..found.len()).filter(|&at| found[at].contains(&state)).collect()
        };
        let text = [
            "<s>", "From", ":", " a", "@", "b", "\n", "He", " said", " (", "see", " that", ")", " \"", "no", "\"", ".",
        ];
        let found = states(&text);
        assert_eq!(of(&found, LineStart), [1, 7]);
        assert_eq!(of(&found, HeaderLine), [3, 4, 5, 6]);
        assert_eq!(of(&found, InAddress), [4, 5]);
        assert_eq!(of(&found, InBrackets), [10, 11, 12]);
        assert_eq!(of(&found, InQuotes), [14, 15]);
        let found = states(&["<s>", " inter", "nation", "al", " law", ",", " which", " LAW", " which"]);
        assert_eq!(
            (of(&found, SplitStart), of(&found, SplitWithin), of(&found, SplitEnd)),
            (vec![1], vec![2], vec![3])
        );
        assert_eq!(of(&found, Seen), [8], "short words are no names");
        let found = states(&["<s>", ">", " yes", "\n", "no"]);
        assert_eq!(of(&found, QuotedLine), [2, 3]);
        for state in PlaceState::ALL {
            assert_eq!(PlaceState::of_number(*state as u32), *state);
        }
    }
}
