//! circuitscope as a Python module: the library's [`Tracer`](circuitscope::Tracer) and what it makes, in the plainest
//! types. What people call is `circuitscope/*.py`, which checks arguments and gives results their NumPy form.

mod array;
mod circuit;
mod error;
mod graph;
mod job;
mod run;
mod tracer;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use super::array::Array;
    #[pymodule_export]
    use super::circuit::{Circuit, png_of};
    #[pymodule_export]
    use super::graph::Graph;
    #[pymodule_export]
    use super::run::{Run, Sweep};
    #[pymodule_export]
    use super::tracer::Tracer;

    /// The version of the library.
    #[pyfunction]
    fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Runs the command line with these arguments, the program's name first, and returns the exit code.
    #[pyfunction]
    fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
        py.detach(|| circuitscope::cli::run(arguments))
    }
}
