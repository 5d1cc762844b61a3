// What the kernels share: types, reductions over a thread block in a fixed order, ranks, and selection of the largest
// keys.
//
// Thread blocks are one-dimensional and a multiple of 32 threads. No function here returns before every thread of one
// has called it, so all may hold barriers.
#pragma once

#ifdef CIRCUITSCOPE_ON_CPU
#include "cuda_on_cpu.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 WARP = 32;

__device__ inline u32 lane_of_thread() { return threadIdx.x % WARP; }
__device__ inline u32 warp_of_thread() { return threadIdx.x / WARP; }

// Sum over the warp, the same on every lane. Lanes are added in a fixed order.
__device__ inline double warp_sum(double value) {
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
    return value;
}

// Sum over the thread block, the same in every thread. Warps are added in order.
template <u32 THREADS>
__device__ double block_sum(double value) {
    __shared__ double of_warp[THREADS / WARP];
    value = warp_sum(value);
    if (lane_of_thread() == 0) of_warp[warp_of_thread()] = value;
    __syncthreads();
    double sum = 0.0;
    for (u32 warp = 0; warp < THREADS / WARP; ++warp) sum += of_warp[warp];
    __syncthreads();  // the next call writes `of_warp`
    return sum;
}

// How many threads before this one keep something, and how many of the thread block do.
struct Rank {
    u32 before;
    u32 total;
};

template <u32 THREADS>
__device__ Rank block_rank(bool keep) {
    __shared__ u32 of_warp[THREADS / WARP];
    const u32 kept = __ballot_sync(ALL_LANES, keep);
    if (lane_of_thread() == 0) of_warp[warp_of_thread()] = __popc(kept);
    __syncthreads();
    Rank rank = {static_cast<u32>(__popc(kept & ((1u << lane_of_thread()) - 1))), 0};
    for (u32 warp = 0; warp < THREADS / WARP; ++warp) {
        if (warp < warp_of_thread()) rank.before += of_warp[warp];
        rank.total += of_warp[warp];
    }
    __syncthreads();  // the next call writes `of_warp`
    return rank;
}

// Unsigned keys in the order of Rust's `total_cmp`: negative values are flipped, others moved above them.
__device__ inline u32 ordered_key(float value) {
    const u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline u64 ordered_key(double value) {
    const u64 bits = static_cast<u64>(__double_as_longlong(value));
    return bits >> 63 ? ~bits : bits | (1ull << 63);
}

// Where a selection of the largest ends: larger keys belong to it, equal keys up to and including index `last`.
template <typename Key>
struct Cut {
    Key key;
    u32 last;

    __device__ bool keeps(Key other, u32 index) const { return other > key || (other == key && index <= last); }
};

// The cut that keeps the `count` largest of `n` keys; of equal ones those of lower index. `key_of(index, &key)` says
// whether the index takes part. With `count` or fewer taking part, all are kept; with `count` 0 none are.
//
// A radix selection, eight bits a round from the top: the histogram counts integers, so its order does not matter.
template <u32 THREADS, typename Key, typename KeyOf>
__device__ Cut<Key> find_cut(KeyOf key_of, u32 n, u32 count) {
    __shared__ u32 histogram[256];
    __shared__ u32 chosen_digit, still_wanted;
    Key prefix = 0, mask = 0;
    u32 wanted = count;
    bool all = false;
    for (int shift = 8 * (static_cast<int>(sizeof(Key)) - 1); shift >= 0; shift -= 8) {
        for (u32 digit = threadIdx.x; digit < 256; digit += THREADS) histogram[digit] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            Key key;
            if (key_of(i, &key) && (key & mask) == prefix) {
                atomicAdd(&histogram[static_cast<u32>(key >> shift) & 255u], 1u);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            // From the largest digit down, until those passed and this one hold what is wanted.
            u32 above = 0;
            int digit = 255;
            while (digit >= 0 && above + histogram[digit] < wanted) above += histogram[digit--];
            chosen_digit = static_cast<u32>(digit);  // -1 wraps: fewer take part than are wanted
            still_wanted = wanted - above;
        }
        __syncthreads();
        const u32 digit = chosen_digit;
        wanted = still_wanted;
        __syncthreads();  // the next round writes both
        if (digit > 255) {
            all = true;
            break;
        }
        prefix |= static_cast<Key>(digit) << shift;
        mask |= static_cast<Key>(255) << shift;
    }
    if (all) return {0, 0xffffffffu};
    if (count == 0) return {static_cast<Key>(~static_cast<Key>(0)), 0};
    // `wanted` of the keys equal to `prefix` belong to it: the first ones.
    __shared__ u32 last;
    if (threadIdx.x == 0) last = 0;
    __syncthreads();
    u32 seen = 0;
    for (u32 from = 0; from < n && seen < wanted; from += THREADS) {
        const u32 i = from + threadIdx.x;
        Key key;
        const bool equal = i < n && key_of(i, &key) && key == prefix;
        const Rank rank = block_rank<THREADS>(equal);
        if (equal && seen + rank.before + 1 == wanted) last = i;
        seen += rank.total;
    }
    __syncthreads();
    const u32 index = last;
    __syncthreads();  // the next call writes `last`
    return {prefix, index};
}
