//! Text that means harm, through whole outputs of the program: labels, tokens, prompts and names come from files that
//! anybody may have written, and must stay text wherever they are shown.

use std::path::Path;

use resvg::usvg::roxmltree::Document;
use serde_json::{Value, json};

use crate::support::{PROMPT, circuitscope, refused, stdout};

/// Commands a terminal in 7 and in 8 bits, turns the writing, breaks lines, closes strings, attributes and elements.
const HOSTILE: &str = "cmd|'/C calc'!A0, \u{1b}[2J\u{1b}]0;x\u{7} \u{9b}31m \u{202e}txt\u{2066} \u{2028}\u{85}\n\r\t\0 \
                       <script>evil()</script> & ]]> --> \u{e0041}\u{feff}\"]; evil [label=\" \\";

/// Beginnings of cells that spreadsheets compute.
const FORMULAS: [&str; 6] = ["=", "+", "-", "@", " =", "\t@"];

/// [`HOSTILE`], beginning as the `at`-th formula.
fn formula(at: usize) -> String {
    format!("{}{HOSTILE}", FORMULAS[at % FORMULAS.len()])
}

/// Characters that are not seen but change what is around them.
fn is_command(c: char) -> bool {
    let turns = '\u{202A}'..='\u{202E}';
    let isolates = '\u{2066}'..='\u{2069}';
    let tags = '\u{E0000}'..='\u{E007F}';
    c.is_control()
        || turns.contains(&c)
        || isolates.contains(&c)
        || tags.contains(&c)
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{FEFF}')
}

/// Asserts that `text` holds no command but the characters `allowed`.
#[track_caller]
fn assert_harmless(text: &str, allowed: &[char], what: &str) {
    let found: Vec<char> = text.chars().filter(|c| is_command(*c) && !allowed.contains(c)).collect();
    assert!(found.is_empty(), "{what}: {found:?} in {text:?}");
}

/// A graph of features, an error, tokens and targets, every text in it hostile.
fn hostile_graph() -> Value {
    let features: Vec<(u32, u32, u32)> = (0..6).map(|at| (at / 3, at, at % 2)).collect();
    let node = |id: &str, layer: &str, pos: u32, kind: &str, label: &str| {
        json!({
            "node_id": id, "feature": 1, "layer": layer, "ctx_idx": pos, "feature_type": kind, "jsNodeId": HOSTILE,
            "clerp": label, "influence": 0.5, "activation": 1.5, HOSTILE: HOSTILE,
        })
    };
    let id = |(layer, feature, pos): (u32, u32, u32)| format!("{layer}_{feature}_{pos}");
    let feature = |at: usize| {
        let place = features[at];
        node(&id(place), &place.0.to_string(), place.2, "cross layer transcoder", &formula(at))
    };
    let mut nodes: Vec<Value> = (0..features.len()).map(feature).collect();
    nodes.push(node("1_-1_1", "1", 1, "mlp reconstruction error", HOSTILE));
    nodes.extend((0..2).map(|pos| node(&format!("E_{}_{pos}", 5 + pos), "E", pos, "embedding", HOSTILE)));
    for (at, token) in [9, 10].into_iter().enumerate() {
        let mut logit = node(&format!("3_{token}_1"), "3", 1, "logit", &format!("Output \"{}\" (p=0.4)", formula(at)));
        logit["token_prob"] = json!(0.4);
        logit["is_target_logit"] = json!(at == 0);
        nodes.push(logit);
    }
    let mut links = Vec::new();
    let mut link = |source: &str, target: &str, weight: f32| {
        links.push(json!({"source": source, "target": target, "weight": weight}))
    };
    for (at, &place) in features.iter().enumerate() {
        link(if at % 2 == 0 { "E_5_0" } else { "E_6_1" }, &id(place), 1.0 + at as f32);
        link(&id(place), "3_9_1", 2.0 - at as f32 / 2.0);
        link(&id(place), "3_10_1", -1.0);
        if place.0 == 1 {
            link("0_1_1", &id(place), -0.5);
        }
    }
    link("1_-1_1", "3_9_1", 0.5);
    json!({
        "metadata": {
            "slug": HOSTILE, "scan": HOSTILE, "prompt_tokens": [formula(0), formula(1)], "prompt": HOSTILE,
            "info": {HOSTILE: HOSTILE},
        },
        "qParams": {
            "pinnedIds": ["0_0_0"], "supernodes": [[formula(2), "0_0_0", "0_2_0"], [formula(3), "1_3_1", "1_5_1"]],
        },
        "nodes": nodes,
        "links": links,
    })
}

/// Runs a command that succeeds: what it printed, stderr checked.
#[track_caller]
fn answer(folder: &Path, args: &[&str]) -> String {
    let output = circuitscope(folder, args);
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{args:?}: {message}");
    assert_harmless(&message, &['\n'], &format!("{args:?} on stderr"));
    stdout(&output)
}

/// A folder that holds `g.json`.
fn folder_with_graph() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("g.json"), hostile_graph().to_string()).unwrap();
    folder
}

/// Cells of a table, by RFC 4180.
fn cells(table: &str) -> Vec<Vec<String>> {
    let mut rows = vec![vec![String::new()]];
    let mut chars = table.chars().peekable();
    let mut is_quoted = false;
    while let Some(c) = chars.next() {
        let row = rows.last_mut().unwrap();
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                row.last_mut().unwrap().push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => row.push(String::new()),
            '\n' if !is_quoted => rows.push(vec![String::new()]),
            c => row.last_mut().unwrap().push(c),
        }
    }
    assert!(!is_quoted, "a cell does not end: {table:?}");
    assert_eq!(rows.pop().unwrap(), [""], "the last line ends");
    rows
}

/// Asserts that a table has rows as wide as its head, and that no cell is computed. Returns its rows without the head.
#[track_caller]
fn checked_table(table: &str) -> Vec<Vec<String>> {
    assert_harmless(table, &['\n', '\r', '\t'], "a table");
    let mut rows = cells(table);
    let head = rows.remove(0);
    for row in &rows {
        assert_eq!(row.len(), head.len(), "{row:?} under {head:?}");
        for cell in row {
            let is_formula = cell.trim().starts_with(['=', '+', '-', '@']) && cell.parse::<f64>().is_err();
            assert!(!is_formula, "a spreadsheet computes {cell:?}");
        }
    }
    rows
}

#[test]
fn hostile_text_cannot_command_a_terminal_through_text() {
    let folder = folder_with_graph();
    for args in [
        &["inspect", "g.json"][..],
        &["inspect", "g.json", "--no-groups"],
        &["inspect", "g.json", "--node", "0_0_0"],
        &["inspect", "g.json", "--paths", "20"],
        &["inspect", "g.json", "--carry", "0.5"],
        &["inspect", "g.json", "--auto-group"],
        &["diff", "g.json", "g.json"],
        &["common", "g.json", "g.json"],
        &["prune", "g.json", "-o", "pruned.json"],
    ] {
        let text = answer(folder.path(), args);
        assert_harmless(&text, &['\n'], &format!("{args:?}"));
        let shows_them = text.contains("cmd|'/C calc'");
        assert!(shows_them || args[0] == "prune", "{args:?} shows no text of the graph: {text}");
        // A line break within a text begins no line.
        assert!(!text.lines().any(|line| line.trim_start().starts_with("<script>")), "{text}");
    }
}

#[test]
fn hostile_text_in_json_is_escaped_and_read_back_as_it_was() {
    let folder = folder_with_graph();
    for args in [&["inspect", "g.json"][..], &["diff", "g.json", "g.json"], &["common", "g.json", "g.json"]] {
        let text = answer(folder.path(), &[args, &["--format", "json"]].concat());
        assert_harmless(&text, &['\n'], &format!("{args:?}"));
        let value: Value = serde_json::from_str(&text).unwrap();
        let holds = |text: &str| value.to_string().contains(json!(text).to_string().as_str());
        assert!((0..6).any(|at| holds(&formula(at))), "{args:?} changed the labels: {value}");
    }
    answer(folder.path(), &["inspect", "g.json", "--carry", "0.9", "--save", "saved.json"]);
    let saved: Value = serde_json::from_slice(&std::fs::read(folder.path().join("saved.json")).unwrap()).unwrap();
    let graph = hostile_graph();
    for (field, value) in graph["metadata"].as_object().unwrap() {
        assert_eq!(&saved["metadata"][field], value, "{field}");
    }
    assert_eq!(saved["qParams"]["supernodes"], graph["qParams"]["supernodes"]);
    assert_eq!(saved["nodes"][0]["clerp"], graph["nodes"][0]["clerp"]);
}

#[test]
fn hostile_text_stays_text_in_svg_and_graphml() {
    let folder = folder_with_graph();
    for (format, elements) in [
        ("svg", &["svg", "rect", "text", "tspan", "g", "path", "title"][..]),
        ("graphml", &["graphml", "key", "graph", "node", "edge", "data"]),
    ] {
        for options in [&[][..], &["--no-groups"]] {
            let xml = answer(folder.path(), &[&["inspect", "g.json", "--format", format], options].concat());
            assert_harmless(&xml, &['\n'], format);
            let document = Document::parse(&xml).unwrap_or_else(|e| panic!("{format}: {e} in {xml}"));
            let names: Vec<&str> =
                document.descendants().filter(|n| n.is_element()).map(|n| n.tag_name().name()).collect();
            let strange: Vec<&&str> = names.iter().filter(|name| !elements.contains(name)).collect();
            assert!(strange.is_empty(), "{format}: {strange:?}");
            assert!(document.descendants().any(|n| n.text().is_some_and(|text| text.contains("<script>"))), "{xml}");
        }
        let file = format!("out.{format}");
        answer(folder.path(), &["inspect", "g.json", "--format", format, "-o", &file]);
        let written = std::fs::read_to_string(folder.path().join(&file)).unwrap();
        assert_eq!(written, answer(folder.path(), &["inspect", "g.json", "--format", format]));
    }
}

#[test]
fn hostile_text_stays_within_its_strings_in_dot() {
    let folder = folder_with_graph();
    for options in [&[][..], &["--no-groups"]] {
        let dot = answer(folder.path(), &[&["inspect", "g.json", "--format", "dot"], options].concat());
        assert_harmless(&dot, &['\n'], "dot");
        assert!(dot.contains("evil"));
        let (mut outside, mut is_quoted, mut chars) = (String::new(), false, dot.chars());
        while let Some(c) = chars.next() {
            match c {
                '"' => is_quoted = !is_quoted,
                '\\' if is_quoted => drop(chars.next()),
                c if !is_quoted => outside.push(c),
                _ => {}
            }
        }
        assert!(!is_quoted, "a string does not end: {dot}");
        assert!(!outside.contains("evil") && !outside.contains(['<', '&']), "{outside}");
    }
}

#[test]
fn hostile_text_computes_nothing_in_tables() {
    let folder = folder_with_graph();
    for (format, n_grouped, n_whole) in [("csv-nodes", 9, 11), ("csv", 15, 22)] {
        let rows = |options: &[&str]| {
            let table = answer(folder.path(), &[&["inspect", "g.json", "--format", format], options].concat());
            checked_table(&table)
        };
        let (grouped, whole) = (rows(&[]), rows(&["--no-groups"]));
        assert_eq!((grouped.len(), whole.len()), (n_grouped, n_whole), "{format}");
        assert!(grouped.iter().flatten().any(|cell| cell.starts_with("'-cmd")), "names of supernodes are guarded");
    }
}

#[test]
fn hostile_names_of_a_plan_stay_text_in_its_outputs_and_in_messages() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    answer(at, &["trace", PROMPT, "--slug", "g", "--out-dir", ".", "--quiet"]);
    let mut graph: Value = serde_json::from_slice(&std::fs::read(at.join("g.json")).unwrap()).unwrap();
    graph["qParams"]["supernodes"] = json!([[HOSTILE, "0_39_7", "1_224_7"]]);
    std::fs::write(at.join("g.json"), graph.to_string()).unwrap();
    let plan = |name: &str| {
        let off = |supernode: &str| json!([{"supernode": supernode, "ablate": true}]);
        let alternatives: Vec<Value> =
            (0..FORMULAS.len()).map(|i| json!({"name": formula(i), "interventions": off(name)})).collect();
        std::fs::write(at.join("plan.json"), json!({"alternatives": alternatives}).to_string()).unwrap();
    };
    let args = ["intervene", PROMPT, "--plan", "plan.json", "--graph", "g.json"];
    plan(HOSTILE);
    let text = answer(at, &[&args[..], &["--svg", "plot.svg"]].concat());
    assert_harmless(&text, &['\n'], "a sweep as text");
    assert!(text.contains("cmd|'/C calc'"), "{text}");
    let svg = std::fs::read_to_string(at.join("plot.svg")).unwrap();
    assert_harmless(&svg, &['\n'], "a sweep as SVG");
    assert!(!Document::parse(&svg).unwrap().descendants().any(|n| n.has_tag_name("script")));
    let json = answer(at, &[&args[..], &["--format", "json"]].concat());
    assert_harmless(&json, &['\n'], "a sweep as JSON");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["points"][0]["name"], formula(0));
    let rows = checked_table(&answer(at, &[&args[..], &["--format", "csv"]].concat()));
    assert_eq!(rows.len(), FORMULAS.len());

    // Messages quote the name that is not there and those that are.
    plan(&formula(0));
    let message = refused(at, &args);
    assert_harmless(&message, &['\n'], "a message");
    assert!(message.contains("=cmd|") && message.matches("evil").count() >= 2, "{message}");
    std::fs::write(at.join("plan.json"), json!([{HOSTILE: 1}]).to_string()).unwrap();
    assert_harmless(&refused(at, &args), &['\n'], "a message");
}

#[test]
fn hostile_ids_stay_text_in_messages() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for damage in [
        |graph: &mut Value| graph["nodes"][0]["node_id"] = json!(HOSTILE),
        |graph: &mut Value| graph["nodes"][0]["layer"] = json!(HOSTILE),
        |graph: &mut Value| graph["links"][0]["source"] = json!(HOSTILE),
        |graph: &mut Value| graph["links"][0]["weight"] = json!(HOSTILE),
        |graph: &mut Value| graph["qParams"]["supernodes"] = json!([[HOSTILE, HOSTILE]]),
        |graph: &mut Value| graph["qParams"]["supernodes"] = json!([[HOSTILE, "0_0_0"], [HOSTILE, "0_0_0"]]),
    ] {
        let mut graph = hostile_graph();
        damage(&mut graph);
        std::fs::write(at.join("bad.json"), graph.to_string()).unwrap();
        let output = circuitscope(at, &["inspect", "bad.json"]);
        let message = String::from_utf8(output.stderr.clone()).unwrap();
        assert_harmless(&message, &['\n'], "a message");
        assert_harmless(&stdout(&output), &['\n'], "what is printed");
        assert!(output.status.success() || message.starts_with("error: "), "{message}");
    }
    std::fs::write(at.join("g.json"), hostile_graph().to_string()).unwrap();
    let id = HOSTILE.replace('\0', "");
    let message = refused(at, &["inspect", "g.json", "--node", &id]);
    assert_harmless(&message, &['\n'], "a message");
    assert!(message.contains("evil"), "{message}");
}

#[test]
fn hostile_prompts_are_traced_into_files_with_safe_names() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = HOSTILE.replace('\0', "");
    for format in ["text", "json"] {
        let text =
            answer(folder.path(), &["trace", &prompt, "--out-dir", "out", "--max-features", "20", "--format", format]);
        assert_harmless(&text, &['\n'], format);
    }
    let names: Vec<String> =
        folder.path().join("out").read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.is_empty());
    for name in names.into_iter().filter(|name| name != "graph-metadata.json") {
        let is_safe = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.');
        assert!(name.chars().all(is_safe) && !name.starts_with('.'), "{name:?}");
        if name.ends_with(".json") {
            let inspected = answer(folder.path(), &["inspect", &format!("out/{name}")]);
            assert_harmless(&inspected, &['\n'], "a traced graph");
        }
    }
}

#[test]
fn arguments_that_are_mistaken_are_repeated_with_their_commands_escaped() {
    let folder = folder_with_graph();
    let value = "\u{202e}\u{1b}[31m\nred";
    for args in [
        &["inspect", "g.json", "--top", value][..],
        &["inspect", "g.json", "--format", value],
        &["inspect", "g.json", "--layers", value],
        &["inspect", "g.json", value],
        &["--color", "always", "inspect", "g.json", "--top", value],
        &[value],
    ] {
        let output = circuitscope(folder.path(), args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_harmless(&message, &['\n'], &format!("{args:?}"));
        assert!(
            message.contains("202e") && message.contains("1b") && !message.contains("\nred"),
            "{args:?}: {message}"
        );
    }
    // What is harmless keeps its colours.
    let output = circuitscope(folder.path(), &["--color", "always", "inspect", "g.json", "--top", "x"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("\u{1b}["));
}
