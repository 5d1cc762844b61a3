//! The pages: their commands run, what they show below a command is what it prints, and what they point at is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{PROMPT, program};

/// The pages whose commands run, in the order in which a reader meets them, all in one folder: with how many commands
/// each runs and how many lines of output it compares at least.
const PAGES: [(&str, usize, usize); 10] = [
    ("README.md", 9, 13),
    ("docs/guide.md", 28, 84),
    ("docs/interventions.md", 10, 51),
    ("docs/tutorial.md", 20, 100),
    ("docs/attention.md", 12, 90),
    ("docs/features.md", 5, 33),
    ("docs/batch.md", 3, 6),
    ("docs/setups.md", 3, 8),
    ("docs/training.md", 1, 30),
    ("docs/long-prompts.md", 4, 6),
];

/// Programs that a newcomer's machine may not have, or that use the network. Commands that start with them are left out,
/// and so are those that name a model, which has to be downloaded.
const OTHER_PROGRAMS: [&str; 9] = ["cargo", "done", "echo", "export", "for", "jq", "just", "pip", "unzip"];

/// How a reader of the README calls the program before it is installed.
const FROM_SOURCES: [&str; 4] = ["cargo", "run", "--release", "--"];

/// Languages of blocks that hold no commands.
const NO_COMMANDS: [&str; 5] = ["json", "python", "rust", "toml", "text"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What a page asks its reader to do.
enum Step {
    /// Run the program; `shown` are the lines below the command.
    Run { place: String, args: Vec<String>, shown: Vec<String> },
    /// Write a file: a block `json NAME` holds it.
    Write { name: String, text: String },
    /// Something that this test cannot do.
    LeaveOut,
}

/// The words of a command, as a shell splits them; `None` where a quote is open or a backslash continues the line.
pub fn words(text: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut is_in_word, mut quote) = (String::new(), false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.push(c),
            (None, '"' | '\'') => (quote, is_in_word) = (Some(c), true),
            (None, '\\') => match chars.next()? {
                '\n' => {}
                escaped => word.push(escaped),
            },
            (None, '#') if !is_in_word => break,
            (None, c) if c.is_whitespace() => {
                if std::mem::take(&mut is_in_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (None, c) => {
                word.push(c);
                is_in_word = true;
            }
        }
    }
    if is_in_word {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// Run it or leave it out: by its first word.
#[track_caller]
fn step_of(place: String, mut words: Vec<String>, shown: Vec<String>) -> Step {
    if words.starts_with(&FROM_SOURCES.map(str::to_owned)) {
        words.splice(0..FROM_SOURCES.len(), ["circuitscope".to_owned()]);
    }
    let needs_a_model = words.iter().any(|word| word == "--model" || word == "--setup");
    match words.first().map(String::as_str) {
        Some("circuitscope") if needs_a_model => Step::LeaveOut,
        Some("circuitscope") => Step::Run { place, args: words.split_off(1), shown },
        Some(program) if OTHER_PROGRAMS.contains(&program) => Step::LeaveOut,
        other => panic!("{place}: {other:?} is neither this program nor one that is left out"),
    }
}

/// The steps of a page, in order. Commands stand in blocks `sh`, or behind `$ ` in blocks `console` with their output.
#[track_caller]
fn steps(page: &str) -> Vec<Step> {
    let text = read(page);
    let mut lines = text.lines().enumerate().map(|(i, line)| (format!("{page}:{}", i + 1), line));
    let mut steps = Vec::new();
    while let Some((place, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            let is_command = ["$ ", "circuitscope ", "cargo "].iter().any(|start| line.trim_start().starts_with(start));
            assert!(!(line.starts_with("    ") && is_command), "{place}: a command outside of a block");
            continue;
        };
        let mut block = lines.by_ref().take_while(|(_, line)| *line != "```").peekable();
        let (language, name) = info.split_once(' ').unwrap_or((info, ""));
        if NO_COMMANDS.contains(&language) {
            let text: String = block.map(|(_, line)| line.to_owned() + "\n").collect();
            if !name.is_empty() {
                steps.push(Step::Write { name: name.to_owned(), text });
            }
            continue;
        }
        assert!(["console", "sh"].contains(&language), "{place}: a block of {language:?}");
        while let Some((place, line)) = block.next() {
            let is_console = language == "console";
            let mut command = match is_console {
                true => {
                    line.strip_prefix("$ ").unwrap_or_else(|| panic!("{place}: output without a command")).to_owned()
                }
                false => line.to_owned(),
            };
            let words = loop {
                match words(&command) {
                    Some(words) => break words,
                    None => {
                        let (_, more) = block.next().unwrap_or_else(|| panic!("{place}: half a command"));
                        command = format!("{command}\n{more}");
                    }
                }
            };
            let mut shown = Vec::new();
            while let Some((_, line)) = block.next_if(|(_, line)| is_console && !line.starts_with("$ ")) {
                shown.push(line.to_owned());
            }
            steps.push(step_of(place, words, shown));
        }
    }
    steps
}

/// Runs the program; what it prints to stdout and stderr, in the order in which a terminal shows it.
fn run(folder: &Path, args: &[String]) -> (bool, String) {
    let path = folder.join("output.txt");
    let file = std::fs::File::create(&path).unwrap();
    let status = program(folder)
        .args(args)
        // Pages show what the CPU computes, and nothing on them may need the network.
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("HF_HUB_OFFLINE", "1")
        .stdout(Stdio::from(file.try_clone().unwrap()))
        .stderr(Stdio::from(file))
        .status()
        .unwrap();
    (status.success(), std::fs::read_to_string(&path).unwrap())
}

/// A number that a page shows, and what surrounds it.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Number(String),
}

/// A line as it is compared: spaces count once, times and sizes are `#`.
fn pieces(line: &str) -> Vec<Piece> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_measured =
        |at: usize| words.get(at + 1).is_some_and(|unit| ["s", "MB", "rows/s", "prompts/min"].contains(unit));
    let shown: Vec<&str> = (0..words.len()).map(|at| if is_measured(at) { "#" } else { words[at] }).collect();
    let (line, mut pieces, mut rest) = (shown.join(" "), Vec::new(), 0);
    let is_number = |c: char| c.is_ascii_digit();
    while rest < line.len() {
        let start = line[rest..].find(is_number).map_or(line.len(), |at| rest + at);
        pieces.push(Piece::Text(line[rest..start].to_owned()));
        let digits = |at: usize| at + line[at..].find(|c| !is_number(c)).unwrap_or(line.len() - at);
        let mut end = digits(start);
        for sign in [".", "e-"] {
            let after = end + sign.len();
            if line[end..].starts_with(sign) && line[after..].starts_with(is_number) {
                end = digits(after);
            }
        }
        if start < end {
            pieces.push(Piece::Number(line[start..end].to_owned()));
        }
        rest = end;
    }
    pieces
}

/// Whether a shown line is what was printed. Another CPU rounds otherwise: the last decimal may differ by one, and
/// numbers like 5e-7, which are rounding errors themselves, by anything.
pub fn is_same(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (pieces(shown), pieces(printed));
    let decimals = |number: &str| number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let is_close = |a: &str, b: &str| match (a.contains("e-"), b.contains("e-")) {
        (false, false) if decimals(a) == decimals(b) && decimals(a) > 0 => {
            let distance = a.parse::<f64>().unwrap() - b.parse::<f64>().unwrap();
            distance.abs() < 1.5 * 0.1f64.powi(decimals(a) as i32)
        }
        (a_is_tiny, b_is_tiny) => a == b || (a_is_tiny && b_is_tiny),
    };
    shown.len() == printed.len()
        && shown.iter().zip(&printed).all(|pair| match pair {
            (Piece::Number(a), Piece::Number(b)) => is_close(a, b),
            (a, b) => a == b,
        })
}

/// Compares shown lines with the output; a line `...` stands for any lines. Returns how many were compared.
#[track_caller]
fn compare(place: &str, shown: &[String], output: &str) -> usize {
    let mut printed = output.lines().filter(|line| !line.trim().is_empty());
    // A build with CUDA says first where it computes.
    let mut may_skip = true;
    let mut n_compared = 0;
    for line in shown.iter().filter(|line| !line.trim().is_empty()) {
        if line.trim() == "..." {
            may_skip = true;
            continue;
        }
        let found = match may_skip {
            true => printed.any(|printed| is_same(line, printed)),
            false => printed.next().is_some_and(|printed| is_same(line, printed)),
        };
        assert!(found, "{place}: the page shows\n{line}\nbut the output, in this place, does not:\n{output}");
        (may_skip, n_compared) = (false, n_compared + 1);
    }
    let rest = printed.next();
    assert!(shown.is_empty() || may_skip || rest.is_none(), "{place}: the page ends before {rest:?}");
    n_compared
}

#[test]
fn commands_of_the_pages_run_and_print_what_the_pages_show() {
    let folder = tempfile::tempdir().unwrap();
    for (page, least_run, least_compared) in PAGES {
        let (mut n_run, mut n_compared) = (0, 0);
        for step in steps(page) {
            match step {
                Step::LeaveOut => {}
                Step::Write { name, text } => std::fs::write(folder.path().join(name), text).unwrap(),
                Step::Run { place, args, shown } => {
                    let (is_success, output) = run(folder.path(), &args);
                    assert!(is_success, "{place}: {args:?} fails:\n{output}");
                    n_run += 1;
                    n_compared += compare(&place, &shown, &output);
                }
            }
        }
        assert!(n_run >= least_run, "{page}: {n_run} commands were run, expected {least_run}");
        assert!(n_compared >= least_compared, "{page}: {n_compared} lines were compared, expected {least_compared}");
    }
}

/// Commands with a mistake in each, and what the program says to them.
const MISTYPED: &str = "tests/mistyped.md";

#[test]
fn mistyped_commands_get_the_messages_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let trace = ["trace", PROMPT, "--slug", "dallas", "--quiet"].map(str::to_owned);
    assert!(run(folder.path(), &trace).0);
    // Files that are not what they are taken for.
    let raw = std::fs::read(at("graphs/dallas.safetensors")).unwrap();
    let json = std::fs::read(at("graphs/dallas.json")).unwrap();
    let files: [(&str, &[u8]); 6] = [
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("model.pt", b"PK\x03\x04\0\0\0\0archive/data.pkl"),
        ("notes.txt", b"hello"),
        ("empty.json", b""),
        ("half.safetensors", &raw[..2000]),
        ("half.json", &json[..500]),
    ];
    files.iter().for_each(|(name, bytes)| std::fs::write(at(name), bytes).unwrap());
    let before = folder.path().read_dir().unwrap().count();
    let (mut n_run, mut n_compared) = (0, 0);
    for step in steps(MISTYPED) {
        match step {
            Step::LeaveOut => panic!("everything in the table runs"),
            Step::Write { name, text } => std::fs::write(at(&name), text).unwrap(),
            Step::Run { place, args, shown } => {
                let (is_success, output) = run(folder.path(), &args);
                assert!(!is_success, "{place}: {args:?} is no mistake:\n{output}");
                assert!(!shown.is_empty(), "{place}: what does it say?");
                n_run += 1;
                n_compared += compare(&place, &shown, &output);
            }
        }
    }
    assert!(n_run >= 40 && n_compared >= 80, "{n_run} commands, {n_compared} lines");
    let after = folder.path().read_dir().unwrap().count();
    // Two files of the table itself, and the output of the last command.
    assert!(after <= before + 3, "a mistake has written files");
}

#[test]
fn output_is_told_from_other_output() {
    let line = "  54.0 %  3_955_8  \" is\"           88.291  asks for capital";
    assert!(is_same(line, "54.1 % 3_955_8 \" is\" 88.290 asks for capital"));
    for other in ["54.2 %", "54 %", "5.40 %", "54.0"] {
        assert!(!is_same("54.0 %", other), "{other}");
    }
    assert!(!is_same(line, &line.replace("3_955_8", "3_956_8")));
    assert!(!is_same(line, &line.replace("capital", "code")));
    assert!(
        is_same("rows add up to 5e-7", "rows add up to 4e-7") && !is_same("rows add up to 5e-7", "rows add up to 5")
    );
    assert!(is_same("attribute 0.75 s 163 MB  4229 rows, 5967 rows/s", "attribute 0.8 s 1 MB 4229 rows, 9 rows/s"));
    assert!(!is_same("attribute 0.75 s 163 MB  4229 rows, 5967 rows/s", "attribute 0.8 s 1 MB 4228 rows, 9 rows/s"));

    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(compare("", &shown("a\n...\nd"), "a\nb\nc\nd\n"), 2);
    for wrong in ["a\nc\n...", "a\nb", "...\nd\na", "a\n...\ne"] {
        let shown = shown(wrong);
        assert!(std::panic::catch_unwind(|| compare("", &shown, "a\nb\nc\nd\n")).is_err(), "{wrong:?}");
    }
}

#[test]
fn commands_are_split_as_a_shell_does() {
    let split = |text: &str| words(text).map(|words| words.join("|"));
    assert_eq!(split(r#"a "b c" --d='e "f"'  # note"#).as_deref(), Some(r#"a|b c|--d=e "f""#));
    assert_eq!(split("a \\\n  b").as_deref(), Some("a|b"));
    assert_eq!(split("a \\"), None);
    assert_eq!(split("a 'b"), None);
    assert_eq!(split(r#"a " Austin" """#).as_deref(), Some("a| Austin|"));
}

/// The pages of the project.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    let docs = root().join("docs").read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    pages.extend(docs.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")));
    pages.sort();
    pages
}

/// The lines of a page that are no code.
fn prose(page: &str) -> Vec<String> {
    let mut is_code = false;
    let text = read(page);
    let prose = text.lines().filter(|line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence && !line.starts_with("    ")
    });
    prose.map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let anchor = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    prose(page).iter().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// The links and pictures of a page that lead to other files of the project or into the page itself.
fn links(page: &str) -> Vec<String> {
    let text = prose(page).join("\n");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.starts_with("https://")).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut n_links = 0;
    let mut linked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for page in pages() {
        let folder = Path::new(&page).parent().unwrap().to_owned();
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            let path = path.to_str().unwrap().replace("docs/../", "");
            assert!(root().join(&path).is_file(), "{page}: {link} leads to no file");
            if !anchor.is_empty() {
                assert!(anchors(&path).contains(anchor), "{page}: {link}: there is no such heading");
            }
            linked.entry(page.clone()).or_default().insert(path);
            n_links += 1;
        }
    }
    assert!(n_links >= 60, "only {n_links} links were found");

    let mut reached = BTreeSet::from(["README.md".to_owned()]);
    let mut open = vec!["README.md".to_owned()];
    while let Some(page) = open.pop() {
        let next = linked.get(&page).into_iter().flatten().filter(|page| reached.insert((*page).clone()));
        open.extend(next.cloned());
    }
    for page in pages() {
        assert!(reached.contains(&page), "no way leads from the README to {page}");
    }
}

/// The first code block of the crate's page, without the lines that rustdoc hides, is the README's: what it shows is run.
#[test]
fn the_readmes_example_is_the_first_one_that_the_crate_tests() {
    let readme = read("README.md");
    let shown: Vec<&str> =
        readme.lines().skip_while(|line| *line != "```rust").skip(1).take_while(|line| *line != "```").collect();
    let page = read("src/lib.rs");
    let page =
        page.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.strip_prefix(' ').unwrap_or(line));
    let tested: Vec<&str> = page.skip_while(|line| *line != "```").skip(1).take_while(|line| *line != "```").collect();
    let tested: Vec<&str> = tested.into_iter().filter(|line| !line.starts_with("# ")).collect();
    assert_eq!(shown, tested);
    assert!((5..=16).contains(&shown.len()), "{} lines: a first example is short", shown.len());
}

#[test]
fn the_readme_is_short() {
    let n_lines = read("README.md").lines().count();
    assert!(n_lines < 150, "the README has {n_lines} lines; what is long belongs into docs/");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| ["rs", "cu", "cuh"].iter().any(|known| e == *known)) {
            found.push(path);
        }
    }
}

#[test]
fn definitions_that_sources_cite_exist() {
    let page = read("docs/definitions.md");
    let mut files = Vec::new();
    ["src", "tests", "benches", "kernels"].iter().for_each(|folder| sources(&root().join(folder), &mut files));
    let mut n_cited = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // The number, and the second one of "4 and 5", "3 to 8".
        for rest in text.split("definitions ").skip(1) {
            let numbers =
                rest.split([' ', '\n', '/']).filter(|word| !word.is_empty() && *word != "and" && *word != "to");
            for word in numbers.take(2) {
                let number: String = word.chars().take_while(char::is_ascii_digit).collect();
                if number.is_empty() {
                    break;
                }
                let heading = format!("\n## {number} ");
                assert!(page.contains(&heading), "{}: there are no definitions {number}", file.display());
                n_cited += 1;
            }
        }
    }
    assert!(n_cited >= 30, "only {n_cited} citations were found");
}

#[test]
fn formats_name_every_tensor_and_key_of_a_raw_graph() {
    let folder = tempfile::tempdir().unwrap();
    let (mut written, mut keys) = (BTreeSet::new(), BTreeSet::new());
    // A capped graph and a sampled one with heads have all that a graph can have, but for contexts, which closed positions
    // have, and whose heads are not told.
    let closed = ["--max-features", "50", "--open-positions", "4..9"];
    for rows in [&["--max-features", "50", "--heads"][..], &["--rows", "50", "--heads"], &closed] {
        let args = [&["trace", PROMPT], rows, &["--slug", "raw", "--no-json", "--force"]].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let (is_success, output) = run(folder.path(), &args);
        assert!(is_success, "{output}");
        let bytes = std::fs::read(folder.path().join("graphs/raw.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors: BTreeSet<String> = metadata.tensors().into_keys().collect();
        assert!(tensors.contains("unselected_effect"), "{rows:?}: features are left out");
        written.extend(tensors);
        let meta: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["circuitscope"]).unwrap();
        keys.extend(meta.as_object().unwrap().keys().cloned());
    }

    let page = read("docs/formats.md");
    let section = page.split("\n## Raw graph\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut tables = section.split("\n| --- ").skip(1).map(|table| table.split("\n\n").next().unwrap());
    let named = |table: &str| -> BTreeSet<String> {
        let firsts = table.lines().skip(1).map(|row| row.split('|').nth(1).unwrap_or_default());
        firsts.flat_map(|first| first.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
    };
    assert_eq!(named(tables.next().unwrap()), written);

    assert_eq!(named(tables.next().unwrap()), keys);
}
