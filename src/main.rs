//! The `circuitscope` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    circuitscope::cli::main()
}
