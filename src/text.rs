//! `text`: foreign text made safe for where it goes.
//!
//! Prompts, tokens, labels, names of supernodes and plans, ids and paths come from files that anybody may have written.
//! Each place that text goes to has one function here: the terminal ([`terminal`], [`quoted`]), SVG, GraphML and HTML
//! ([`xml`]), tables ([`csv_cell`]), Graphviz ([`dot`]) and file names ([`slug`]). JSON is escaped by `serde_json`, and for
//! the terminal by [`json_lines`]. What was mistyped finds what was meant by [`typing_distance`].

/// What stands for a character that its place cannot hold.
const REPLACEMENT: char = '\u{FFFD}';

/// Whether a character is not seen itself but changes how what is around it is shown: control characters (C0, C1, escape
/// sequences begin with one), line and paragraph separators, marks that turn the direction of writing (U+202E makes
/// `exe.txt` of `txt.exe`), and tags, which nothing shows at all.
fn is_invisible_command(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
            | '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

/// `text` for one line of a terminal: what would move the cursor, break the line or turn the writing is shown as an
/// escape such as `\n` or `\u{1b}`. Everything else stays as it is, backslashes too.
pub fn terminal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible_command(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// As [`terminal`], in double quotes, so that spaces at the ends show; quotes and backslashes within are escaped.
pub fn quoted(text: &str) -> String {
    // The standard escapes cover all that `terminal` does; the few characters beyond them are looked for again.
    terminal(&format!("{text:?}"))
}

/// What [`quoted`] has put in quotes; nothing for what it has not.
pub fn unquoted(text: &str) -> Option<String> {
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut out = String::new();
    while let Some(c) = rest.next() {
        match c {
            '"' => return None,
            '\\' => out.push(match rest.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '0' => '\0',
                'u' => {
                    let digits = rest.as_str().strip_prefix('{')?.split_once('}')?.0;
                    rest.nth(digits.chars().count() + 1)?;
                    char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
                }
                c @ ('\\' | '"' | '\'') => c,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
    Some(out)
}

/// JSON for a terminal: what `serde_json` leaves as it is within strings and a terminal obeys becomes `\u009b` and the
/// like, which means the same to every reader. Its own line breaks stay.
pub fn json_lines(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_invisible_command(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// `text` in at most `max_chars` characters, at least one, the last an ellipsis where it is cut.
pub fn shortened(text: &str, max_chars: usize) -> String {
    if text.chars().count() <= max_chars {
        return text.to_owned();
    }
    text.chars().take(max_chars.saturating_sub(1)).chain(['…']).collect()
}

/// `text` in at most `max_chars` characters, with an ellipsis in the place of its middle where it is longer: a prompt's end is
/// what is explained.
pub fn shortened_middle(text: &str, max_chars: usize) -> String {
    let n_chars = text.chars().count();
    if n_chars <= max_chars {
        return text.to_owned();
    }
    const GAP: &str = " … ";
    let n_kept = max_chars.saturating_sub(GAP.chars().count());
    let n_start = n_kept / 2;
    let start = text.chars().take(n_start);
    start.chain(GAP.chars()).chain(text.chars().skip(n_chars - (n_kept - n_start))).collect()
}

/// `text` for XML and HTML, in content and in attributes within double quotes. Line breaks and tabs become spaces; what
/// XML cannot hold, and what would turn the direction of writing, becomes U+FFFD.
pub fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(' '),
            c if is_invisible_command(c) || c == '\u{FFFE}' || c == '\u{FFFF}' => out.push(REPLACEMENT),
            c => out.push(c),
        }
    }
    out
}

/// Who reads the cells of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cells {
    /// Perhaps a spreadsheet, which computes cells that begin like a formula: these get an apostrophe in front.
    #[default]
    Spreadsheet,
    /// A program, which takes every cell as it is.
    Exact,
}

/// `text` as a cell of a table (RFC 4180): quoted where commas, quotes, line breaks or spaces at its ends need it.
///
/// Spreadsheets compute cells that begin with `=`, `+`, `-`, `@` (in their wide forms too), a tab or a carriage return: for
/// them such a text gets an apostrophe in front, which they take for "this is text". Numbers and single characters, which
/// compute nothing, stay as they are.
pub fn csv_cell(text: &str, cells: Cells) -> String {
    const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    let mut cell: String = String::with_capacity(text.len());
    let trimmed = text.trim();
    let is_formula =
        trimmed.starts_with(FORMULA) && trimmed.chars().nth(1).is_some() && trimmed.parse::<f64>().is_err();
    if cells == Cells::Spreadsheet && (is_formula || text.starts_with(['\t', '\r'])) {
        cell.push('\'');
    }
    for c in text.chars() {
        let is_fine = !is_invisible_command(c) || matches!(c, '\n' | '\r' | '\t');
        cell.push(if is_fine { c } else { REPLACEMENT });
    }
    let must_be_quoted = cell.contains([',', '"', '\n', '\r']) || cell.trim() != cell;
    if must_be_quoted { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

/// `text` as a quoted string of Graphviz's language, shown as it is: its escapes (`\N`) and entities (`&lt;`) are
/// switched off, line breaks stay line breaks.
pub fn dot(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '&' => out.push_str("&amp;"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push(' '),
            c if is_invisible_command(c) => out.push(REPLACEMENT),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A file name from a text: its letters and digits in lower case, words joined by dashes, at most 60 characters; `graph`
/// where nothing is left. Also whether all of the text's words are in it.
pub fn slug(text: &str) -> (String, bool) {
    const MAX_CHARS: usize = 60;
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let joined = words.map(str::to_lowercase).collect::<Vec<_>>().join("-");
    let mut slug = String::new();
    for c in joined.chars().take(MAX_CHARS) {
        // Room for what is added to it.
        if slug.len() + c.len_utf8() <= MAX_NAME_BYTES / 2 {
            slug.push(c);
        }
    }
    let is_whole = slug.len() == joined.len() && !slug.is_empty();
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { ("graph".into(), is_whole) } else { (slug.into(), is_whole) }
}

/// File systems take 255 bytes a name; endings and the marks of unfinished files are added to this.
const MAX_NAME_BYTES: usize = 200;

/// Checks that a text is the name of a file in a folder, on every system, and nothing else: no path, nothing that is not
/// seen.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that began with the name.
pub fn check_file_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        "." | ".." => Err("is a folder"),
        _ if name.contains(['/', '\\']) => Err("holds a `/` or `\\`, which names have not"),
        _ if name.chars().any(is_invisible_command) => Err("holds characters that are not seen"),
        _ if name.trim() != name => Err("begins or ends with a space"),
        _ if name.len() > MAX_NAME_BYTES => Err("is longer than 200 bytes"),
        _ => Ok(()),
    }
}

/// Characters to add, drop, change or swap with their neighbour, at least, to make `a` of `b`; of long texts their beginnings
/// count.
pub fn typing_distance(a: &str, b: &str) -> usize {
    const MAX_CHARS: usize = 40;
    let letters = |text: &str| text.chars().take(MAX_CHARS).collect::<Vec<char>>();
    edit_distance(&letters(a), &letters(b))
}

/// The name among `known` that somebody who typed `typed` most likely meant: the one with the fewest letters to change,
/// case aside, if that is at most a third of them.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |name: &str| name.trim().to_lowercase().chars().collect::<Vec<char>>();
    let typed = letters(typed);
    let distances = known.into_iter().map(|name| (edit_distance(&typed, &letters(name)), name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (3 * distance <= typed.len().max(name.chars().count())).then_some(name)
}

/// How many letters must be changed, added, left out or exchanged with the next one to make one of the other. Source:
/// the restricted Damerau-Levenshtein distance, by its three last rows.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut rows = [vec![0; b.len() + 1], (0..=b.len()).collect(), vec![0; b.len() + 1]];
    for i in 1..=a.len() {
        rows[2][0] = i;
        for j in 1..=b.len() {
            let is_other = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[1][j] + 1).min(rows[2][j - 1] + 1).min(rows[1][j - 1] + is_other);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[0][j - 2] + 1);
            }
            rows[2][j] = least;
        }
        rows.rotate_left(1);
    }
    rows[1][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_text_says_that_it_is() {
        let cut = ["Zürich", "Zürichs", ""].map(|text| shortened(text, 6));
        assert_eq!(cut, ["Zürich", "Züric…", ""]);
        assert_eq!(shortened_middle("0123456789", 9), "012 … 789");
        assert_eq!(shortened_middle("012345678", 9), "012345678");
    }

    #[test]
    fn the_nearest_name_is_what_was_meant() {
        let known = ["smollm2", "gemma", "llama"];
        assert_eq!(nearest("smolm2", known), Some("smollm2"));
        assert_eq!(nearest("Gemma", known), Some("gemma"));
        assert_eq!(nearest("llaam", known), Some("llama"));
        assert_eq!(nearest("qwen", known), None);
        assert_eq!(nearest("x", []), None);
        let distance = |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!([distance("", "abc"), distance("ab", "ba"), distance("kitten", "sitting")], [3, 1, 3]);
    }

    /// Clears a screen, begins an 8-bit escape sequence, turns the writing, breaks the line, closes quotes and elements.
    const HOSTILE: &str = "\u{1b}[2J \u{9b}31m \u{202e}txt\u{2028}\n\r\0<b a='1' c=\"2\">&amp;\\N\u{e0041}\u{feff}";

    fn has_commands(text: &str) -> bool {
        text.chars().any(|c| is_invisible_command(c) && !matches!(c, '\n' | '\r' | '\t'))
    }

    #[test]
    fn what_is_quoted_can_be_unquoted() {
        for text in ["", " Dallas", "\"", "a\\n\"b\"", "\n\t\r\0", "\u{301}x", HOSTILE] {
            assert_eq!(unquoted(&quoted(text)).as_deref(), Some(text), "{text:?}");
        }
        for text in ["", "\"", "Dallas", "\"a", "a\"", "\"a\"b\"", "\"\\\"", "\"\\q\"", "\"\\u{110000}\"", "\"\\u{41\""]
        {
            assert_eq!(unquoted(text), None, "{text}");
        }
    }

    #[test]
    fn hostile_text_cannot_command_a_terminal() {
        let shown = terminal(HOSTILE);
        assert!(!has_commands(&shown) && !shown.contains(['\n', '\r', '\t']), "{shown}");
        assert!(shown.contains("\\u{1b}[2J") && shown.contains("\\u{9b}31m") && shown.contains("\\u{202e}txt"));
        assert!(shown.contains("\\n\\r\\u{0}"), "nothing is lost: {shown}");
        let shown = quoted(HOSTILE);
        assert!(!has_commands(&shown) && !shown.contains('\n') && shown.contains("\\\"2\\\""), "{shown}");
        assert_eq!(terminal(" naïve 日本 👩‍🔬 C:\\x"), " naïve 日本 👩‍🔬 C:\\x");
        assert_eq!(quoted(" Austin"), "\" Austin\"");
    }

    #[test]
    fn hostile_text_in_json_is_read_back_as_it_was() {
        let json = serde_json::to_string_pretty(&[HOSTILE]).unwrap();
        assert!(has_commands(&json), "what `serde_json` leaves: {json}");
        let shown = json_lines(&json);
        assert!(!has_commands(&shown) && shown.contains("\\u009b31m") && shown.contains("\\udb40\\udc41"), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [HOSTILE]);
    }

    #[test]
    fn hostile_text_stays_text_in_xml() {
        let shown = xml(HOSTILE);
        assert!(!has_commands(&shown) && !shown.contains(['<', '>', '"']), "{shown}");
        assert!(shown.contains("&lt;b a='1' c=&quot;2&quot;&gt;&amp;amp;"), "{shown}");
    }

    #[test]
    fn hostile_text_stays_one_string_in_dot() {
        let shown = dot(HOSTILE);
        assert!(!has_commands(&shown) && !shown.contains('\n'), "{shown}");
        assert!(shown.contains("c=\\\"2\\\">&amp;amp;\\\\N"), "{shown}");
        assert_eq!(dot("a\nb"), "\"a\\nb\"");
    }

    #[test]
    fn cells_are_quoted_where_they_must_be_and_compute_nothing() {
        let cell = |text: &str| csv_cell(text, Cells::Spreadsheet);
        assert_eq!(cell("plain"), "plain");
        assert_eq!(cell(" Austin"), "\" Austin\"");
        assert_eq!(cell("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(cell("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(cell("\t@x"), "'\t@x");
        assert_eq!(cell("\tx"), "'\tx");
        assert_eq!(cell("＝1+1"), "'＝1+1");
        assert_eq!(cell(" +a"), "' +a");
        assert_eq!(["-", "-1.5", "0_-1_4"].map(cell), ["-", "-1.5", "0_-1_4"]);
        assert!(!has_commands(&cell(HOSTILE)));
        let exact = |text: &str| csv_cell(text, Cells::Exact);
        assert_eq!(exact("=HYPERLINK(1)"), "=HYPERLINK(1)");
        assert_eq!(exact(" +a"), "\" +a\"");
        assert!(!has_commands(&exact(HOSTILE)));
    }

    #[test]
    fn slugs_are_safe_file_names() {
        assert_eq!(slug("The capital of Texas, is"), ("the-capital-of-texas-is".into(), true));
        assert_eq!(slug("../..\\ "), ("graph".into(), false));
        let (long, is_whole) = slug(&"word ".repeat(100));
        assert!(long.len() <= 60 && !is_whole);
        assert!(slug(&"𐐀".repeat(100)).0.len() <= MAX_NAME_BYTES / 2);
        assert!(check_file_name(&slug(HOSTILE).0).is_ok() && !slug(HOSTILE).0.contains('.'));
    }

    #[test]
    fn names_are_no_paths() {
        for name in ["dallas", "a.b", "日本", "-", &"x".repeat(200)] {
            assert_eq!(check_file_name(name), Ok(()), "{name}");
        }
        let long = "x".repeat(201);
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "/", "a\nb", "\u{1b}[2J", "\u{202e}x", " x", "x ", &long] {
            assert!(check_file_name(name).is_err(), "{name:?}");
        }
    }
}
