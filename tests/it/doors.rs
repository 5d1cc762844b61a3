//! How the program ends when what is around it fails: readers that leave, full devices, signals, too little memory.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PROMPT, Random, circuitscope, stdout};

/// Runs a line of a shell with the program as `$0` and returns what came of it.
fn shell(folder: &Path, line: &str) -> Output {
    let mut command = Command::new("bash");
    command.current_dir(folder).arg("-c").arg(line).arg(env!("CARGO_BIN_EXE_circuitscope"));
    command.output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // The list of the folder's graphs is not what these tests are about.
    names.retain(|name| name != "graph-metadata.json");
    names
}

fn temporary(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| name.starts_with(".circuitscope-")).collect()
}

/// A folder with a graph of the embedded model: `g.json` and `g.safetensors`.
fn graph_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let args = ["trace", PROMPT, "--slug", "g", "--out-dir", ".", "--quiet"];
    assert!(circuitscope(folder.path(), &args).status.success());
    folder
}

/// Every command, with what it needs in the folder of [`graph_folder`].
const COMMANDS: [&[&str]; 8] = [
    &["trace", PROMPT, "--slug", "again", "--out-dir", "out"],
    &["prune", "g.safetensors", "-o", "pruned.json"],
    &["inspect", "g.json"],
    &["diff", "g.json", "g.safetensors"],
    &["common", "g.json", "g.safetensors"],
    &["intervene", PROMPT, "--ablate", "0_39_7"],
    &["intervene", PROMPT, "--sweep", "0_39_7=0..2/1"],
    &["verify", "g.safetensors", "--samples", "2", "--ablate", "2"],
];

#[test]
fn a_reader_that_leaves_is_no_failure_in_a_hundred_runs() {
    let folder = TempDir::new().unwrap();
    let line = format!(
        r#"for i in $(seq 100); do "$0" trace "{PROMPT}" --out-dir . --slug g 2>&1 | head -1 >> first
           echo "${{PIPESTATUS[0]}}" >> codes; done"#
    );
    let output = shell(folder.path(), &line);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("codes"), "0\n".repeat(100));
    assert_eq!(read("first").lines().count(), 100);
    assert!(!read("first").contains("panicked"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_or_full_stderr_does_not_turn_success_into_failure() {
    let folder = graph_folder();
    for command in COMMANDS {
        for redirection in ["2>&-", "2>/dev/full", "2> >(true)", ">&- 2>&-"] {
            let mut line = String::from("\"$0\"");
            command.iter().for_each(|arg| line.push_str(&format!(" '{arg}'")));
            let output = shell(folder.path(), &format!("{line} {redirection}"));
            assert_eq!(output.status.code(), Some(0), "{line} {redirection}: {output:?}");
        }
    }
    // A mistake stays one, whoever hears of it.
    for redirection in ["2>&-", "2>/dev/full"] {
        for mistake in ["inspect missing.json", "inspect --no-such-option", "verify g.json"] {
            let output = shell(folder.path(), &format!("\"$0\" {mistake} {redirection}"));
            assert_eq!(output.status.code(), Some(2), "{mistake} {redirection}: {output:?}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error_with_a_message() {
    let folder = graph_folder();
    let help: [&[&str]; 3] = [&["--help"], &["--version"], &["trace", "--help"]];
    for command in COMMANDS.iter().chain(&help) {
        let output = Command::new(env!("CARGO_BIN_EXE_circuitscope"))
            .current_dir(folder.path())
            .args(*command)
            .stdout(File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {message}");
        assert!(message.contains("cannot write to `stdout`"), "{command:?}: {message}");
        assert!(!message.contains("panicked"), "{command:?}: {message}");
    }
}

#[test]
fn two_runs_of_every_command_print_the_same_json() {
    let folder = graph_folder();
    for command in COMMANDS {
        let args = [command, &["--format", "json"]].concat();
        let printed = || {
            let output = circuitscope(folder.path(), &args);
            assert!(output.status.success(), "{args:?}: {output:?}");
            stdout(&output)
        };
        let (first, second) = (printed(), printed());
        assert!(serde_json::from_str::<Value>(&first).is_ok() && first == second, "{args:?}");
        assert!(!first.contains("secs") && !first.contains("timings"), "{args:?}");
    }
    let args = ["trace", PROMPT, "--slug", "again", "--out-dir", "out", "--format", "json", "--timings"];
    let mut timed: Value = serde_json::from_str(&stdout(&circuitscope(folder.path(), &args))).unwrap();
    let untimed: Value = serde_json::from_str(&stdout(&circuitscope(folder.path(), &args[..8]))).unwrap();
    let timings = timed.as_object_mut().unwrap().remove("timings").unwrap();
    assert!(timings[0]["elapsed_secs"].is_number());
    // Nothing that a run took stands anywhere else.
    assert_eq!(timed, untimed);
}

#[cfg(unix)]
mod signals {
    use super::*;

    fn start(folder: &Path, slug: &str) -> std::process::Child {
        Command::new(env!("CARGO_BIN_EXE_circuitscope"))
            .current_dir(folder)
            .args(["trace", PROMPT, "--out-dir", ".", "--slug", slug, "--quiet"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn kill(child: &std::process::Child, signal: &str) {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    }

    fn run_secs(folder: &Path) -> f64 {
        let start_time = std::time::Instant::now();
        assert!(start(folder, "timed").wait().unwrap().success());
        start_time.elapsed().as_secs_f64()
    }

    #[test]
    fn signals_leave_whole_files_or_none_at_any_moment() {
        let folder = TempDir::new().unwrap();
        let secs = run_secs(folder.path());
        let whole = std::fs::read(folder.path().join("timed.safetensors")).unwrap().len();
        let mut random = Random::new(11);
        let mut n_ended = 0;
        for i in 0..60 {
            let (signal, number) = [("-INT", 2), ("-TERM", 15), ("-HUP", 1)][i % 3];
            let mut child = start(folder.path(), "g");
            std::thread::sleep(Duration::from_secs_f64(secs * 0.55 * f64::from(random.next() + 1.0)));
            kill(&child, signal);
            let status = child.wait().unwrap();
            use std::os::unix::process::ExitStatusExt;
            match (status.code(), status.signal()) {
                (Some(0), _) => {}
                (Some(code), _) => {
                    assert_eq!(code, 128 + number, "{signal}");
                    n_ended += 1;
                }
                // Before the program has begun.
                (None, signal) => assert_eq!(signal, Some(number)),
            }
            assert_eq!(temporary(folder.path()), Vec::<String>::new(), "{signal}");
            if let Ok(file) = std::fs::metadata(folder.path().join("g.safetensors")) {
                assert_eq!(file.len() as usize, whole);
                let text = std::fs::read(folder.path().join("g.json")).unwrap_or_else(|_| b"{}".to_vec());
                serde_json::from_slice::<Value>(&text).unwrap();
            }
        }
        assert!(n_ended > 5, "{n_ended} of 60 ended by a signal");
    }

    #[test]
    fn a_signal_in_the_middle_of_a_write_removes_the_file_that_is_under_way() {
        let folder = graph_folder();
        let mut caught = 0;
        for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
            // Looks for the temporary file and sends the signal at once.
            for _ in 0..40 {
                let mut child = start(folder.path(), "h");
                while temporary(folder.path()).is_empty() && child.try_wait().unwrap().is_none() {
                    std::hint::spin_loop();
                }
                // SAFETY: a signal to a child that was not waited for yet, whose number nobody else can have.
                unsafe { libc::kill(child.id() as i32, code - 128) };
                let status = child.wait().unwrap();
                assert_eq!(temporary(folder.path()), Vec::<String>::new(), "{signal}");
                caught += usize::from(status.code() == Some(code));
            }
        }
        assert!(caught > 0, "{caught} of 120 were ended");
    }

    fn kill_if_alive(child: &std::process::Child, signal: &str) {
        let _ = Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status();
    }

    #[test]
    fn what_a_killed_run_leaves_a_later_run_removes_but_not_what_a_living_one_writes() {
        let folder = TempDir::new().unwrap();
        let mut left = 0;
        for _ in 0..200 {
            let mut child = start(folder.path(), "g");
            // The first such file is a probe that is gone at once: later ones are the graph's.
            while temporary(folder.path()).len() <= left && child.try_wait().unwrap().is_none() {
                std::hint::spin_loop();
            }
            kill_if_alive(&child, "-KILL");
            child.wait().unwrap();
            left = temporary(folder.path()).len();
            if left > 0 {
                break;
            }
        }
        assert!(left > 0, "a killed run leaves its file");
        // What another process has locked is of a living one.
        let living = folder.path().join(".circuitscope-living");
        let held = File::create(&living).unwrap();
        held.lock().unwrap();
        assert!(start(folder.path(), "h").wait().unwrap().success());
        assert_eq!(temporary(folder.path()), [".circuitscope-living"]);
        drop(held);
        assert!(start(folder.path(), "h").wait().unwrap().success());
        assert_eq!(temporary(folder.path()), Vec::<String>::new());
        assert_eq!(names(folder.path()).iter().filter(|name| name.starts_with("h.")).count(), 2);
    }

    #[test]
    fn ignored_signals_stay_ignored_as_under_nohup() {
        let folder = TempDir::new().unwrap();
        let line = format!(
            r#"trap '' HUP INT; "$0" trace "{PROMPT}" --out-dir . --slug g --quiet > /dev/null &
               for i in $(seq 20); do kill -HUP $!; kill -INT $!; done 2> /dev/null; wait $!; echo $?"#
        );
        assert_eq!(stdout(&shell(folder.path(), &line)), "0\n");
        assert_eq!(names(folder.path()), ["g.json", "g.safetensors"]);
    }

    #[test]
    fn pictures_that_cannot_be_finished_leave_the_old_ones() {
        let folder = graph_folder();
        let commands = [
            ("picture.svg", String::from("inspect g.json --format svg -o picture.svg")),
            ("picture.csv", String::from("inspect g.json --format csv -o picture.csv")),
            ("sweep.svg", format!("intervene '{PROMPT}' --sweep 0_39_7=0..2/0.1 --svg sweep.svg")),
        ];
        for (file, command) in commands {
            std::fs::write(folder.path().join(file), "old").unwrap();
            let output = shell(folder.path(), &format!("ulimit -f 1; exec \"$0\" {command} | cat"));
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(message.contains(file) && message.contains("too large"), "{command}: {message}");
            assert_eq!(std::fs::read_to_string(folder.path().join(file)).unwrap(), "old", "{command}");
            assert_eq!(temporary(folder.path()), Vec::<String>::new());
        }
    }

    #[test]
    fn a_limit_of_a_files_size_is_an_error_that_leaves_the_old_file() {
        let folder = graph_folder();
        let before = std::fs::read(folder.path().join("g.safetensors")).unwrap();
        let line = format!(r#"ulimit -f 8; exec "$0" trace "{PROMPT}" --out-dir . --slug g --quiet"#);
        let output = shell(folder.path(), &line);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("g.safetensors") && message.contains("too large"), "{message}");
        assert!(std::fs::read(folder.path().join("g.safetensors")).unwrap() == before);
        assert_eq!(names(folder.path()), ["g.json", "g.safetensors"]);
    }
}

#[cfg(target_os = "linux")]
mod memory {
    use super::*;

    /// A prompt of `n` tokens, all of whose features get rows.
    fn long_prompt(n: usize) -> Vec<String> {
        let tokens: Vec<String> = (0..n).map(|i| (5 + i * 7 % 200).to_string()).collect();
        let tokens = tokens.join(",");
        let args =
            ["trace", "--tokens", &tokens, "--max-features", "all", "--out-dir", "out", "--slug", "g", "--quiet"];
        args.map(String::from).to_vec()
    }

    fn limited(folder: &Path, limit: &str, kib: u64, args: &[String]) -> Output {
        let mut command = Command::new("bash");
        command.current_dir(folder).arg("-c").arg(format!("ulimit {limit} {kib}; exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_circuitscope")).args(args).output().unwrap()
    }

    /// From a limit under which nothing fits to one under which all does, a run is a message or a success, never an
    /// abort; what is enough once is enough under every larger limit.
    #[test]
    fn under_any_limit_a_run_is_a_success_or_a_message_that_says_what_would_fit() {
        let folder = TempDir::new().unwrap();
        let args = long_prompt(320);
        let (mut doing, mut n_done) = (Vec::new(), 0);
        for mib in (24..400).step_by(8) {
            let output = limited(folder.path(), "-d", mib * 1024, &args);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => n_done += 1,
                // On a machine of many cores already their stacks are too much for the least limits.
                Some(2) if message.contains("cannot start the threads") && n_done == 0 && doing.is_empty() => {}
                Some(2) => {
                    assert_eq!(n_done, 0, "{mib} MiB are refused, less was enough: {message}");
                    assert!(message.contains("of memory (") && message.contains("ulimit -d"), "{mib} MiB: {message}");
                    assert!(message.contains("hint: use a") || message.contains("hint: no prompt"), "{mib}: {message}");
                    assert!(!folder.path().join("out/g.json").exists());
                    doing.push(message.split(" needs ").next().unwrap().to_owned());
                }
                code => panic!("{mib} MiB: {code:?} {:?} {message}", output.status),
            }
            if n_done == 2 {
                break;
            }
        }
        doing.dedup();
        assert!(doing.len() > 1 && n_done == 2, "{doing:?}");
    }

    #[test]
    fn the_number_of_features_that_the_message_names_fits() {
        let folder = TempDir::new().unwrap();
        let args = long_prompt(320);
        // The least limit under which everything but the rows fits.
        let refused = (24..400).step_by(4).find_map(|mib| {
            let output = limited(folder.path(), "-d", mib * 1024, &args);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let fits = message.split("--max-features ").nth(1)?.split('`').next()?.to_owned();
            // With fewer, what the allocator happens to hold would decide.
            (fits.parse::<usize>().unwrap() >= 200).then_some((mib, fits))
        });
        let (mib, fits) = refused.expect("some limit refuses the rows");
        let mut fewer = args.clone();
        fewer[4].clone_from(&fits);
        let output = limited(folder.path(), "-d", mib * 1024, &fewer);
        assert!(output.status.success(), "{mib} MiB, {fits} features: {output:?}");
    }

    #[test]
    fn a_limit_of_address_space_is_seen_too_and_by_every_command_that_runs_a_model() {
        let folder = graph_folder();
        let tokens = &long_prompt(512)[2];
        let trace = ["trace", "--tokens", tokens].map(String::from);
        let intervene = ["intervene", "--tokens", tokens, "--set", "0_1_5=1"].map(String::from);
        for args in [&trace[..], &intervene[..]] {
            let (mut n_refused, mut n_done) = (0, 0);
            // The program itself is mapped into more or less of it, by the number of cores.
            for mib in (64..2048).step_by(32) {
                let output = limited(folder.path(), "-v", mib * 1024, args);
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                let is_refused = message.contains("`ulimit -v`");
                match output.status.code() {
                    Some(0) => n_done += 1,
                    Some(2) if is_refused => {
                        assert_eq!(n_done, 0, "{mib} MiB are refused, less was enough: {message}");
                        n_refused += 1;
                    }
                    // Under the least limits there is no room for threads, or for the program before it looks.
                    Some(2) if message.contains("cannot start the threads") && n_refused == 0 && n_done == 0 => {}
                    code => panic!("{}, {mib} MiB: {code:?} {:?} {message}", args[0], output.status),
                }
                if n_done == 2 {
                    break;
                }
            }
            assert_eq!(n_done, 2, "{}", args[0]);
            assert!(n_refused > 0, "{}", args[0]);
        }
    }
}
