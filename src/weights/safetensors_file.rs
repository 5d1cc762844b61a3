//! The header of a safetensors file.

use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};

use super::encoding::Encoding;
use super::source::Source;
use super::stored::{Layout, Part, Stored};
use crate::error::{Error, Result};

/// The tensors of one file. The format's own reader checks that offsets, shapes and the file's size agree.
pub(super) fn tensors(source: &Arc<Source>) -> Result<Vec<(String, Stored)>> {
    let bytes = source.bytes()?;
    let (header_len, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| Error::Damaged {
        file: source.name.clone(),
        format: "safetensors",
        reason: format!("{e} (the file has {} bytes)", bytes.len()),
    })?;
    let data = 8 + header_len;
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let encoding = match info.dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F64 => Encoding::F64,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            other => Encoding::Unsupported(other.to_string()),
        };
        let part = Part { source: source.clone(), start: data + info.data_offsets.0, encoding };
        (name, Stored { part, shape: info.shape.clone(), layout: Layout::RowMajor, shift: 0.0 })
    };
    Ok(metadata.tensors().into_iter().map(tensor).collect())
}
