//! Products of bf16 with matrix tiles: 32 by 32 outputs at once, of four tiles that the processor keeps. The instructions are
//! written out, since Rust has no functions for them yet.

use std::arch::asm;
use std::ops::Range;

use super::{COLUMNS, RoundedRows, SIDE, TILE};

/// Rows that are computed together: two tiles.
const ROWS: usize = 2 * SIDE;

/// Bytes of a tile's row.
const ROW_BYTES: u16 = 64;

/// What a thread says of the tiles that it uses (Intel, "Architecture Instruction Set Extensions", palette 1).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles, all whole.
static CONFIG: Config = {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        (config.row_bytes[tile], config.rows[tile]) = (ROW_BYTES, SIDE as u8);
        tile += 1;
    }
    config
};

/// Whether the processor has tiles, and the system lets this program use them: it keeps 8 kB a thread for them from the
/// first use on, so that it wants to be asked.
#[cfg(target_os = "linux")]
pub(super) fn is_supported() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// `arch_prctl`'s request for what a processor's feature keeps, and the number of tiles' data.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    let has_tiles = __cpuid(0).eax >= 7 && {
        // Bit 22: products of bf16; bit 24: tiles.
        let features = __cpuid_count(7, 0).edx;
        features >> 22 & 1 == 1 && features >> 24 & 1 == 1
    };
    // SAFETY: the call takes numbers alone and changes nothing but what this process may use.
    has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_supported() -> bool {
    false
}

/// All rows times the columns of one panel.
///
/// # Shapes
/// `out` `[n_rows, d_out]`, `panel` `[tiles of d_in, 2, 16, 16]`.
///
/// # Panics
/// Other lengths.
pub(super) fn panel(out: &mut [f32], d_out: usize, columns: Range<usize>, x: &RoundedRows, panel: &[u32]) {
    let n_tiles = panel.len() / (2 * TILE);
    assert!(panel.len() == n_tiles * 2 * TILE && n_tiles > 0 && n_tiles * SIDE <= x.stride);
    assert!(x.pairs.len() >= x.n_rows.next_multiple_of(ROWS) * x.stride && out.len() == x.n_rows * d_out);
    assert!(columns.end <= d_out && columns.len() <= COLUMNS && !columns.is_empty());
    let mut aside = [0f32; ROWS * COLUMNS];
    // SAFETY: weights are packed for this kernel only where it is supported; the configuration is static. What follows
    // uses no tiles but in `block`, and nothing between here and the release can return.
    unsafe { asm!("ldtilecfg [{config}]", config = in(reg) &raw const CONFIG, options(nostack)) };
    for (rows, out) in x.pairs.chunks(ROWS * x.stride).zip(out.chunks_mut(ROWS * d_out)) {
        let n_rows = out.len() / d_out;
        // SAFETY: rows come in whole blocks of two tiles, of `stride` numbers each, which hold the panel's tiles; a block is
        // written into `out` where it holds all rows and columns of it, else into `aside`, which does.
        unsafe {
            if n_rows == ROWS && columns.len() == COLUMNS {
                block(out.as_mut_ptr().add(columns.start), d_out, rows.as_ptr(), x.stride, panel.as_ptr(), n_tiles);
                continue;
            }
            block(aside.as_mut_ptr(), COLUMNS, rows.as_ptr(), x.stride, panel.as_ptr(), n_tiles);
        }
        for (out, aside) in out.chunks_mut(d_out).zip(aside.chunks(COLUMNS)) {
            out[columns.clone()].copy_from_slice(&aside[..columns.len()]);
        }
    }
    // SAFETY: it gives back what the configuration took.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// 32 rows times 32 columns: outputs in tiles 0 to 3, rows in 4 and 5, the weight in 6 and 7.
///
/// # Safety
/// Tiles are configured. `rows` points at 32 rows of `stride` numbers, `panel` at `n_tiles`, at least one, times two tiles,
/// of which rows have as many numbers as those have pairs; `out` at 32 rows, `d_out` numbers apart, of 32 numbers.
#[inline(always)]
unsafe fn block(out: *mut f32, d_out: usize, rows: *const u32, stride: usize, panel: *const u32, n_tiles: usize) {
    // SAFETY: what is read and written is what the caller promises; all tiles that are used are named.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {row_bytes}*1]",
            "tileloadd tmm6, [{panel} + {tile_row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{panel} + {tile_row}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row_bytes}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {panel}, 2048",
            "dec {n_tiles}",
            "jnz 2b",
            "tilestored [{out_upper} + {out_bytes}*1], tmm0",
            "tilestored [{out_upper} + {out_bytes}*1 + 64], tmm1",
            "tilestored [{out_lower} + {out_bytes}*1], tmm2",
            "tilestored [{out_lower} + {out_bytes}*1 + 64], tmm3",
            upper = inout(reg) rows => _,
            lower = inout(reg) rows.add(SIDE * stride) => _,
            row_bytes = in(reg) 4 * stride,
            panel = inout(reg) panel => _,
            tile_row = in(reg) usize::from(ROW_BYTES),
            n_tiles = inout(reg) n_tiles => _,
            out_upper = in(reg) out,
            out_lower = in(reg) out.add(SIDE * d_out),
            out_bytes = in(reg) 4 * d_out,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
