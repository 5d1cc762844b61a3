//! Errors of the library as Python exceptions.

use circuitscope::cli::safe_line;
use circuitscope::{Error, ErrorKind};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Where the classes are.
const MODULE: &str = "circuitscope._errors";

/// An error as an exception of the package: its message with what caused it and what can be done, one line each.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let (class, kind) = match error.kind() {
        ErrorKind::Io => ("FileError", "io"),
        ErrorKind::Format => ("InputError", "format"),
        ErrorKind::Mismatch => ("InputError", "mismatch"),
        ErrorKind::NotFound => ("InputError", "not found"),
        ErrorKind::Request => ("InputError", "request"),
        ErrorKind::TooLarge => ("InputError", "too large"),
        ErrorKind::Network => ("Error", "network"),
        ErrorKind::Device => ("Error", "device"),
        ErrorKind::Cancelled => ("Error", "cancelled"),
        _ => ("Error", "other"),
    };
    let mut message = safe_line(&error.to_string());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message.push_str(&format!("\ncaused by: {}", safe_line(&error.to_string())));
        cause = error.source();
    }
    let hint = error.hint().map(|hint| safe_line(&hint));
    if let Some(hint) = &hint {
        message.push_str(&format!("\nhint: {hint}"));
    }
    exception(py, class, kind, &message, hint.as_deref())
}

/// An exception for a request that makes no sense.
pub fn input_error(py: Python<'_>, message: &str) -> PyErr {
    exception(py, "InputError", "request", message, None)
}

fn exception(py: Python<'_>, class: &str, kind: &str, message: &str, hint: Option<&str>) -> PyErr {
    let made = || -> PyResult<PyErr> {
        let value = py.import(MODULE)?.getattr(class)?.call1((message,))?;
        value.setattr("kind", kind)?;
        value.setattr("hint", hint)?;
        Ok(PyErr::from_value(value))
    };
    // Only where the package is half imported.
    made().unwrap_or_else(|_| PyRuntimeError::new_err(message.to_owned()))
}

/// Errors of the library, raised.
pub trait Raise<T> {
    /// The value, or an exception.
    fn raised(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raise<T> for circuitscope::Result<T> {
    fn raised(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}
