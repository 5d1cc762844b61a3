//! What is set once: set-ups, the environment, the graph's own model; and how the program shows itself: completions,
//! manual, colours, width.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::{PROMPT, circuitscope, copy_folder, program, refused, refused_with, stdout};

fn atlas(part: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/atlas").join(part)
}

/// A folder with a copy of the embedded model and its transcoders.
fn folder_with_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&atlas("model"), &folder.path().join("model"));
    copy_folder(&atlas("transcoders"), &folder.path().join("transcoders"));
    folder
}

fn with_environment(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    program(folder).args(args).envs(environment.iter().copied()).output().unwrap()
}

/// The model and the transcoders that a trace in `folder` says it was made with.
#[track_caller]
fn traced_with(folder: &Path, options: &[&str], environment: &[(&str, &str)]) -> (String, String) {
    let args = [&["trace", PROMPT, "--slug", "g", "--max-features", "5", "--no-raw"], options].concat();
    let output = with_environment(folder, &args, environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("graphs/g.json")).unwrap()).unwrap();
    let text = |key: &str| json["metadata"][key].as_str().unwrap().to_owned();
    std::fs::remove_dir_all(folder.join("graphs")).unwrap();
    (text("model"), text("transcoders"))
}

#[test]
fn set_ups_and_variables_name_the_model() {
    let folder = folder_with_model();
    let folder = folder.path();
    let names = |model: &str, transcoders: &str| (model.to_owned(), transcoders.to_owned());
    assert_eq!(traced_with(folder, &[], &[]), names("atlas", "atlas"));
    let variables = [("CIRCUITSCOPE_MODEL", "model"), ("CIRCUITSCOPE_TRANSCODERS", "transcoders")];
    assert_eq!(traced_with(folder, &[], &variables), names("model", "transcoders"));
    std::fs::write(
        folder.join("circuitscope.toml"),
        "default = \"copy\"\n[setup.copy]\nmodel = \"model\"\ntranscoders = \"./transcoders\"\n",
    )
    .unwrap();
    assert_eq!(traced_with(folder, &[], &[]), names("model", "./transcoders"));
    assert_eq!(traced_with(folder, &["--setup", "atlas"], &[]), names("atlas", "atlas"));
    let transcoders = [("CIRCUITSCOPE_TRANSCODERS", "transcoders")];
    assert_eq!(traced_with(folder, &["--setup", "copy"], &transcoders), names("model", "transcoders"));
    assert_eq!(traced_with(folder, &[], &[("CIRCUITSCOPE_SETUP", "copy")]), names("model", "./transcoders"));
    // An option goes before everything, an empty variable says nothing.
    let options = ["--model", "./model", "--setup", "copy"];
    assert_eq!(traced_with(folder, &options, &[("CIRCUITSCOPE_MODEL", "nothing")]), names("./model", "./transcoders"));
    assert_eq!(traced_with(folder, &["--setup", "atlas"], &[("CIRCUITSCOPE_MODEL", "")]), names("atlas", "atlas"));
}

#[test]
fn a_users_set_up_is_found_everywhere_and_names_paths_beside_it() {
    let home = folder_with_model();
    let configuration = home.path().join("circuitscope");
    std::fs::create_dir(&configuration).unwrap();
    let text =
        "[setup.mine]\nmodel = \"../model\"\ntranscoders = \"../transcoders\"\n[setup.both]\nmodel = \"atlas\"\n";
    std::fs::write(configuration.join("circuitscope.toml"), text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let xdg = [("XDG_CONFIG_HOME", home.path().to_str().unwrap())];
    let (model, _) = traced_with(folder.path(), &["--setup", "mine"], &xdg);
    assert_eq!(Path::new(&model).canonicalize().unwrap(), home.path().join("model").canonicalize().unwrap());

    // The folder's set-up hides the user's of the same name.
    std::fs::write(folder.path().join("circuitscope.toml"), "[setup.both]\nmodel = \"nothing/here/at-all\"\n").unwrap();
    let listed = with_environment(folder.path(), &["setups", "--format", "json"], &xdg);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let setup = |name: &str| {
        let setups = listed["setups"].as_array().unwrap();
        setups.iter().find(|setup| setup["name"] == name).unwrap_or_else(|| panic!("{name}: {listed}")).clone()
    };
    assert_eq!(setup("both")["file"], "circuitscope.toml");
    assert_eq!(setup("both")["model"]["state"], "MISSING");
    assert_eq!(setup("mine")["model"]["state"], "there");
    assert_eq!(setup("atlas")["is_default"], true);
}

#[test]
fn set_ups_are_listed_with_their_file_and_whether_it_is_all_there() {
    let folder = folder_with_model();
    let text =
        "default = \"copy\"\n[setup.copy]\nmodel = \"model\"\ntranscoders = \"gone/gone/gone\"\ndevice = \"cpu\"\n";
    std::fs::write(folder.path().join("circuitscope.toml"), text).unwrap();
    let text = stdout(&circuitscope(folder.path(), &["setups"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "copy        from circuitscope.toml, the default",
            "  model        model  (there)",
            "  transcoders  gone/gone/gone  (MISSING)",
            "  device       cpu",
            "atlas       part of the program",
        ],
        "{text}"
    );
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (text, parts) in [
        ("[setup.a]\nmodle = \"x\"\n", &["circuitscope.toml", "line 2", "modle", "model"][..]),
        ("[setup.a]\ntranscoders = \"x\"\n", &["circuitscope.toml", "line 1", "model"]),
        ("[setup.a\n", &["circuitscope.toml", "line 1"]),
        ("default = \"b\"\n[setup.a]\nmodel = \"x\"\n", &["default", "\"b\"", "[setup.b]"]),
    ] {
        std::fs::write(folder.join("circuitscope.toml"), text).unwrap();
        refused_with(folder, &["setups"], parts);
        refused_with(folder, &["trace", PROMPT], parts);
    }
    std::fs::write(folder.join("circuitscope.toml"), "[setup.smollm2]\nmodel = \"x\"\n").unwrap();
    refused_with(
        folder,
        &["trace", PROMPT, "--setup", "smolm2"],
        &["`smolm2`", "there are smollm2", "--setup smollm2"],
    );
    refused_with(folder, &["trace", PROMPT, "--setup", "gpt"], &["`gpt`", "circuitscope.toml", "circuitscope setups"]);
    let written = folder.join("graphs").read_dir().map_or(0, Iterator::count);
    assert_eq!(written, 0, "nothing was written");
}

#[test]
fn a_graph_is_verified_with_the_model_that_it_names() {
    let folder = folder_with_model();
    let folder = folder.path();
    let trace = ["trace", PROMPT, "--slug", "g", "--model", "model", "--transcoders", "transcoders", "-q"];
    assert!(circuitscope(folder, &trace).status.success());
    // A default of another model does not come between.
    std::fs::write(folder.join("circuitscope.toml"), "default = \"x\"\n[setup.x]\nmodel = \"nothing\"\n").unwrap();
    let verify = ["verify", "graphs/g.safetensors", "--samples", "2", "--ablate", "1"];
    let output = circuitscope(folder, &verify);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    std::fs::rename(folder.join("model"), folder.join("elsewhere")).unwrap();
    refused_with(folder, &verify, &["the graph `graphs/g.safetensors` names", "`model`"]);
    // The model from the option, the transcoders from the graph.
    assert!(circuitscope(folder, &[&verify[..], &["--model", "elsewhere"]].concat()).status.success());
    let output = with_environment(folder, &verify, &[("CIRCUITSCOPE_MODEL", "elsewhere")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The commands that the help lists.
fn commands(folder: &Path) -> Vec<String> {
    let help = stdout(&circuitscope(folder, &["--help"]));
    let section = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
    let firsts = section.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = firsts.map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn completions_and_manual_know_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let commands = commands(folder.path());
    assert!(commands.len() >= 9, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&circuitscope(folder.path(), &["completions", shell]));
        for word in commands.iter().map(String::as_str).chain(["target-diff", "transcoders"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(circuitscope(folder.path(), &["man", "--out-dir", "man"]).status.success());
    for command in &commands {
        let page = std::fs::read_to_string(folder.path().join(format!("man/circuitscope-{command}.1"))).unwrap();
        assert!(page.contains(".TH ") && page.contains("SYNOPSIS"), "{command}");
    }
    let page = std::fs::read_to_string(folder.path().join("man/circuitscope-trace.1")).unwrap();
    assert!(page.contains("\\-\\-max\\-features") && page.contains(".SH MODEL"), "options stand under their headings");
    assert_eq!(
        stdout(&circuitscope(folder.path(), &["man"])).as_bytes(),
        std::fs::read(folder.path().join("man/circuitscope.1")).unwrap()
    );
    refused(folder.path(), &["man", "--out-dir", "man/circuitscope.1/inside"]);
}

#[test]
fn colours_are_where_they_are_asked_for_and_never_in_data() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(circuitscope(folder, &["trace", PROMPT, "--slug", "g", "-q"]).status.success());
    let is_colored = |args: &[&str], environment: &[(&str, &str)]| {
        let output = with_environment(folder, args, environment);
        [output.stdout, output.stderr].map(|text| text.contains(&0x1b))
    };
    let inspect = ["inspect", "graphs/g.json"];
    let force = [("CLICOLOR_FORCE", "1")];
    assert_eq!(is_colored(&inspect, &[]), [false, false]);
    assert_eq!(is_colored(&inspect, &force), [true, false]);
    assert_eq!(is_colored(&inspect, &[force[0], ("NO_COLOR", "1")]), [false, false]);
    assert_eq!(is_colored(&["inspect", "graphs/g.json", "--color", "always"], &[("NO_COLOR", "1")]), [true, false]);
    assert_eq!(is_colored(&["--color=never", "inspect", "graphs/g.json"], &force), [false, false]);
    for format in ["json", "csv", "dot", "svg"] {
        assert_eq!(is_colored(&["inspect", "graphs/g.json", "--format", format], &force), [false, false], "{format}");
    }
    assert_eq!(is_colored(&["inspect", "graphs/nothing.json"], &force), [false, true], "errors");
    assert_eq!(is_colored(&["inspect", "--nothing"], &force), [false, true], "errors of arguments");
    assert!(circuitscope(folder, &["inspect", "graphs/g.json", "-o", "g.txt", "--color", "always"]).status.success());
    assert!(!std::fs::read(folder.join("g.txt")).unwrap().contains(&0x1b), "a file is no terminal");
}

#[test]
fn what_is_printed_fits_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(circuitscope(folder, &["trace", PROMPT, "--slug", "g", "-q"]).status.success());
    let other = ["trace", "The capital of the state containing Oakland is", "--slug", "h", "-q"];
    assert!(circuitscope(folder, &other).status.success());
    for args in [
        &["inspect", "graphs/g.json"][..],
        &["inspect", "graphs/g.json", "--node", "0_39_7"],
        &["inspect", "graphs/g.safetensors", "--auto-group"],
        &["diff", "graphs/g.json", "graphs/h.json"],
        &["common", "graphs/g.json", "graphs/h.json"],
        &["intervene", PROMPT, "--ablate", "0_39_7"],
        &["verify", "graphs/g.safetensors", "--samples", "2"],
    ] {
        let wide = stdout(&circuitscope(folder, args));
        assert!(wide.lines().any(|line| line.chars().count() > 70), "{args:?}: nothing to fit:\n{wide}");
        let narrow = stdout(&with_environment(folder, args, &[("COLUMNS", "70")]));
        for line in narrow.lines() {
            assert!(line.chars().count() <= 70, "{args:?}: {line:?}");
        }
        // Numbers are never cut.
        let numbers = |text: &str| {
            let words = text.split_whitespace().map(str::to_owned);
            words.filter(|word| word.parse::<f64>().is_ok()).collect::<Vec<_>>()
        };
        assert!(numbers(&narrow).len() >= 3 && numbers(&narrow).iter().all(|n| wide.contains(n)), "{args:?}");
    }
}

#[test]
fn a_prompt_is_read_from_stdin() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let read = |args: &[&str], input: &str| {
        let mut child = program(folder.path())
            .args(["trace", "--no-raw", "--no-json", "--format", "json", "-q"])
            .args(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let json: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
        json["prompt"].as_str().unwrap().to_owned()
    };
    assert_eq!(read(&["-"], &format!("{PROMPT}\n")), PROMPT);
    assert_eq!(read(&["--prompt-file", "-"], &format!("{PROMPT}\r\n")), PROMPT);
    assert_eq!(read(&["-"], "capital \n"), "capital ", "one line end is not meant, spaces are");
}
