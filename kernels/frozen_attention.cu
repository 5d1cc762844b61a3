// The VJP of attention with a frozen pattern, all heads at once, for every target of a batch.
//
//   out[k, kv, :] = sum over q >= k and over the heads h of kv of pattern[h, q, k] * grad_z[q, h, :]
//
// Rows of a target exist at positions up to its own; key k > query q is never read, whatever the pattern holds there. A
// thread block computes one target, one kv head, KEYS keys and 64 dimensions, and goes through queries in order,
// QUERIES at a time, and through the heads that share the keys: their sum is part of the product, so nothing is added
// afterwards and each element is a sum in a fixed order. Pattern and gradient go through shared memory: warps read runs
// of KEYS and of 32 neighbouring words, and a thread uses neighbouring keys and dimensions, four words at a time.
// Thread blocks of one target are neighbours in the grid's z, those of different targets in x, so the pattern, the same
// for all, comes from L2 but once.
//
// Short prompts take the kernel with 8 keys a thread block, so that one is not mostly empty; long ones that with 32,
// which reads the gradient a quarter as often.
#include "common.cuh"

constexpr u32 ATTENTION_THREADS = 128;
constexpr u32 ATTENTION_DIMS = 64;
// Threads along the dimensions and along the keys.
constexpr u32 ATTENTION_ACROSS = 16;
constexpr u32 ATTENTION_DOWN = ATTENTION_THREADS / ATTENTION_ACROSS;

template <u32 KEYS, u32 QUERIES>
__device__ void frozen_attention_tile(float* out, const float* grad_z, const float* pattern, const u32* segment_starts,
                                      const u32* positions, u32 n_pos, u32 n_heads, u32 n_kv_heads, u32 d_head,
                                      u32 own) {
    __shared__ __align__(16) float weights[QUERIES][KEYS];
    __shared__ __align__(16) float grads[QUERIES][ATTENTION_DIMS];
    const u32 target = blockIdx.x, first_key = blockIdx.y * KEYS;
    const u32 n_slices = (d_head + ATTENTION_DIMS - 1) / ATTENTION_DIMS;
    const u32 kv = blockIdx.z / n_slices, first_dim = blockIdx.z % n_slices * ATTENTION_DIMS;
    const u32 last = positions[target];
    if (first_key > last) return;  // a whole thread block leaves
    const u32 group = n_heads / n_kv_heads;

    constexpr u32 PER_KEY = KEYS / ATTENTION_DOWN, PER_DIM = ATTENTION_DIMS / ATTENTION_ACROSS;
    const u32 own_key = threadIdx.x / ATTENTION_ACROSS * PER_KEY, own_dim = threadIdx.x % ATTENTION_ACROSS * PER_DIM;
    float sums[PER_KEY][PER_DIM] = {};
    // With `own`, the gradient is that of the target's own position alone, one row a target.
    for (u32 first = own ? last : first_key; first <= last; first += QUERIES) {
        for (u32 head = kv * group; head < (kv + 1) * group; ++head) {
            for (u32 i = threadIdx.x; i < QUERIES * KEYS; i += ATTENTION_THREADS) {
                const u32 q = first + i / KEYS, k = first_key + i % KEYS;
                const size_t at = (static_cast<size_t>(head) * n_pos + q) * n_pos + k;
                weights[i / KEYS][i % KEYS] = q <= last && k <= q ? pattern[at] : 0.0f;
            }
            for (u32 i = threadIdx.x; i < QUERIES * ATTENTION_DIMS; i += ATTENTION_THREADS) {
                const u32 q = first + i / ATTENTION_DIMS, dim = first_dim + i % ATTENTION_DIMS;
                float value = 0.0f;
                if (q <= last && dim < d_head) {
                    const size_t row = own ? target : segment_starts[q] + target;
                    value = grad_z[(row * n_heads + head) * d_head + dim];
                }
                grads[i / ATTENTION_DIMS][i % ATTENTION_DIMS] = value;
            }
            __syncthreads();
#pragma unroll 8
            for (u32 q = 0; q < QUERIES; ++q) {
                float w[PER_KEY], g[PER_DIM];
#pragma unroll
                for (u32 k = 0; k < PER_KEY; ++k) w[k] = weights[q][own_key + k];
#pragma unroll
                for (u32 d = 0; d < PER_DIM; ++d) g[d] = grads[q][own_dim + d];
#pragma unroll
                for (u32 k = 0; k < PER_KEY; ++k) {
#pragma unroll
                    for (u32 d = 0; d < PER_DIM; ++d) sums[k][d] = fmaf(w[k], g[d], sums[k][d]);
                }
            }
            __syncthreads();  // the next head is written where this one was read
        }
    }
#pragma unroll
    for (u32 k = 0; k < PER_KEY; ++k) {
        const u32 key = first_key + own_key + k;
        if (key > last) continue;
        const size_t row = segment_starts[key] + target;
#pragma unroll
        for (u32 d = 0; d < PER_DIM; ++d) {
            const u32 dim = first_dim + own_dim + d;
            if (dim < d_head) out[(row * n_kv_heads + kv) * d_head + dim] = sums[k][d];
        }
    }
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 8) frozen_attention_short(
    float* __restrict__ out,                 // [n_rows, n_kv_heads * d_head], segment p at segment_starts[p]
    const float* __restrict__ grad_z,        // [n_rows, n_heads * d_head]; with `own` [n_targets, n_heads * d_head]
    const float* __restrict__ pattern,       // [n_heads, n_pos, n_pos], queries before keys
    const u32* __restrict__ segment_starts,  // [n_segments + 1]
    const u32* __restrict__ positions,       // [n_targets], descending
    u32 n_pos, u32 n_heads, u32 n_kv_heads, u32 d_head, u32 own) {
    frozen_attention_tile<8, 8>(out, grad_z, pattern, segment_starts, positions, n_pos, n_heads, n_kv_heads, d_head,
                                own);
}

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 8) frozen_attention_long(
    float* __restrict__ out,                 // as above
    const float* __restrict__ grad_z,        //
    const float* __restrict__ pattern,       //
    const u32* __restrict__ segment_starts,  //
    const u32* __restrict__ positions,       //
    u32 n_pos, u32 n_heads, u32 n_kv_heads, u32 d_head, u32 own) {
    frozen_attention_tile<32, 32>(out, grad_z, pattern, segment_starts, positions, n_pos, n_heads, n_kv_heads, d_head,
                                  own);
}
