// Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions, added to the
// rows of the targets.
//
//   rows[t, column(s)] += scale[s] * <grad of target t at the position of s, vec of s>
//
// A ragged batch of products: position p has the gradients [count(p), width] of the targets at p or later, and the
// vectors [n(p), width] of the sources at p. A block computes 32 targets x 64 sources of one position, a thread 4 x 4 of
// them. Both operands go through shared memory in slices of 32 dimensions: a warp reads 32 neighbouring dimensions of
// one vector (128 bytes, 64 in bf16) and stores them as a column whose stride is odd, so that no two lanes share a bank;
// when they are used, the lanes of a half-warp read neighbouring words or the same one. Lanes write neighbouring
// sources, whose columns are neighbours but for the few that are no features.
//
// Compute-bound from some 16 targets a block on, else bound by reading the vectors once for every 32 targets. No two
// blocks write one element, and each is the sum over the dimensions in order: the same input gives the same bits.
#include "common.cuh"

constexpr u32 EDGE_THREADS = 128;
constexpr u32 EDGE_TARGETS = 32;
constexpr u32 EDGE_SOURCES = 64;
constexpr u32 EDGE_DIMS = 32;
// Threads along the sources and along the targets.
constexpr u32 EDGE_ACROSS = 16;
constexpr u32 EDGE_DOWN = EDGE_THREADS / EDGE_ACROSS;

template <typename Vec>
__device__ void edge_rows_tile(float* rows, const float* grad, const Vec* vecs, const float* scales,
                               const u32* columns, const u32* block_starts, const u32* source_starts, u32 row_stride,
                               u32 width) {
    __shared__ float grads[EDGE_DIMS][EDGE_TARGETS + 1];
    __shared__ float sources[EDGE_DIMS][EDGE_SOURCES + 1];
    const u32 pos = blockIdx.z;
    const u32 first_target = blockIdx.y * EDGE_TARGETS, n_targets = block_starts[pos + 1] - block_starts[pos];
    const u32 first_source = source_starts[pos] + blockIdx.x * EDGE_SOURCES, end_source = source_starts[pos + 1];
    if (first_target >= n_targets || first_source >= end_source) return;  // a whole block leaves
    const size_t grad_row = block_starts[pos] + first_target;

    const u32 across = threadIdx.x % EDGE_ACROSS, down = threadIdx.x / EDGE_ACROSS;
    constexpr u32 PER_TARGET = EDGE_TARGETS / EDGE_DOWN, PER_SOURCE = EDGE_SOURCES / EDGE_ACROSS;
    float sums[PER_TARGET][PER_SOURCE] = {};
    for (u32 first = 0; first < width; first += EDGE_DIMS) {
        for (u32 i = threadIdx.x; i < EDGE_TARGETS * EDGE_DIMS; i += EDGE_THREADS) {
            const u32 t = i / EDGE_DIMS, dim = i % EDGE_DIMS;
            const bool inside = first_target + t < n_targets && first + dim < width;
            grads[dim][t] = inside ? grad[(grad_row + t) * width + first + dim] : 0.0f;
        }
        for (u32 i = threadIdx.x; i < EDGE_SOURCES * EDGE_DIMS; i += EDGE_THREADS) {
            const u32 s = i / EDGE_DIMS, dim = i % EDGE_DIMS;
            const bool inside = first_source + s < end_source && first + dim < width;
            sources[dim][s] = inside ? as_f32(vecs[static_cast<size_t>(first_source + s) * width + first + dim]) : 0.0f;
        }
        __syncthreads();
        for (u32 dim = 0; dim < EDGE_DIMS; ++dim) {
            float g[PER_TARGET], v[PER_SOURCE];
#pragma unroll
            for (u32 t = 0; t < PER_TARGET; ++t) g[t] = grads[dim][down + t * EDGE_DOWN];
#pragma unroll
            for (u32 s = 0; s < PER_SOURCE; ++s) v[s] = sources[dim][across + s * EDGE_ACROSS];
#pragma unroll
            for (u32 t = 0; t < PER_TARGET; ++t) {
#pragma unroll
                for (u32 s = 0; s < PER_SOURCE; ++s) sums[t][s] = fmaf(g[t], v[s], sums[t][s]);
            }
        }
        __syncthreads();  // the next slice is written where this one was read
    }
#pragma unroll
    for (u32 t = 0; t < PER_TARGET; ++t) {
        const u32 target = first_target + down + t * EDGE_DOWN;
        if (target >= n_targets) continue;
#pragma unroll
        for (u32 s = 0; s < PER_SOURCE; ++s) {
            const u32 source = first_source + across + s * EDGE_ACROSS;
            if (source >= end_source) continue;
            const u32 column = columns ? columns[source] : source;
            rows[static_cast<size_t>(target) * row_stride + column] += scales ? scales[source] * sums[t][s] : sums[t][s];
        }
    }
}

extern "C" __global__ void __launch_bounds__(EDGE_THREADS, 8) edge_rows_f32(
    float* __restrict__ rows,               // [n_targets, row_stride]
    const float* __restrict__ grad,         // [n_rows, width], block p at block_starts[p]
    const float* __restrict__ vecs,         // [n_sources, width], those of position p at source_starts[p]
    const float* __restrict__ scales,       // [n_sources], or null for 1
    const u32* __restrict__ columns,        // [n_sources], all different, or null for 0, 1, 2, ..
    const u32* __restrict__ block_starts,   // [n_blocks + 1]
    const u32* __restrict__ source_starts,  // [n_blocks + 1] at least
    u32 row_stride, u32 width) {
    edge_rows_tile(rows, grad, vecs, scales, columns, block_starts, source_starts, row_stride, width);
}

extern "C" __global__ void __launch_bounds__(EDGE_THREADS, 8) edge_rows_bf16(
    float* __restrict__ rows,               // as above
    const float* __restrict__ grad,         //
    const bf16_bits* __restrict__ vecs,     // [n_sources, width]
    const float* __restrict__ scales,       //
    const u32* __restrict__ columns,        //
    const u32* __restrict__ block_starts,   //
    const u32* __restrict__ source_starts,  //
    u32 row_stride, u32 width) {
    edge_rows_tile(rows, grad, vecs, scales, columns, block_starts, source_starts, row_stride, width);
}
