//! What an intervention did.

use std::sync::Arc;

use circuitscope::cli::{comparison_text, json_text};
use circuitscope::tracer::{Intervened, Swept};
use circuitscope::weights::Tokenizer;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;

use crate::array::Array;
use crate::error::Raise;

/// One prompt, with and without changes.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Run {
    pub inner: Arc<Intervened>,
    pub tokenizer: Tokenizer,
}

#[pymethods]
impl Run {
    /// As `circuitscope intervene --format json` prints it.
    fn json(&self, py: Python<'_>) -> PyResult<String> {
        json_text(&*self.inner).raised(py)
    }

    /// As `circuitscope intervene` prints it.
    fn text(&self) -> String {
        comparison_text(&self.inner, &self.inner.interventions)
    }

    #[getter]
    fn kl(&self) -> f64 {
        self.inner.comparison.kl_divergence
    }

    /// Texts of tokens.
    fn texts(&self, ids: Vec<u32>) -> Vec<String> {
        ids.into_iter().map(|id| self.tokenizer.token(id)).collect()
    }

    fn array(&self, name: &str) -> PyResult<Array> {
        let owner = self.inner.clone();
        let shape = vec![self.inner.logits_after.len()];
        match name {
            "logits_before" => Ok(Array::of(owner, shape, |run| &run.logits_before[..])),
            "logits_after" => Ok(Array::of(owner, shape, |run| &run.logits_after[..])),
            _ => Err(PyKeyError::new_err(name.to_owned())),
        }
    }
}

/// One prompt under many changes.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Sweep {
    pub inner: Swept,
}

#[pymethods]
impl Sweep {
    /// As `circuitscope intervene --sweep --format json` prints it.
    fn json(&self, py: Python<'_>) -> PyResult<String> {
        json_text(&self.inner).raised(py)
    }

    /// The target's probability along the sweep, drawn.
    fn svg(&self) -> String {
        circuitscope::picture::sweep_svg(&self.inner.result)
    }
}
