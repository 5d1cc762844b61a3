// Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions, added to the rows
// of the targets.
//
//   rows[t, column(s)] += <grad of target t at the position of s, vec of s>
//
// A ragged batch of products: position p has the gradients [count(p), width] of the targets at p or later, and the
// vectors [n(p), width] of the sources at p. A thread block computes 64 targets x 32 sources of one position, a thread
// 4 x 4 of them: there are more targets than sources at a position.
//
// Both operands go through shared memory in slices of 32 dimensions, turned so that a dimension's targets are
// neighbours. A warp reads 4 vectors x 32 neighbouring dimensions, each a run of 128 bytes, 4 dimensions a lane. Stored
// plainly, its lanes would meet in a few banks; so the targets of dimensions 4i .. 4i+3 are stored with their number
// xor 4i, which spreads a warp's stores over all 32 banks and leaves groups of 4 together: reading 4 targets and 4
// sources of a dimension takes 2 passes of 128 bytes for the 16 multiply-adds of each lane, fewer than these take
// themselves. Lanes write neighbouring sources, whose columns are neighbours but for the few that are no features.
//
// Bound by reading the gradient where a position has fewer than 32 sources, else by multiply-adds; vectors are read
// once for every 64 targets, from L2 but for the first. No two thread blocks write one element, and each is the sum
// over the dimensions in order: the same input gives the same bits.
#include "common.cuh"

constexpr u32 EDGE_THREADS = 128;
constexpr u32 EDGE_TARGETS = 64;
constexpr u32 EDGE_SOURCES = 32;
constexpr u32 EDGE_DIMS = 32;
// Dimensions that a lane loads, and targets and sources that it computes.
constexpr u32 EDGE_GROUP = 4;
// Threads along the sources.
constexpr u32 EDGE_ACROSS = EDGE_SOURCES / EDGE_GROUP;
static_assert(EDGE_ACROSS * (EDGE_TARGETS / EDGE_GROUP) == EDGE_THREADS, "a thread computes 4 x 4");

// Loads dimensions first_dim .. first_dim + 31 of the vectors first_row .. end_row - 1 into `slice`, zero after the
// last vector and dimension.
template <u32 ROWS>
__device__ void load_slice(float (*slice)[ROWS], const float* vecs, size_t first_row, size_t end_row, u32 first_dim,
                           u32 width) {
    constexpr u32 GROUPS = EDGE_DIMS / EDGE_GROUP;
    for (u32 i = threadIdx.x; i < ROWS * GROUPS; i += EDGE_THREADS) {
        const u32 row = i / GROUPS, group = i % GROUPS * EDGE_GROUP;
        const float* vec = vecs + (first_row + row) * width + first_dim + group;
#pragma unroll
        for (u32 d = 0; d < EDGE_GROUP; ++d) {
            const bool inside = first_row + row < end_row && first_dim + group + d < width;
            slice[group + d][row ^ group] = inside ? vec[d] : 0.0f;
        }
    }
}

extern "C" __global__ void __launch_bounds__(EDGE_THREADS, 8) edge_rows(
    float* __restrict__ rows,                // [n_targets, row_stride]
    const float* __restrict__ grad,          // [n_rows, width], segment p at segment_starts[p]
    const float* __restrict__ vecs,          // [n_sources, width], those of position p at source_starts[p]
    const u32* __restrict__ columns,         // [n_sources], all different, or null for 0, 1, 2, ..
    const u32* __restrict__ segment_starts,  // [n_segments + 1]
    const u32* __restrict__ source_starts,   // [n_segments + 1] at least
    u32 row_stride, u32 width) {
    __shared__ __align__(16) float grads[EDGE_DIMS][EDGE_TARGETS];
    __shared__ __align__(16) float sources[EDGE_DIMS][EDGE_SOURCES];
    const u32 pos = blockIdx.z;
    const u32 first_target = blockIdx.y * EDGE_TARGETS, n_targets = segment_starts[pos + 1] - segment_starts[pos];
    const u32 first_source = source_starts[pos] + blockIdx.x * EDGE_SOURCES, end_source = source_starts[pos + 1];
    if (first_target >= n_targets || first_source >= end_source) return;  // a whole thread block leaves

    const u32 own_target = threadIdx.x / EDGE_ACROSS * EDGE_GROUP, own_source = threadIdx.x % EDGE_ACROSS * EDGE_GROUP;
    float sums[EDGE_GROUP][EDGE_GROUP] = {};
    for (u32 first_dim = 0; first_dim < width; first_dim += EDGE_DIMS) {
        const size_t first_row = segment_starts[pos] + first_target;
        load_slice<EDGE_TARGETS>(grads, grad, first_row, segment_starts[pos + 1], first_dim, width);
        load_slice<EDGE_SOURCES>(sources, vecs, first_source, end_source, first_dim, width);
        __syncthreads();
#pragma unroll 8
        for (u32 dim = 0; dim < EDGE_DIMS; ++dim) {
            const u32 group = dim / EDGE_GROUP * EDGE_GROUP;
            float g[EDGE_GROUP], v[EDGE_GROUP];
#pragma unroll
            for (u32 t = 0; t < EDGE_GROUP; ++t) g[t] = grads[dim][(own_target ^ group) + t];
#pragma unroll
            for (u32 s = 0; s < EDGE_GROUP; ++s) v[s] = sources[dim][(own_source ^ group) + s];
#pragma unroll
            for (u32 t = 0; t < EDGE_GROUP; ++t) {
#pragma unroll
                for (u32 s = 0; s < EDGE_GROUP; ++s) sums[t][s] = fmaf(g[t], v[s], sums[t][s]);
            }
        }
        __syncthreads();  // the next slice is written where this one was read
    }
#pragma unroll
    for (u32 t = 0; t < EDGE_GROUP; ++t) {
        const u32 target = first_target + own_target + t;
        if (target >= n_targets) continue;
#pragma unroll
        for (u32 s = 0; s < EDGE_GROUP; ++s) {
            const u32 source = first_source + own_source + s;
            if (source >= end_source) continue;
            const u32 column = columns ? columns[source] : source;
            rows[static_cast<size_t>(target) * row_stride + column] += sums[t][s];
        }
    }
}
