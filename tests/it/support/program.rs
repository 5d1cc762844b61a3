//! Running the program, and what it says to bad input.

use std::path::Path;
use std::process::{Command, Output};

/// What the embedded model was made for.
pub const PROMPT: &str = "The capital of the state containing Dallas is";

/// The program in `folder`, without what the user's own environment and configuration would change.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
    command.current_dir(folder).env("XDG_CONFIG_HOME", folder.join("no-such-configuration"));
    let variables = ["MODEL", "TRANSCODERS", "SETUP", "DEVICE"].map(|name| format!("CIRCUITSCOPE_{name}"));
    let others = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"].map(str::to_owned);
    variables.iter().chain(&others).for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// Runs the program in `folder`.
pub fn circuitscope(folder: &Path, args: &[&str]) -> Output {
    program(folder).args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs a command that must succeed, and gives what it prints.
#[track_caller]
pub fn answer(folder: &Path, args: &[&str]) -> String {
    let output = circuitscope(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

/// Runs a command that must fail: exit code 2, one message without a panic, nothing on stdout. Returns the message.
#[track_caller]
pub fn refused(folder: &Path, args: &[&str]) -> String {
    let output = circuitscope(folder, args);
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    // Builds with CUDA say first which device they took.
    let device_line = message.split_inclusive('\n').next().filter(|line| line.starts_with("computing on "));
    let message = message[device_line.map_or(0, str::len)..].to_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(message.starts_with("error: "), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    assert_eq!(stdout(&output), "", "{args:?}");
    message
}

/// As [`refused`], for a message that must contain all of `parts`.
#[track_caller]
pub fn refused_with(folder: &Path, args: &[&str], parts: &[&str]) {
    let message = refused(folder, args);
    for part in parts {
        assert!(message.contains(part), "{args:?}: {part:?} is not in {message}");
    }
}

/// Copies the files of a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
