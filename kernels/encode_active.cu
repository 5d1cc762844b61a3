// From products to their active features: bias, activation and compaction, without a dense copy of the
// activations.
//
// In: z = x . W_enc^T for some features of every position, before the bias. Out: (position, feature, value) of the
// active ones, sorted by position and feature. Four kernels, since a place in the output is known only when all before
// it are counted:
//   encode_cut     TopK alone: where each position's selection ends
//   encode_count   how many are active in each tile of 1024 features
//   encode_scan    first place of each tile
//   encode_write   writes them there
// Memory-bound: the products are read twice (three to six times with TopK, mostly from L2), lanes reading neighbouring
// features. Counts are integers: the same input gives the same bits.
#include "common.cuh"

constexpr u32 ENCODE_THREADS = 256;
constexpr u32 TILE_FEATURES = 1024;

enum Activation : u32 { RELU = 0, JUMP_RELU = 1, TOP_K = 2 };

// One feature's value and whether it is active.
struct Activity {
    float value;
    bool active;
};

__device__ Activity activity(const float* z, const float* bias, const float* threshold, const u32* cut_keys,
                             const u32* cut_features, u32 pos, u32 feature, u32 n_features, u32 activation) {
    const float value = z[static_cast<size_t>(pos) * n_features + feature] + bias[feature];
    switch (activation) {
        case RELU:
            return {value, value > 0.0f};
        case JUMP_RELU:
            // A negative threshold lets negative values through; exact zeros are inactive all the same.
            return {value, value > threshold[feature] && value != 0.0f};
        default: {
            const Cut<u32> cut = {cut_keys[pos], cut_features[pos]};
            return {value, cut.keeps(ordered_key(value), feature)};
        }
    }
}

// grid [n_pos]
extern "C" __global__ void __launch_bounds__(ENCODE_THREADS, 8) encode_cut(
    u32* __restrict__ cut_keys,      // [n_pos]
    u32* __restrict__ cut_features,  // [n_pos]
    const float* __restrict__ z,     // [n_pos, n_features]
    const float* __restrict__ bias,  // [n_features]
    u32 n_features, u32 k) {
    const float* row = z + static_cast<size_t>(blockIdx.x) * n_features;
    const auto key_of = [=](u32 feature, u32* key) {
        *key = ordered_key(row[feature] + bias[feature]);
        return true;
    };
    const Cut<u32> cut = find_cut<ENCODE_THREADS, u32>(key_of, n_features, k);
    if (threadIdx.x == 0) {
        cut_keys[blockIdx.x] = cut.key;
        cut_features[blockIdx.x] = cut.last;
    }
}

// grid [n_tiles, n_pos]
extern "C" __global__ void __launch_bounds__(ENCODE_THREADS, 8) encode_count(
    u32* __restrict__ counts,              // [n_pos, n_tiles]
    const float* __restrict__ z,           // [n_pos, n_features]
    const float* __restrict__ bias,        // [n_features]
    const float* __restrict__ threshold,   // [n_features], JumpReLU alone
    const u32* __restrict__ cut_keys,      // [n_pos], TopK alone
    const u32* __restrict__ cut_features,  // [n_pos], TopK alone
    u32 n_features, u32 activation) {
    const u32 pos = blockIdx.y;
    u32 count = 0;
    for (u32 i = threadIdx.x; i < TILE_FEATURES; i += ENCODE_THREADS) {
        const u32 feature = blockIdx.x * TILE_FEATURES + i;
        const bool active =
            feature < n_features &&
            activity(z, bias, threshold, cut_keys, cut_features, pos, feature, n_features, activation).active;
        count += block_rank<ENCODE_THREADS>(active).total;
    }
    if (threadIdx.x == 0) counts[pos * gridDim.x + blockIdx.x] = count;
}

// grid [1]. Exclusive sums; starts[n] is the sum of all.
extern "C" __global__ void __launch_bounds__(ENCODE_THREADS, 8) encode_scan(
    u32* __restrict__ starts,        // [n + 1]
    const u32* __restrict__ counts,  // [n]
    u32 n) {
    __shared__ u32 sums[2][ENCODE_THREADS];
    u32 before = 0;
    for (u32 first = 0; first < n; first += ENCODE_THREADS) {
        const u32 i = first + threadIdx.x;
        const u32 count = i < n ? counts[i] : 0;
        u32 from = 0;
        sums[from][threadIdx.x] = count;
        __syncthreads();
        for (u32 offset = 1; offset < ENCODE_THREADS; offset *= 2) {
            const u32 left = threadIdx.x >= offset ? sums[from][threadIdx.x - offset] : 0;
            sums[1 - from][threadIdx.x] = sums[from][threadIdx.x] + left;
            from = 1 - from;
            __syncthreads();
        }
        if (i < n) starts[i] = before + sums[from][threadIdx.x] - count;
        before += sums[from][ENCODE_THREADS - 1];
        __syncthreads();  // the next round writes `sums`
    }
    if (threadIdx.x == 0) starts[n] = before;
}

// grid [n_tiles, n_pos]
extern "C" __global__ void __launch_bounds__(ENCODE_THREADS, 8) encode_write(
    u32* __restrict__ active_pos,          // [n_active]
    u32* __restrict__ active_feature,      // [n_active]
    float* __restrict__ active_value,      // [n_active]
    const u32* __restrict__ starts,        // [n_pos * n_tiles + 1]
    const float* __restrict__ z,           // as in encode_count
    const float* __restrict__ bias,        //
    const float* __restrict__ threshold,   //
    const u32* __restrict__ cut_keys,      //
    const u32* __restrict__ cut_features,  //
    u32 n_features, u32 activation) {
    const u32 pos = blockIdx.y;
    u32 place = starts[pos * gridDim.x + blockIdx.x];
    for (u32 i = threadIdx.x; i < TILE_FEATURES; i += ENCODE_THREADS) {
        const u32 feature = blockIdx.x * TILE_FEATURES + i;
        Activity found = {0.0f, false};
        if (feature < n_features) {
            found = activity(z, bias, threshold, cut_keys, cut_features, pos, feature, n_features, activation);
        }
        const Rank rank = block_rank<ENCODE_THREADS>(found.active);
        if (found.active) {
            active_pos[place + rank.before] = pos;
            active_feature[place + rank.before] = feature;
            active_value[place + rank.before] = found.value;
        }
        place += rank.total;
    }
}
