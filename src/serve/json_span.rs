//! Where a member of a JSON object is in its text: so that one member of a large file is read or replaced, and every other
//! byte stays as it is.

use std::ops::Range;

/// The members of the object that `text` begins with: key (as it stands between its quotes) and the span of the value. The
/// list ends where the text does not go on as JSON, or `stop` says so.
pub(super) fn members(text: &[u8], mut stop: impl FnMut(&[u8]) -> bool) -> Vec<(Range<usize>, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = skip_space(text, 0);
    if text.get(at) != Some(&b'{') {
        return found;
    }
    at += 1;
    loop {
        at = skip_space(text, at);
        let Some(key_end) = string_end(text, at) else { return found };
        let key = at + 1..key_end - 1;
        at = skip_space(text, key_end);
        if text.get(at) != Some(&b':') {
            return found;
        }
        let start = skip_space(text, at + 1);
        let Some(end) = value_end(text, start) else { return found };
        let is_last = stop(&text[key.clone()]);
        found.push((key, start..end));
        at = skip_space(text, end);
        if is_last || text.get(at) != Some(&b',') {
            return found;
        }
        at += 1;
    }
}

/// The value of the member `key`; `None` where there is none, or more than one, of which readers would take the other.
pub(super) fn member(text: &[u8], key: &str) -> Option<Range<usize>> {
    let mut found = members(text, |_| false).into_iter().filter(|(span, _)| &text[span.clone()] == key.as_bytes());
    let first = found.next().map(|(_, value)| value);
    first.filter(|_| found.next().is_none())
}

/// The first member `key` of a text that may be cut short after it.
pub(super) fn early_member(text: &[u8], key: &str) -> Option<Range<usize>> {
    let (span, value) = members(text, |name| name == key.as_bytes()).pop()?;
    (&text[span] == key.as_bytes()).then_some(value)
}

fn skip_space(text: &[u8], at: usize) -> usize {
    at + text.get(at..).map_or(0, |rest| rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count())
}

/// The end of the string that begins at `at`, past its closing quote.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The end of the value that begins at `at`.
fn value_end(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => string_end(text, at),
        b'{' | b'[' => {
            let (mut open, mut at) = (Vec::new(), at);
            loop {
                match text.get(at)? {
                    b'"' => {
                        at = string_end(text, at)?;
                        continue;
                    }
                    b'{' => open.push(b'}'),
                    b'[' => open.push(b']'),
                    end @ (b'}' | b']') => {
                        if open.pop() != Some(*end) {
                            return None;
                        }
                        if open.is_empty() {
                            return Some(at + 1);
                        }
                    }
                    _ => (),
                }
                at += 1;
            }
        }
        _ => {
            let len = text[at..].iter().take_while(|byte| !b",}] \t\r\n".contains(byte)).count();
            // What ends with the text may go on.
            (len > 0 && at + len < text.len()).then_some(at + len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_where_a_parser_finds_them() {
        let text = r#" { "a" : [1, {"qParams": "no"}, "]}\""], "qParams":{"x":"}"} ,"c\"":-1.5e3, "d": null }"#;
        let all: Vec<(&str, &str)> =
            members(text.as_bytes(), |_| false).into_iter().map(|(k, v)| (&text[k], &text[v])).collect();
        let expected = [
            ("a", r#"[1, {"qParams": "no"}, "]}\""]"#),
            ("qParams", r#"{"x":"}"}"#),
            ("c\\\"", "-1.5e3"),
            ("d", "null"),
        ];
        assert_eq!(all, expected);
        assert_eq!(member(text.as_bytes(), "qParams").map(|span| &text[span]), Some(r#"{"x":"}"}"#));
        assert_eq!(member(br#"{"q": 1, "q": 2}"#, "q"), None);
        assert_eq!(early_member(br#"{"a": 1, "metadata": {"b": 2}, "nodes": [{"#, "metadata"), Some(21..29));
    }

    #[test]
    fn what_is_no_json_ends_the_list() {
        for text in [
            "",
            "{",
            "[",
            "{\"",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":\"",
            "{\"a\":[",
            "{\"a\":[}",
            "{\"a\":{\"",
            "{\"a\":\"\\",
            "}",
            "{1:2}",
        ] {
            assert!(members(text.as_bytes(), |_| false).is_empty(), "{text}");
        }
        // Deep nesting is no recursion.
        let deep = format!("{{\"a\": {}", "[".repeat(1_000_000));
        assert!(members(deep.as_bytes(), |_| false).is_empty());
    }
}
