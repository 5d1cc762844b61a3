//! Numbers of the library as NumPy sees them, without a copy.

use std::any::Any;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Numbers that NumPy knows.
pub trait Number: Send + Sync + 'static {
    /// Kind and bytes, as NumPy writes them.
    const KIND: &'static str;
}

impl Number for f32 {
    const KIND: &'static str = "f4";
}
impl Number for f64 {
    const KIND: &'static str = "f8";
}
impl Number for i64 {
    const KIND: &'static str = "i8";
}
impl Number for u32 {
    const KIND: &'static str = "u4";
}
impl Number for usize {
    const KIND: &'static str = if size_of::<usize>() == 8 { "u8" } else { "u4" };
}
/// Three columns: layer, position, feature.
impl Number for circuitscope::graph::FeatureId {
    const KIND: &'static str = "u4";
}

/// Memory that NumPy may read: `numpy.asarray` makes a read-only view of it, which keeps this alive.
///
/// The protocol is NumPy's array interface: an address and a shape. Nothing writes to the memory, and nothing moves it,
/// as long as its owner is there.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Array {
    _owner: Arc<dyn Any + Send + Sync>,
    address: usize,
    shape: Vec<usize>,
    kind: &'static str,
}

impl Array {
    /// Of what `values` finds in `owner`.
    pub fn of<O: Send + Sync + 'static, T: Number>(
        owner: Arc<O>,
        shape: Vec<usize>,
        values: impl FnOnce(&O) -> &[T],
    ) -> Array {
        let values = values(&owner);
        debug_assert_eq!(size_of_val(values) % shape.iter().product::<usize>().max(1), 0);
        let address = values.as_ptr() as usize;
        Array { address, shape, kind: T::KIND, _owner: owner }
    }

    /// Of a list, which is taken over.
    pub fn from_vec<T: Number>(values: Vec<T>, shape: Vec<usize>) -> Array {
        Array::of(Arc::new(values), shape, |values| values)
    }
}

#[pymethods]
impl Array {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let order = if cfg!(target_endian = "little") { '<' } else { '>' };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", format!("{order}{}", self.kind))?;
        interface.set_item("shape", PyTuple::new(py, &self.shape)?)?;
        interface.set_item("data", (self.address, true))?;
        Ok(interface)
    }
}
