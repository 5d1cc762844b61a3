//! Faults on purpose: writes that fail, full disks, little memory, kills. Whatever happens, a file that was there is
//! whole as it was or whole as it was to become, and nothing panics.
//!
//! Here a few of each; all of them with
//! `cargo test --release --test it -- faults::in_full --ignored --nocapture`, which prints the table of
//! `docs/reliability.md`.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Random, absent, circuitscope, copy_folder};

/// A command that writes into the folder `out`.
struct Case {
    name: &'static str,
    args: &'static [&'static str],
    /// How many files it makes there, at least.
    n_files: usize,
}

const fn case(name: &'static str, args: &'static [&'static str], n_files: usize) -> Case {
    Case { name, args, n_files }
}

/// Every command and every kind of file that one writes. `in.safetensors` and `in.json` are graphs of "He went",
/// `grouped.json` has a supernode, `f` and `g` are folders of features.
const CASES: [Case; 23] = [
    case("trace", &["trace", "He went", "--out-dir", "out", "--slug", "a", "--force", "--quiet"], 2),
    case("batch", &["batch", "prompts.jsonl", "--out-dir", "out", "--force", "--quiet"], 3),
    case("prune", &["prune", "in.safetensors", "-o", "out/a.json", "--slug", "a"], 1),
    case("inspect text", &["inspect", "in.json", "-o", "out/a.txt"], 1),
    case("inspect json", &["inspect", "in.json", "--format", "json", "-o", "out/a.json"], 1),
    case("inspect svg", &["inspect", "in.json", "--format", "svg", "-o", "out/a.svg"], 1),
    case("inspect png", &["inspect", "in.json", "--format", "png", "-o", "out/a.png"], 1),
    case("inspect dot", &["inspect", "in.json", "--format", "dot", "-o", "out/a.dot"], 1),
    case("inspect csv", &["inspect", "in.json", "--format", "csv", "-o", "out/a.csv"], 1),
    case("inspect csv-nodes", &["inspect", "in.json", "--format", "csv-nodes", "-o", "out/a.csv"], 1),
    case("inspect graphml", &["inspect", "in.json", "--format", "graphml", "-o", "out/a.graphml"], 1),
    case("inspect --heat-map", &["inspect", "in.safetensors", "--heat-map", "--format", "svg", "-o", "out/a.svg"], 1),
    case("inspect --save", &["inspect", "in.json", "--save", "out/a.json"], 1),
    case(
        "intervene --picture",
        &["intervene", "He went", "--ablate", "0_344_3", "--graph", "grouped.json", "--picture", "out/a.svg"],
        1,
    ),
    case("intervene --sweep", &["intervene", "He went", "--sweep", "0_39_1=0..4/1", "--picture", "out/a.svg"], 1),
    case("features collect", &["features", "collect", "--text", "text.txt", "--out", "out", "--restart", "-q"], 6),
    case("features merge", &["features", "merge", "f", "g", "--out", "out", "-q"], 6),
    case("features label", &["features", "label", "f", "--out", "out", "-q"], 2),
    case("man", &["man", "--out-dir", "out"], 10),
    case("verify", &["verify", "in.safetensors"], 0),
    case("diff", &["diff", "in.json", "in.json"], 0),
    case("common", &["common", "in.json", "in.json"], 0),
    case("features search", &["features", "search", "f", "house"], 0),
];

/// The file of a folder of features that says that the others are there.
const SEAL: &str = "features.json";

/// The list of a folder's graphs, which is written after what it lists: whole, or as it was.
const LIST: &str = "graph-metadata.json";

/// What a batch took, which is never twice the same.
const TIMES: &str = "index-times.jsonl";

/// Where collecting keeps what it has done so far; the next run removes it.
const KEPT_WORK: &str = "collecting";

/// Calls with which a file comes to be; the question mark is for those that a system lacks.
const WRITES: &str =
    "write,writev,pwrite64,?rename,renameat,?renameat2,fsync,fdatasync,fchmod,ftruncate,?mkdir,mkdirat,?fallocate";

/// What marks a file that is not complete yet.
const TEMPORARY_PREFIX: &str = ".circuitscope-";

/// Files by name.
type Files = BTreeMap<String, Vec<u8>>;

fn files_of(folder: &Path) -> Files {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named
        .filter(|(name, _)| name != LIST && name != TIMES)
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

#[track_caller]
fn succeeds(folder: &Path, args: &[&str]) {
    let output = circuitscope(folder, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// The files that are there before, in place of `new` ones: larger than a block, so that half of one would be seen.
/// What `trace` and collecting replace must be of their kind: a graph of another prompt, features of another text.
fn old_files(case: &Case, new: &Files) -> Files {
    let folder = TempDir::new().unwrap();
    match case.name {
        "trace" => succeeds(folder.path(), &["trace", "She saw", "--out-dir", ".", "--slug", "a", "--quiet"]),
        "batch" => {
            std::fs::write(folder.path().join("prompts.jsonl"), "{\"prompt\": \"She saw\", \"slug\": \"a\"}").unwrap();
            succeeds(folder.path(), &["batch", "prompts.jsonl", "--out-dir", ".", "--quiet"]);
            std::fs::remove_file(folder.path().join("prompts.jsonl")).unwrap();
        }
        "features collect" => {
            std::fs::write(folder.path().join("text.txt"), "She saw a fox. ".repeat(9)).unwrap();
            succeeds(folder.path(), &["features", "collect", "--text", "text.txt", "--out", ".", "-q"]);
            std::fs::remove_file(folder.path().join("text.txt")).unwrap();
        }
        // It refuses a folder that holds features.
        "features merge" => {}
        _ => {
            for name in new.keys() {
                let old = format!("what was in {name} before\n").repeat(300);
                std::fs::write(folder.path().join(name), old).unwrap();
            }
        }
    }
    files_of(folder.path())
}

/// A case with its files to read, and what it writes when nothing goes wrong.
struct Bench {
    case: &'static Case,
    folder: TempDir,
    /// None where a file is made that nothing is in the place of.
    old: Files,
    new: Files,
    took: Duration,
}

/// What became of a run.
#[derive(Default)]
struct Outcome {
    code: Option<i32>,
    signal: Option<i32>,
    message: String,
    n_old: usize,
    n_new: usize,
    n_temporary: usize,
}

impl Bench {
    fn new(case: &'static Case) -> Bench {
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        succeeds(at, &["trace", "He went", "--out-dir", ".", "--slug", "in", "--quiet"]);
        if case.args.contains(&"grouped.json") {
            succeeds(at, &["inspect", "in.json", "--group", "say=0_344_3,0_78_3", "--save", "grouped.json"]);
        }
        std::fs::write(at.join("prompts.jsonl"), "{\"prompt\": \"He went\", \"slug\": \"a\"}\n").unwrap();
        if case.args[0] == "features" {
            std::fs::write(at.join("text.txt"), "He went to the house.\n".repeat(9)).unwrap();
            for out in ["f", "g"] {
                let collect = ["features", "collect", "--text", "text.txt", "--out", out, "--mergeable", "-q"];
                succeeds(at, &collect);
            }
        }
        let mut bench = Bench { case, old: Files::new(), new: Files::new(), took: Duration::ZERO, folder };
        bench.reset();
        succeeds(bench.path(), case.args);
        bench.new = files_of(&bench.path().join("out"));
        assert!(bench.new.len() >= case.n_files, "{}: {:?}", case.name, bench.new.keys());
        bench.old = old_files(case, &bench.new);
        bench.reset();
        let start = Instant::now();
        succeeds(bench.path(), case.args);
        bench.took = start.elapsed();
        let again = files_of(&bench.path().join("out"));
        for (name, new) in &bench.new {
            assert!(again[name] == *new && bench.old.get(name) != Some(new), "{}: {name} is written", case.name);
        }
        bench
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder `out` with the old files alone.
    fn reset(&self) {
        let out = self.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        for (name, old) in &self.old {
            std::fs::write(out.join(name), old).unwrap();
        }
    }

    /// The program, its standard output thrown away.
    fn program(&self) -> Command {
        self.program_behind(&[])
    }

    /// The program, run by another one.
    fn program_behind(&self, runner: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_circuitscope");
        let mut command = match runner {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.current_dir(self.path()).args(self.case.args).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    fn run(&self, mut command: Command) -> Outcome {
        self.reset();
        let output = command.output().unwrap();
        self.outcome(output.status, &output.stderr, &self.path().join("out"))
    }

    /// Looks at what is there after a run.
    #[track_caller]
    fn outcome(&self, status: ExitStatus, stderr: &[u8], out: &Path) -> Outcome {
        let message = String::from_utf8_lossy(stderr).into_owned();
        let name = self.case.name;
        let mut outcome = Outcome { code: status.code(), signal: status.signal(), message, ..Outcome::default() };
        let seen = &outcome.message;
        assert!(!seen.contains("panicked") && outcome.code != Some(101), "{name}: {status}: {seen}");
        let there = files_of(out);
        for (file, new) in &self.new {
            // What was not there before may not be there yet; a set that is replaced is unsealed in between.
            let was_there = self.old.contains_key(file) && !self.is_unsealed(&there);
            match there.get(file) {
                Some(is) if is == new => outcome.n_new += 1,
                is if is == self.old.get(file) => outcome.n_old += 1,
                None if !was_there => outcome.n_old += 1,
                is => panic!("{name}: {file} is neither old nor new ({:?} bytes); {status}: {seen}", is.map(Vec::len)),
            }
        }
        assert!(self.is_unsealed(&there) || self.is_one_set(&there), "{name}: files of two sets; {status}: {seen}");
        for entry in out.read_dir().unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if !self.new.contains_key(&file) && file != LIST && file != TIMES {
                assert!(file.starts_with(TEMPORARY_PREFIX) || file == KEPT_WORK, "{name}: {file} was left");
                outcome.n_temporary += 1;
            }
        }
        if outcome.code == Some(0) {
            assert_eq!(outcome.n_old, 0, "{name}: success, but an old file: {}", outcome.message);
        }
        outcome
    }

    /// Whether these are files of a folder of features without the one that says that they are there.
    fn is_unsealed(&self, there: &Files) -> bool {
        self.new.contains_key(SEAL) && !there.contains_key(SEAL)
    }

    /// Whether files that belong together are all old or all new.
    fn is_one_set(&self, there: &Files) -> bool {
        let is = |files: &Files| files.iter().all(|(name, bytes)| there.get(name) == Some(bytes));
        !self.new.contains_key(SEAL) || is(&self.new) || is(&self.old)
    }
}

/// Counts of one line of the table.
#[derive(Default)]
struct Line {
    n_runs: usize,
    n_done: usize,
    n_refused: usize,
    n_ended: usize,
    n_old: usize,
    n_new: usize,
    n_temporary: usize,
}

impl Line {
    fn add(&mut self, outcome: &Outcome) {
        self.n_runs += 1;
        match outcome.code {
            Some(0) => self.n_done += 1,
            // A batch says 1 where a line of it failed.
            Some(1 | 2) => self.n_refused += 1,
            _ => self.n_ended += 1,
        }
        self.n_old += outcome.n_old;
        self.n_new += outcome.n_new;
        self.n_temporary += outcome.n_temporary;
    }

    /// The line, as the table has it.
    fn text(&self, fault: &str, name: &str) -> String {
        let Line { n_runs, n_done, n_refused, n_ended, n_old, n_new, n_temporary } = self;
        format!(
            "| {fault} | `{name}` | {n_runs} | {n_done} | {n_refused} | {n_ended} | {n_old} | {n_new} | 0 | {n_temporary} |\n"
        )
    }
}

/// A run that was told of a fault says so and leaves nothing beside the files.
#[track_caller]
fn is_answered(bench: &Bench, outcome: &Outcome, fault: &str) {
    let (name, code, message) = (bench.case.name, outcome.code, &outcome.message);
    assert!(matches!(code, Some(0 | 2)), "{name}, {fault}: exit code {code:?}, signal {:?}: {message}", outcome.signal);
    assert_eq!(outcome.n_temporary, 0, "{name}, {fault}: a temporary file was left: {message}");
}

fn has_strace() -> bool {
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success());
    if !works {
        absent("strace, or leave to trace processes");
    }
    works
}

/// The program under strace, which does to its writes what `fault` says; the log of them goes to `log`. Filters in the
/// kernel make that quicker, but take signals away: strace 6.1 sends none with them.
fn traced(bench: &Bench, log: &Path, fault: Option<&str>) -> Outcome {
    let trace = format!("trace={WRITES}");
    let mut runner = vec!["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace];
    if !fault.is_some_and(|fault| fault.contains(":signal=")) {
        runner.push("--seccomp-bpf");
    }
    runner.extend(fault.iter().flat_map(|fault| ["-e", fault]));
    bench.run(bench.program_behind(&runner))
}

/// The writes of a run's first thread: each by its call's name, and which of these it is. strace counts so.
fn writes(bench: &Bench) -> Vec<(String, usize)> {
    let log = bench.path().join("log");
    let outcome = traced(bench, &log, None);
    assert_eq!(outcome.code, Some(0), "{}", outcome.message);
    let log = std::fs::read_to_string(log).unwrap();
    let mut found: Vec<(String, usize)> = Vec::new();
    let first = log.split_whitespace().next().unwrap().to_owned();
    for line in log.lines().filter_map(|line| line.strip_prefix(&first)) {
        if let Some((name, _)) = line.split_once('(') {
            let name = name.trim().to_owned();
            let before = found.iter().filter(|(earlier, _)| *earlier == name).count();
            found.push((name, before + 1));
        }
    }
    found
}

/// Each write of a run fails in turn: alone, and with all of its kind that follow it.
fn failing_writes(bench: &Bench, errors: &[&str]) -> Line {
    let mut line = Line::default();
    for (name, at) in writes(bench) {
        for error in errors {
            for on in ["", "+"] {
                let fault = format!("inject={name}:error={error}:when={at}{on}");
                let outcome = traced(bench, Path::new("/dev/null"), Some(&fault));
                is_answered(bench, &outcome, &fault);
                if outcome.code == Some(2) && on.is_empty() {
                    // What was written before is told before.
                    let says_why = outcome.message.lines().any(|line| line.starts_with("error: "));
                    assert!(says_why, "{fault}: {}", outcome.message);
                }
                line.add(&outcome);
            }
        }
    }
    line
}

/// A run is killed at each of its writes in turn.
fn kills_at_writes(bench: &Bench) -> Line {
    let mut line = Line::default();
    for (name, at) in writes(bench) {
        let outcome = traced(bench, Path::new("/dev/null"), Some(&format!("inject={name}:signal=KILL:when={at}")));
        assert_eq!(outcome.signal, Some(9), "{}: killed at {name} {at}", bench.case.name);
        // And beside it the folder of the set that is being written.
        assert!(outcome.n_temporary <= 2, "{}: one file is written at a time", bench.case.name);
        line.add(&outcome);
    }
    line
}

/// A run is killed at moments drawn from its length.
fn kills(bench: &Bench, n: usize) -> Line {
    let mut line = Line::default();
    let mut random = Random::new(7);
    let longest = bench.took.as_micros() as usize * 5 / 4 + 1;
    for _ in 0..n {
        bench.reset();
        let mut child = bench.program().spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(longest) as u64));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        line.add(&bench.outcome(output.status, &output.stderr, &bench.path().join("out")));
    }
    // What kills have left is in nobody's way, but for features that are there already.
    if bench.case.name == "features merge" {
        let _ = std::fs::remove_file(bench.path().join("out").join(SEAL));
    }
    let output = circuitscope(bench.path(), bench.case.args);
    assert!(output.status.success(), "{}: {output:?}", bench.case.name);
    for (file, new) in &bench.new {
        assert!(std::fs::read(bench.path().join("out").join(file)).unwrap() == *new, "{}: {file}", bench.case.name);
    }
    line
}

/// A run under limits of memory, each a sixth larger than the last, from what does not load the program to what it
/// needs.
fn little_memory(bench: &Bench, factor: f64) -> Line {
    let mut line = Line::default();
    let mut kib = 8_000.0;
    let mut n_done = 0;
    while n_done < 2 {
        assert!(kib < 16e6, "{} needs less than 16 GB", bench.case.name);
        let limit = format!("ulimit -v {kib:.0}; exec \"$0\" \"$@\"");
        let outcome = bench.run(bench.program_behind(&["sh", "-c", &limit]));
        n_done += usize::from(outcome.code == Some(0));
        line.add(&outcome);
        kib *= factor;
    }
    line
}

/// How a file system of its own is had here: as its own user, or as the system's.
pub(crate) fn own_mounts() -> Option<&'static str> {
    ["-rm", "-m"].into_iter().find(|flags| {
        let script = "mount -t tmpfs -o size=64k none /mnt";
        let quiet = |command: &mut Command| command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        quiet(Command::new("unshare").args([flags, "sh", "-c", script]))
    })
}

/// A run on file systems of every size from the old files' to more than enough, in blocks of 4 KB times `step`.
fn full_disk(bench: &Bench, step: usize) -> Option<Line> {
    let Some(flags) = own_mounts() else {
        println!("not checked here: a full file system, for mounting one is not permitted");
        return None;
    };
    let blocks = |n_bytes: usize| n_bytes.div_ceil(4096);
    let before: usize = bench.old.values().map(|bytes| blocks(bytes.len())).sum();
    let after: usize = bench.new.values().map(|bytes| blocks(bytes.len())).sum();
    let n_before = before;
    let mut line = Line::default();
    let mut n_done = 0;
    // Some systems take a block for the folder itself: there the old files do not fit into the first size.
    for n_blocks in (before..=before + after + 4).step_by(step).chain([before + after + 8]) {
        let script = format!(
            "mount -t tmpfs -o size={}k none out && cp -r old/. out || exit 77; \"$0\" \"$@\"; code=$?; cp -r out/. after; exit $code",
            4 * n_blocks
        );
        bench.reset();
        let (before, after) = (bench.path().join("old"), bench.path().join("after"));
        let _ = (std::fs::remove_dir_all(&after), std::fs::remove_dir_all(&before));
        std::fs::create_dir(&after).unwrap();
        copy_folder(&bench.path().join("out"), &before);
        let output = bench.program_behind(&["unshare", flags, "sh", "-c", &script]).output().unwrap();
        if output.status.code() == Some(77) && n_blocks == n_before {
            continue;
        }
        assert_ne!(output.status.code(), Some(77), "{}: {output:?}", bench.case.name);
        let outcome = bench.outcome(output.status, &output.stderr, &after);
        is_answered(bench, &outcome, &format!("{n_blocks} blocks"));
        if outcome.code == Some(2) {
            assert!(outcome.message.contains("out"), "the message names the file: {}", outcome.message);
        }
        n_done += usize::from(outcome.code == Some(0));
        line.add(&outcome);
    }
    assert!(n_done > 0, "{}: with more than enough it is written", bench.case.name);
    Some(line)
}

/// Standard output that takes nothing.
fn full_output(bench: &Bench) -> Line {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut program = bench.program();
    program.stdout(full);
    let outcome = bench.run(program);
    is_answered(bench, &outcome, "/dev/full");
    let mut line = Line::default();
    line.add(&outcome);
    line
}

fn bench_of(name: &str) -> Bench {
    Bench::new(CASES.iter().find(|case| case.name == name).unwrap())
}

#[test]
fn a_write_that_fails_leaves_old_files_or_new_ones() {
    if has_strace() {
        for name in ["prune", "inspect svg"] {
            let line = failing_writes(&bench_of(name), &["ENOSPC"]);
            assert!(line.n_refused >= 4 && line.n_old >= 4, "{name}: writes and renames failed");
        }
    }
}

#[test]
fn a_kill_at_any_write_leaves_old_files_or_new_ones() {
    if has_strace() {
        let line = kills_at_writes(&bench_of("trace"));
        assert!(line.n_ended >= 4 && line.n_old > 0 && line.n_new > 0, "it was killed before and after its files");
    }
    let line = kills(&bench_of("prune"), 10);
    assert_eq!(line.n_runs, 10);
}

#[test]
fn a_full_disk_leaves_old_files_or_new_ones() {
    if let Some(line) = full_disk(&bench_of("trace"), 4) {
        assert!(line.n_refused > 0 && line.n_old > 0, "the disk was full");
    }
}

#[test]
fn little_memory_leaves_old_files_or_new_ones() {
    let line = little_memory(&bench_of("inspect --save"), 1.5);
    assert!(line.n_ended + line.n_refused > 0, "memory ran out");
}

#[test]
fn an_output_that_is_full_is_an_error() {
    for name in ["diff", "prune"] {
        let line = full_output(&bench_of(name));
        assert_eq!(line.n_refused, 1, "{name}");
    }
}

#[test]
#[ignore = "minutes: the whole table"]
fn in_full() {
    let selected = std::env::var("FAULTS_COMMAND").unwrap_or_default();
    let has_strace = has_strace();
    println!("| fault | command | runs | done | refused | ended | old files | new files | neither | left beside |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    // As many commands at once as there are cores: a run that is killed or refused waits more than it computes.
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&selected)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
            print!("{}", all_faults(case, has_strace));
        }
    };
    let n_workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..n_workers).for_each(|_| drop(scope.spawn(work))));
}

/// The lines of a command in the table.
fn all_faults(case: &'static Case, has_strace: bool) -> String {
    let bench = Bench::new(case);
    let mut table = String::new();
    if has_strace {
        table += &failing_writes(&bench, &["ENOSPC", "EIO"]).text("each write fails", case.name);
        table += &kills_at_writes(&bench).text("killed at each write", case.name);
    }
    table += &kills(&bench, 200).text("killed at a random moment", case.name);
    table += &little_memory(&bench, 7.0 / 6.0).text("little memory", case.name);
    if case.n_files > 0
        && let Some(line) = full_disk(&bench, 1)
    {
        table += &line.text("full disk", case.name);
    }
    table + &full_output(&bench).text("full output", case.name)
}
