//! How tensor elements are stored, and their conversion to f32.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockQ8K,
    GgmlType,
};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// How elements are stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Encoding {
    F32,
    F64,
    F16,
    Bf16,
    /// Blocks of ggml, each with its own scale.
    Ggml(GgmlDType),
    /// 32 four-bit floats (e2m1) under one power of two (e8m0), in ggml's order.
    Mxfp4,
    /// Anything else: known to be there, refused when read. The type's name.
    Unsupported(String),
}

/// Elements under one scale of MXFP4.
pub(super) const MXFP4_BLOCK: usize = 32;

/// The four-bit floats of MXFP4, doubled (ggml halves the scale instead).
const MXFP4_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

impl Encoding {
    /// Elements and bytes of the smallest piece that can be decoded by itself.
    pub fn block(&self) -> (usize, usize) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F64 => (1, 8),
            Encoding::F16 | Encoding::Bf16 => (1, 2),
            Encoding::Ggml(dtype) => (dtype.block_size(), dtype.type_size()),
            Encoding::Mxfp4 => (MXFP4_BLOCK, 17),
            Encoding::Unsupported(_) => (1, 1),
        }
    }

    /// Bytes of `n` elements; `None` on overflow or when they are no whole number of blocks.
    pub fn size_bytes(&self, n: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        if n.is_multiple_of(elements) { (n / elements).checked_mul(bytes) } else { None }
    }

    /// Decodes whole blocks; true when every value is finite. `bytes` must be exactly the blocks of `out`.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) -> bool {
        debug_assert_eq!(self.size_bytes(out.len()), Some(bytes.len()));
        // Pieces that stay in the first-level cache, so that the finite check reads what was just written.
        const PIECE: usize = 4096;
        let (block_elements, block_bytes) = self.block();
        let piece_bytes = PIECE / block_elements * block_bytes;
        let mut finite = true;
        for (out, bytes) in out.chunks_mut(PIECE).zip(bytes.chunks(piece_bytes)) {
            self.decode_piece(bytes, out);
            finite &= all_finite(out);
        }
        finite
    }

    fn decode_piece(&self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Encoding::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Encoding::F64 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f64::from_le_bytes(*b) as f32;
                }
            }
            Encoding::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            Encoding::F16 => {
                // Files need not be aligned; the vectorised conversion wants `f16`s.
                let mut halves = [f16::ZERO; 512];
                for (out, bytes) in out.chunks_mut(512).zip(bytes.chunks(1024)) {
                    for (h, b) in halves.iter_mut().zip(bytes.as_chunks().0) {
                        *h = f16::from_le_bytes(*b);
                    }
                    halves[..out.len()].convert_to_f32_slice(out);
                }
            }
            Encoding::Ggml(dtype) => match dtype {
                GgmlDType::F32 => Encoding::F32.decode_piece(bytes, out),
                GgmlDType::F16 => Encoding::F16.decode_piece(bytes, out),
                GgmlDType::BF16 => Encoding::Bf16.decode_piece(bytes, out),
                GgmlDType::Q4_0 => decode_blocks::<BlockQ4_0>(bytes, out),
                GgmlDType::Q4_1 => decode_blocks::<BlockQ4_1>(bytes, out),
                GgmlDType::Q5_0 => decode_blocks::<BlockQ5_0>(bytes, out),
                GgmlDType::Q5_1 => decode_blocks::<BlockQ5_1>(bytes, out),
                GgmlDType::Q8_0 => decode_blocks::<BlockQ8_0>(bytes, out),
                GgmlDType::Q2K => decode_blocks::<BlockQ2K>(bytes, out),
                GgmlDType::Q3K => decode_blocks::<BlockQ3K>(bytes, out),
                GgmlDType::Q4K => decode_blocks::<BlockQ4K>(bytes, out),
                GgmlDType::Q5K => decode_blocks::<BlockQ5K>(bytes, out),
                GgmlDType::Q6K => decode_blocks::<BlockQ6K>(bytes, out),
                GgmlDType::Q8K => decode_blocks::<BlockQ8K>(bytes, out),
                // Only an intermediate of ggml's dot products, never in files; refused when opened.
                GgmlDType::Q8_1 => out.fill(f32::NAN),
            },
            Encoding::Mxfp4 => {
                for (out, block) in out.chunks_mut(MXFP4_BLOCK).zip(bytes.chunks(17)) {
                    for (j, (low, high)) in mxfp4_values(&block[1..], block[0]).enumerate() {
                        out[j] = low;
                        out[j + MXFP4_BLOCK / 2] = high;
                    }
                }
            }
            Encoding::Unsupported(_) => out.fill(f32::NAN),
        }
    }
}

/// The low and high values of each byte of an MXFP4 block.
pub(super) fn mxfp4_values(nibbles: &[u8], exponent: u8) -> impl Iterator<Item = (f32, f32)> {
    let scale = half_power_of_two(exponent);
    let value = move |nibble: u8| MXFP4_DOUBLED[usize::from(nibble)] * scale;
    nibbles.iter().map(move |byte| (value(byte & 15), value(byte >> 4)))
}

/// `2^(exponent - 128)`, exact also where that is subnormal.
fn half_power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// True when no value is NaN or infinite.
pub(super) fn all_finite(values: &[f32]) -> bool {
    // A sum of flags rather than `all`: no early exit, so that it vectorises.
    let bad = values.iter().map(|v| u32::from((v.to_bits() & 0x7fff_ffff) >= 0x7f80_0000)).sum::<u32>();
    bad == 0
}

fn decode_blocks<B: GgmlType>(bytes: &[u8], out: &mut [f32]) {
    let n_blocks = bytes.len() / size_of::<B>();
    if bytes.as_ptr().align_offset(align_of::<B>()) == 0 {
        // SAFETY: aligned, `n_blocks` whole blocks lie inside `bytes`, and ggml's blocks are plain numbers
        // (f16, u8, f32) for which every bit pattern is a value.
        let blocks = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<B>(), n_blocks) };
        B::to_float(blocks, out);
        return;
    }
    let mut blocks: Vec<B> = (0..n_blocks).map(|_| B::zeros()).collect();
    // SAFETY: both sides are `n_blocks` blocks long, do not overlap, and blocks are plain numbers.
    unsafe {
        let target = blocks.as_mut_ptr().cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, n_blocks * size_of::<B>());
    }
    B::to_float(&blocks, out);
}
