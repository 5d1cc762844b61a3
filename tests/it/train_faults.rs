//! Training that is killed, whose disk is full, or that has no more memory than it plans: what it goes on from is whole, and
//! what comes of it in the end is what training in one go writes.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::faults::own_mounts;
use crate::support::Random;

/// Training that keeps what it has as often as it may.
const TRAIN: [&str; 15] = [
    "train",
    "--tokens",
    "1500",
    "--features",
    "48",
    "--l0",
    "4",
    "--batch",
    "100",
    "--context",
    "32",
    "--keep-every",
    "0",
    "--replay",
    "3",
];

fn training(at: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
    command.current_dir(at).args(TRAIN).args(["-q", "--out", out]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The set's files: not the log and its picture, which tell times.
fn set_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file()).map(|path| (name_of(&path), std::fs::read(&path).unwrap()));
    files.filter(|(name, _)| !name.starts_with("log") && !name.starts_with("training")).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Checkpoints that say that they are complete.
fn checkpoints(out: &Path) -> Vec<PathBuf> {
    let Ok(entries) = out.join("training").read_dir() else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut complete: Vec<PathBuf> = paths.filter(|path| path.join("state.json").is_file()).collect();
    complete.sort();
    complete
}

/// Goes on where there is something to go on from, else begins.
fn go_on(out: &Path) -> &'static [&'static str] {
    if checkpoints(out).is_empty() { &[] } else { &["--resume"] }
}

#[track_caller]
fn ended_well(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!message.contains("panicked") && output.status.code() != Some(101), "{}: {message}", output.status);
}

#[test]
fn training_that_is_killed_again_and_again_writes_what_training_in_one_go_writes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let start = Instant::now();
    let output = training(at, "whole", &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let longest = start.elapsed().as_micros() as usize;
    let (whole, out) = (set_of(&at.join("whole")), at.join("killed"));
    assert!(whole.len() > 4, "{:?}", whole.keys());
    let (mut random, mut n_killed, mut n_resumed) = (Random::new(11), 0, 0);
    for round in 0..24 {
        if out.join("config.yaml").exists() && checkpoints(&out).is_empty() {
            break;
        }
        let more = go_on(&out);
        n_resumed += more.len();
        let before = checkpoints(&out);
        let mut child = training(at, "killed", more).spawn().unwrap();
        // At a random moment, or soon after a checkpoint that it has made.
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(random.below(longest) as u64));
        } else {
            while checkpoints(&out) == before && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
        }
        let signal = if round % 3 == 2 { libc::SIGTERM } else { libc::SIGKILL };
        if child.try_wait().unwrap().is_none() {
            // SAFETY: the process is a child that has not been waited for, so that the number is its own.
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        }
        let output = child.wait_with_output().unwrap();
        ended_well(&output);
        n_killed += usize::from(!output.status.success());
        let (code, by) = (output.status.code(), output.status.signal());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(
            code == Some(0) || by == Some(signal) || (signal == libc::SIGTERM && matches!(code, Some(130 | 143))),
            "{code:?}, {by:?} after {signal}: {message}"
        );
        for checkpoint in checkpoints(&out) {
            let state = std::fs::read(checkpoint.join("state.json")).unwrap();
            assert!(serde_json::from_slice::<serde_json::Value>(&state).is_ok(), "{}", checkpoint.display());
        }
    }
    if !out.join("config.yaml").exists() || !checkpoints(&out).is_empty() {
        let output = training(at, "killed", go_on(&out)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(n_killed >= 3 && n_resumed >= 1, "{n_killed} kills, {n_resumed} times it went on");
    assert!(set_of(&out) == whole, "the bytes differ");
    let left: Vec<String> = out.read_dir().unwrap().map(|entry| name_of(&entry.unwrap().path())).collect();
    assert!(!left.iter().any(|name| name.starts_with(".circuitscope-") || name == "training"), "{left:?}");
}

#[test]
fn training_on_a_full_disk_says_so_and_goes_on_once_there_is_room() {
    let Some(flags) = own_mounts() else {
        println!("not checked here: a full file system, for mounting one is not permitted");
        return;
    };
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let output = training(at, "whole", &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let whole = set_of(&at.join("whole"));
    let (mut n_full, mut n_resumed) = (0, 0);
    // From what holds no checkpoint to what holds two and the set. How many checkpoints there are depends on how fast the
    // machine is: on a busy one all sizes are tried again until a disk was full behind one.
    let sizes = [64, 400, 900, 1400, 2200, 3200, 8000];
    for (round, kib) in sizes.into_iter().cycle().take(6 * sizes.len()).enumerate() {
        if round >= sizes.len() && n_full >= 2 && n_resumed >= 1 {
            break;
        }
        let script = format!(
            "mount -t tmpfs -o size={kib}k none out || exit 77\n\
             \"$0\" \"$@\"; first=$?\n\
             mount -o remount,size=64m out || exit 77\n\
             more=; for state in out/training/*/state.json; do [ -f \"$state\" ] && more=--resume; done\n\
             second=0; [ $first = 0 ] || {{ \"$0\" \"$@\" $more; second=$?; }}\n\
             cp -r out after; echo \"$first $second $more\" > codes"
        );
        let _ = std::fs::remove_dir_all(at.join("after"));
        std::fs::create_dir_all(at.join("out")).unwrap();
        let output = Command::new("unshare")
            .current_dir(at)
            .args([flags, "sh", "-c", &script, env!("CARGO_BIN_EXE_circuitscope")])
            .args(TRAIN)
            .args(["-q", "--out", "out"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{kib} KB: {output:?}");
        ended_well(&output);
        let (codes, message) =
            (std::fs::read_to_string(at.join("codes")).unwrap(), String::from_utf8_lossy(&output.stderr));
        let codes: Vec<&str> = codes.split_whitespace().collect();
        assert!(codes[0] == "0" || codes[0] == "2", "{kib} KB: {codes:?}: {message}");
        assert_eq!(codes[1], "0", "{kib} KB: with room it goes on: {message}");
        if codes[0] == "2" {
            n_full += 1;
            n_resumed += usize::from(codes.contains(&"--resume"));
            assert!(
                message.contains("error: ") && message.contains("out/"),
                "{kib} KB: the message names the file: {message}"
            );
        }
        assert!(set_of(&at.join("after")) == whole, "{kib} KB: the bytes differ");
    }
    assert!(n_full >= 2 && n_resumed >= 1, "the disk was full {n_full} times, and {n_resumed} times it went on");
}

/// Under the least limit that the plan is content with, training comes to its end.
#[test]
fn training_needs_no_more_memory_at_its_end_than_it_plans() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = |kib: usize, out: &str| {
        let limit = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
        let args = [
            "train",
            "--tokens",
            "600",
            "--features",
            "3000",
            "--l0",
            "8",
            "--batch",
            "100",
            "--context",
            "32",
            "--memory",
            "1MB",
            "--threads",
            "1",
            "-q",
            "--out",
            out,
        ];
        let mut sh = Command::new("sh");
        sh.current_dir(at).args(["-c", &limit, env!("CARGO_BIN_EXE_circuitscope")]).args(args);
        sh.output().unwrap()
    };
    let (mut kib, mut n_refused) = (150_000, 0);
    loop {
        assert!(kib < 4_000_000, "it needs less than 4 GB");
        let output = run(kib, &format!("of-{kib}"));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(2), "{kib} KB: {}: {message}", output.status);
        assert!(message.contains("memory"), "{kib} KB: {message}");
        n_refused += 1;
        kib += 40_000;
    }
    assert!(n_refused > 0, "the first limits are too small");
}
