use std::process::ExitCode;

fn main() -> ExitCode {
    circuitscope::cli::main()
}
