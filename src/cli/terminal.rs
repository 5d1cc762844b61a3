//! The terminal that results are printed to: its width, and whether it shows colours.
//!
//! Text is written without either. What is printed is wrapped and coloured here, by its layout: a line that is not
//! indented is a heading or begins with the name of its value, the line under a heading is the head of a table, and a
//! number with a sign is an effect.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use clap::{ColorChoice, ValueEnum};

/// Where the values of `name   value` lines begin.
const VALUE_COLUMN: usize = 12;

/// Columns of a table are not cut below this.
const LEAST_COLUMN: usize = 12;

/// Narrower terminals are taken for this wide: nothing fits them.
const LEAST_WIDTH: usize = 40;

/// Columns of the terminal on stdout; 0 is any number.
static WIDTH: AtomicUsize = AtomicUsize::new(0);
static COLOR_STDOUT: AtomicBool = AtomicBool::new(false);
static COLOR_STDERR: AtomicBool = AtomicBool::new(false);

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR says otherwise; CLICOLOR_FORCE asks for them everywhere
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// What the arguments ask for, before they are parsed: clap prints its help and errors in the same colours.
    pub(super) fn of_arguments(arguments: impl Iterator<Item = std::ffi::OsString>) -> Color {
        let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
        let before_rest = arguments.iter().take_while(|argument| *argument != "--");
        let mut color = Color::Auto;
        for (at, argument) in before_rest.enumerate() {
            let value = match argument.strip_prefix("--color") {
                Some("") => arguments.get(at + 1).map(String::as_str),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            };
            color = value.and_then(|value| Color::from_str(value, false).ok()).unwrap_or(color);
        }
        color
    }

    pub(super) fn for_clap(self) -> ColorChoice {
        match self {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        }
    }

    /// Whether a stream is written in colours. Source: no-color.org, bixense.com/clicolors.
    fn applies_to(self, is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> bool {
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if is_set("NO_COLOR") => false,
            Color::Auto if is_set("CLICOLOR_FORCE") && variable("CLICOLOR_FORCE").as_deref() != Some("0") => true,
            Color::Auto => {
                let is_off =
                    variable("CLICOLOR").as_deref() == Some("0") || variable("TERM").as_deref() == Some("dumb");
                is_terminal && !is_off
            }
        }
    }
}

/// Looks at the terminal. Called once, before anything is printed.
pub(super) fn start(color: Color) {
    let variable = |name: &str| std::env::var(name).ok();
    let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
    COLOR_STDOUT.store(color.applies_to(stdout, variable), Ordering::Relaxed);
    COLOR_STDERR.store(color.applies_to(stderr, variable), Ordering::Relaxed);
    // COLUMNS is for programs that are not on a terminal themselves, such as a pager's input.
    let asked: Option<usize> = variable("COLUMNS").and_then(|columns| columns.parse().ok());
    let columns = asked.filter(|&n| n > 0).or_else(|| stdout.then(columns_of_stdout).flatten());
    WIDTH.store(columns.map_or(0, |columns| columns.max(LEAST_WIDTH)), Ordering::Relaxed);
}

/// Whether stdout is written in colours.
pub(super) fn color_on_stdout() -> bool {
    COLOR_STDOUT.load(Ordering::Relaxed)
}

/// What is written from here on goes to a file: as wide as it is, without colours.
pub(super) fn write_to_file() {
    WIDTH.store(0, Ordering::Relaxed);
    COLOR_STDOUT.store(false, Ordering::Relaxed);
}

#[cfg(unix)]
fn columns_of_stdout() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes one `winsize`, whose address it is given, and fails on what is no terminal.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

#[cfg(not(unix))]
fn columns_of_stdout() -> Option<usize> {
    None
}

/// Columns of stdout, if they are limited.
fn width() -> Option<usize> {
    Some(WIDTH.load(Ordering::Relaxed)).filter(|&width| width > 0)
}

/// Columns that what is laid out by itself may have: those of a page, fewer in a narrower terminal.
pub(super) fn columns() -> usize {
    const PAGE: usize = 80;
    // Narrower ones would leave nothing of an example.
    const LEAST: usize = 60;
    width().map_or(PAGE, |width| width.clamp(LEAST, PAGE))
}

/// The widths of a table's columns such that it fits the terminal; only columns of `is_text` are made narrower, the widest
/// first.
pub(super) fn fitted(widths: Vec<usize>, is_text: &[bool]) -> Vec<usize> {
    match width() {
        Some(width) => fitted_to(width, widths, is_text),
        None => widths,
    }
}

fn fitted_to(width: usize, mut widths: Vec<usize>, is_text: &[bool]) -> Vec<usize> {
    // Every column has two spaces before it.
    let needed = |widths: &[usize]| widths.iter().map(|w| w + 2).sum::<usize>();
    while needed(&widths) > width {
        let texts = (0..widths.len()).filter(|&at| is_text[at] && widths[at] > LEAST_COLUMN);
        let Some(widest) = texts.max_by_key(|&at| widths[at]) else { break };
        widths[widest] -= 1;
    }
    widths
}

/// Results as stdout shows them.
pub(super) fn shown(text: &str) -> String {
    let wrapped = width().map_or_else(|| text.to_owned(), |width| wrap(text, width));
    if COLOR_STDOUT.load(Ordering::Relaxed) { colored(&wrapped) } else { wrapped }
}

/// Text that has colours of its own, or none, in lines that fit stdout: coloured ones are laid out by themselves.
pub(super) fn wrapped(text: &str) -> String {
    match width().filter(|_| !color_on_stdout()) {
        Some(width) => wrap(text, width),
        None => text.to_owned(),
    }
}

/// The first word of a message on stderr, `error:` or `hint:`.
pub(super) fn label(word: &str) -> String {
    if !COLOR_STDERR.load(Ordering::Relaxed) {
        return word.to_owned();
    }
    let style = if word == "error:" { RED_BOLD } else { CYAN };
    format!("{style}{word}{RESET}")
}

const RESET: &str = "\u{1b}[0m";
const BOLD: &str = "\u{1b}[1m";
const DIM: &str = "\u{1b}[2m";
const RED_BOLD: &str = "\u{1b}[1;31m";
const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const CYAN: &str = "\u{1b}[36m";

/// The bytes of the name that a line begins with: `name` and at least two spaces, before the column of values.
fn name_len(line: &str) -> Option<usize> {
    let end = line.find("  ")?;
    (end < VALUE_COLUMN && !line.starts_with(' ')).then_some(end)
}

/// Lines that are longer than `width` broken at spaces, what follows indented under what it belongs to.
fn wrap(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let indent = match name_len(line) {
            Some(_) => VALUE_COLUMN,
            None => line.len() - line.trim_start().len() + 2,
        };
        let mut rest: Vec<char> = line.chars().collect();
        while rest.len() > width {
            // A line begins with at least one word, however long it is.
            let start = rest.iter().take_while(|c| **c == ' ').count();
            let space = |at: &usize| rest[*at] == ' ';
            // Between texts in quotes rather than within one, unless that leaves half of the line empty.
            let is_between = |at: &usize| rest[..*at].iter().filter(|c| **c == '"').count() % 2 == 0;
            let places = || (start + 1..=width).rev().filter(space);
            let best = places().filter(|at| 2 * at > width).find(is_between).or_else(|| places().next());
            // A word that is longer than the line is not broken.
            let Some(at) = best.or_else(|| (width..rest.len()).find(|at| *at > start && space(at))) else { break };
            out.push_str(rest[..at].iter().collect::<String>().trim_end());
            out.push('\n');
            let next: String = rest[at..].iter().collect();
            rest = " ".repeat(indent).chars().chain(next.trim_start().chars()).collect();
        }
        out.extend(rest);
        out.push_str(end);
    }
    out
}

fn colored(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut is_under_heading = false;
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let is_heading = !line.is_empty() && !line.starts_with(' ') && name_len(line).is_none();
        if let Some(len) = name_len(line) {
            out.extend([BOLD, &line[..len], RESET, &line[len..]]);
        } else if is_heading {
            out.extend([BOLD, line, RESET]);
        } else if is_under_heading && !line.contains(|c: char| c.is_ascii_digit()) && !line.is_empty() {
            out.extend([DIM, line, RESET]);
        } else {
            let mut words = line.split(' ').peekable();
            while let Some(word) = words.next() {
                match sign_of(word) {
                    Some(style) => out.extend([style, word, RESET]),
                    None => out.push_str(word),
                }
                if words.peek().is_some() {
                    out.push(' ');
                }
            }
        }
        out.push_str(end);
        is_under_heading = is_heading;
    }
    out
}

/// The colour of a signed number.
fn sign_of(word: &str) -> Option<&'static str> {
    let style = match word.as_bytes().first()? {
        b'+' => GREEN,
        b'-' => RED,
        _ => return None,
    };
    (word.len() > 1 && word[1..].chars().all(|c| c.is_ascii_digit() || c == '.')).then_some(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colors(color: Color, is_terminal: bool, variables: &[(&str, &str)]) -> bool {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        color.applies_to(is_terminal, find)
    }

    #[test]
    fn the_option_goes_before_the_environment_and_no_color_before_force() {
        assert!(colors(Color::Always, false, &[("NO_COLOR", "1")]));
        assert!(!colors(Color::Never, true, &[("CLICOLOR_FORCE", "1")]));
        assert!(colors(Color::Auto, true, &[]) && !colors(Color::Auto, false, &[]));
        assert!(!colors(Color::Auto, true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(colors(Color::Auto, true, &[("NO_COLOR", "")]), "an empty NO_COLOR says nothing");
        assert!(colors(Color::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!colors(Color::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!colors(Color::Auto, true, &[("CLICOLOR", "0")]) && !colors(Color::Auto, true, &[("TERM", "dumb")]));
    }

    #[test]
    fn the_color_option_is_found_before_arguments_are_parsed() {
        let of = |line: &str| Color::of_arguments(line.split(' ').map(Into::into));
        assert_eq!(of("circuitscope trace a --color always"), Color::Always);
        assert_eq!(of("circuitscope --color=never trace a"), Color::Never);
        assert_eq!(of("circuitscope trace -- --color=never"), Color::Auto);
        assert_eq!(of("circuitscope --color"), Color::Auto);
    }

    #[test]
    fn columns_shrink_to_fit_but_numbers_stay_whole() {
        assert_eq!(fitted_to(80, vec![7, 60, 9], &[false, true, false]), [7, 58, 9]);
        assert_eq!(fitted_to(40, vec![30, 30], &[true, true]), [18, 18]);
        assert_eq!(fitted_to(40, vec![50, 14], &[false, true]), [50, LEAST_COLUMN]);
        assert_eq!(fitted_to(80, vec![5, 6], &[false, true]), [5, 6]);
    }

    #[test]
    fn long_lines_break_at_spaces_and_lose_nothing() {
        let text = "prompt      one two three four five\n\nheading\n  a-word-longer-than-the-line and more\n";
        let wrapped = wrap(text, 24);
        assert_eq!(
            wrapped,
            "prompt      one two\n            three four\n            five\n\nheading\n  a-word-longer-than-the-line\n    and more\n"
        );
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for width in 1..50 {
            assert_eq!(words(&wrap(text, width)), words(text), "width {width}");
        }
    }

    #[test]
    fn lines_break_between_quoted_texts() {
        let path = "  16.2 %  + \" New York\" > 0_39_7 [Texas] > \" Austin\"\n";
        assert_eq!(wrap(path, 48), "  16.2 %  + \" New York\" > 0_39_7 [Texas] >\n    \" Austin\"\n");
    }

    #[test]
    fn colours_add_nothing_but_colours() {
        let text = "prompt      \"a\"\n\nstrongest\n  share  node\n   1.0 %  3_4_5 +0.25 -1.5\n";
        let colored = colored(text);
        for expected in ["\u{1b}[1mprompt\u{1b}[0m", "\u{1b}[32m+0.25\u{1b}[0m", "\u{1b}[31m-1.5\u{1b}[0m"] {
            assert!(colored.contains(expected), "{colored:?}");
        }
        let mut plain = colored;
        for code in [RESET, BOLD, DIM, RED, GREEN] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, text);
    }
}
