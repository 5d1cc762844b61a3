//! The header of a safetensors file.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::encoding::{Encoding, MXFP4_BLOCK};
use super::source::Source;
use super::stored::{Layout, Part, Stored};
use crate::error::{Error, Result};

/// Where the tensors of a file begin, and what its header says of them. The format's own reader checks that offsets, shapes and the file's size agree.
pub(super) fn header(source: &Source) -> Result<(usize, Metadata)> {
    let bytes = source.bytes()?;
    let (header_len, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| Error::Damaged {
        file: source.name.clone(),
        format: "safetensors",
        reason: format!("{e} (the file has {} bytes)", bytes.len()),
    })?;
    Ok((8 + header_len, metadata))
}

/// The tensors of one file.
pub(super) fn tensors(source: &Arc<Source>) -> Result<Vec<(String, Stored)>> {
    let (data, metadata) = header(source)?;
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
    Ok(join_mxfp4(metadata.tensors().into_iter().map(tensor).collect()))
}

/// GPT-OSS is published with its experts as `NAME_blocks` and `NAME_scales`, bytes both: MXFP4 in two tensors. They
/// are read as `NAME`, transposed to what an unquantised checkpoint holds.
fn join_mxfp4(tensors: Vec<(String, Stored)>) -> Vec<(String, Stored)> {
    let mut tensors: BTreeMap<String, Stored> = tensors.into_iter().collect();
    let bases: Vec<String> = tensors.keys().filter_map(|n| n.strip_suffix("_blocks").map(str::to_string)).collect();
    for base in bases {
        let (blocks_name, scales_name) = (format!("{base}_blocks"), format!("{base}_scales"));
        let (Some(blocks), Some(scales)) = (tensors.get(&blocks_name), tensors.get(&scales_name)) else { continue };
        let bytes = Encoding::Unsupported(Dtype::U8.to_string());
        let [n_experts, n_rows, n_blocks, 16] = blocks.shape[..] else { continue };
        let agree = scales.shape == [n_experts, n_rows, n_blocks];
        if !agree || blocks.part.encoding != bytes || scales.part.encoding != bytes || tensors.contains_key(&base) {
            continue;
        }
        let part = Part { encoding: Encoding::Mxfp4, ..blocks.part.clone() };
        let layout = Layout::SplitMxfp4(Box::new(scales.part.clone()));
        let shape = vec![n_experts, n_blocks * MXFP4_BLOCK, n_rows];
        tensors.remove(&blocks_name);
        tensors.remove(&scales_name);
        tensors.insert(base, Stored { part, shape, layout, shift: 0.0 });
    }
    tensors.into_iter().collect()
}
