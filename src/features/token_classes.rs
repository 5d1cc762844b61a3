//! Kinds of tokens that people have words for.

/// Declares the classes, each once: with what it is called.
macro_rules! token_classes {
    ($($class:ident => $name:literal,)*) => {
        /// A kind of token.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(super) enum TokenClass {
            $($class,)*
        }

        impl TokenClass {
            /// All, in order: the number of a class is its place.
            const ALL: &[TokenClass] = &[$(TokenClass::$class,)*];

            /// What it is called.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(TokenClass::$class => $name,)*
                }
            }
        }
    };
}

token_classes! {
    Months => "month names",
    Weekdays => "weekdays",
    NumberWords => "number words",
    Pronouns => "pronouns",
    Possessives => "possessives",
    Articles => "articles",
    Prepositions => "prepositions",
    Conjunctions => "conjunctions",
    Be => "forms of \"be\"",
    Have => "forms of \"have\"",
    Modals => "modal verbs",
    Questions => "question words",
    Colours => "colours",
    States => "US states",
    Years => "years",
    Numbers => "numbers",
    LineBreaks => "line breaks",
    SentenceEnds => "ends of sentences",
    Commas => "commas and semicolons",
    Quotes => "quotation marks",
    Opening => "opening brackets",
    Closing => "closing brackets",
    Punctuation => "punctuation",
    Capitalised => "capitalised words",
    Capitals => "words in capitals",
    SingleLetters => "single letters",
    Continuations => "rests of words",
    OtherScripts => "letters beyond ASCII",
}

use TokenClass::*;

/// Classes that are lists of words.
const WORDS: &[(TokenClass, &str)] = &[
    (Months, "january february march april may june july august september october november december"),
    (Weekdays, "monday tuesday wednesday thursday friday saturday sunday"),
    (NumberWords, "one two three four five six seven eight nine ten eleven twelve hundred thousand million billion"),
    (Pronouns, "i you he she it we they me him her us them myself himself herself itself themselves"),
    (Possessives, "my your his her its our their mine yours ours theirs"),
    (Articles, "a an the"),
    (
        Prepositions,
        "of in to for with on at by from into about over after under between through during before against among",
    ),
    (Conjunctions, "and or but nor so yet because although while if unless"),
    (Be, "be am is are was were been being"),
    (Have, "have has had having"),
    (Modals, "can could may might must shall should will would"),
    (Questions, "who what when where why which how whose whom"),
    (Colours, "red blue green yellow black white brown orange purple pink grey gray"),
    (
        States,
        "alabama alaska arizona arkansas california colorado connecticut delaware florida georgia hawaii idaho illinois \
         indiana iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri \
         montana nebraska nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont virginia washington \
         wisconsin wyoming",
    ),
];

impl TokenClass {
    /// The class of a number that `class as u32` gave.
    pub(super) fn of_number(number: u32) -> Self {
        Self::ALL[number as usize]
    }
}

/// Whether a text is the rest of a word: small letters without a space before them.
pub(super) fn is_continuation(text: &str) -> bool {
    !text.is_empty() && text.chars().all(char::is_lowercase)
}

/// The classes of a token's text, ascending.
pub(super) fn classes(text: &str) -> Vec<TokenClass> {
    let word = text.trim();
    let lower = word.to_lowercase();
    let mut found = Vec::new();
    let mut add = |class: TokenClass, holds: bool| {
        if holds {
            found.push(class);
        }
    };
    for &(class, words) in WORDS {
        add(class, words.split_whitespace().any(|known| known == lower));
    }
    let all = |holds: fn(char) -> bool| !word.is_empty() && word.chars().all(holds);
    let one_of = |of: &str| !word.is_empty() && word.chars().all(|c| of.contains(c));
    let is_number = all(|c| c.is_ascii_digit());
    let century = word.get(..2).and_then(|century| century.parse::<u32>().ok());
    let is_year = is_number && word.len() == 4 && century.is_some_and(|century| (15..=20).contains(&century));
    add(Years, is_year);
    add(Numbers, is_number);
    add(LineBreaks, text.contains('\n') && word.is_empty());
    add(SentenceEnds, one_of(".!?"));
    add(Commas, one_of(",;"));
    add(Quotes, one_of("\"'`\u{201c}\u{201d}\u{2018}\u{2019}\u{ab}\u{bb}"));
    add(Opening, one_of("([{"));
    add(Closing, one_of(")]}"));
    add(Punctuation, all(|c| c.is_ascii_punctuation()));
    let n_letters = word.chars().count();
    let is_word = all(char::is_alphabetic);
    let rest_is_lower = word.chars().skip(1).all(char::is_lowercase);
    add(Capitalised, is_word && n_letters > 1 && word.chars().next().is_some_and(char::is_uppercase) && rest_is_lower);
    add(Capitals, is_word && n_letters > 1 && word.chars().all(char::is_uppercase));
    add(SingleLetters, is_word && n_letters == 1);
    add(Continuations, is_continuation(text));
    add(OtherScripts, is_word && !word.is_ascii());
    found
}

/// How a word begins or ends, in small letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Affix {
    Begins(String),
    Ends(String),
}

/// Beginnings of three to five letters and ends of two to four, of words that are longer.
pub(super) fn affixes(text: &str) -> Vec<Affix> {
    let letters: Vec<char> = text.trim().to_lowercase().chars().collect();
    if letters.is_empty() || !letters.iter().all(|c| c.is_alphabetic()) {
        return Vec::new();
    }
    let n = letters.len();
    let begins = (3..=5).filter(|&len| len < n).map(|len| Affix::Begins(letters[..len].iter().collect()));
    let ends = (2..=4).filter(|&len| len < n).map(|len| Affix::Ends(letters[n - len..].iter().collect()));
    begins.chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_of_the_classes_that_a_person_would_say() {
        for (text, name) in [
            (" March", "month names"),
            ("1984", "years"),
            (" 12", "numbers"),
            ("\n\n", "line breaks"),
            ("?", "ends of sentences"),
            (" (", "opening brackets"),
            (" Dallas", "capitalised words"),
            ("NASA", "words in capitals"),
            ("ing", "rests of words"),
            (" \u{4e2d}", "letters beyond ASCII"),
            (" were", "forms of \"be\""),
        ] {
            let found = classes(text);
            assert!(found.iter().any(|class| class.name() == name), "{text:?}: {found:?}");
            assert!(found.iter().all(|&class| TokenClass::of_number(class as u32) == class), "{found:?}");
        }
        assert_eq!(classes(" house"), []);
        assert_eq!(classes("2984"), [Numbers]);
        assert_eq!(affixes(" going").last(), Some(&Affix::Ends("oing".into())));
        assert_eq!(affixes(" 12"), []);
    }
}
