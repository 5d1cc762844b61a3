// Influence of the active features on the targets from the rows computed so far, and which features to compute next.
//
//   share(r)      = influence of the row's node / max(sum over s of |rows[r, s]|, smallest)
//   influence[s] += sum over r of share(r) * |rows[r, s]|
//
// The host calls influence_sweep once for the targets and once a layer from the top down: a row sees only columns of
// lower layers, so the influence that a sweep reads is complete and is not what it writes.
//   row_abs_sums      one thread block a row
//   influence_sweep   32 columns a thread block, 8 threads a column
//   influence_select  one thread block: the most influential features that have no row yet
// Memory-bound: every row is read once for its sum and once for the sweep, warps reading 32 neighbouring columns (128
// bytes). Sums are f64 in a fixed order.
#include "common.cuh"

constexpr u32 INFLUENCE_THREADS = 256;
constexpr u32 SWEEP_LANES = INFLUENCE_THREADS / WARP;

// grid [n_new]: rows before `first` have their sums already
extern "C" __global__ void __launch_bounds__(INFLUENCE_THREADS, 8) row_abs_sums(
    double* __restrict__ sums,       // [n_rows]
    const float* __restrict__ rows,  // [n_rows, row_stride]
    u32 first, u32 row_stride, u32 n_columns) {
    const u32 row_index = first + blockIdx.x;
    const float* row = rows + static_cast<size_t>(row_index) * row_stride;
    double sum = 0.0;
    for (u32 column = threadIdx.x; column < n_columns; column += INFLUENCE_THREADS) sum += fabsf(row[column]);
    sum = block_sum<INFLUENCE_THREADS>(sum);
    if (threadIdx.x == 0) sums[row_index] = sum;
}

// grid [columns / 32]
extern "C" __global__ void __launch_bounds__(INFLUENCE_THREADS, 8) influence_sweep(
    double* influence,                      // [>= n_columns], added to; no `restrict`: `of_node` may be the same array
    const double* of_node,                  // influence of the rows' nodes: of_node[nodes[i]]
    const float* __restrict__ rows,         // [.., row_stride]
    const double* __restrict__ sums,        // [n_rows in all]
    const u32* __restrict__ row_of,         // [>= end], rows to add: those at first..end
    const u32* __restrict__ nodes,          // [>= end]
    u32 first, u32 end, u32 row_stride, u32 n_columns, float smallest) {
    __shared__ double partial[SWEEP_LANES][WARP];
    const u32 column = blockIdx.x * WARP + lane_of_thread();
    double sum = 0.0;
    if (column < n_columns) {
        for (u32 i = first + warp_of_thread(); i < end; i += SWEEP_LANES) {
            const u32 row = row_of[i];
            const double share = of_node[nodes[i]] / fmax(sums[row], static_cast<double>(smallest));
            sum += share * fabsf(rows[static_cast<size_t>(row) * row_stride + column]);
        }
    }
    partial[warp_of_thread()][lane_of_thread()] = sum;
    __syncthreads();
    if (warp_of_thread() == 0 && column < n_columns) {
        double total = influence[column];
        for (u32 lane = 0; lane < SWEEP_LANES; ++lane) total += partial[lane][lane_of_thread()];
        influence[column] = total;
    }
}

// grid [1]. The selected, ascending; fewer than `count` where fewer are open.
extern "C" __global__ void __launch_bounds__(INFLUENCE_THREADS, 8) influence_select(
    u32* __restrict__ selected,            // [count]
    u32* __restrict__ n_selected,          // [1]
    const double* __restrict__ influence,  // [n]
    const u32* __restrict__ visited,       // [n], 0 where a feature is open
    u32 n, u32 count) {
    const auto key_of = [=](u32 feature, u64* key) {
        *key = ordered_key(influence[feature]);
        return visited[feature] == 0;
    };
    const Cut<u64> cut = find_cut<INFLUENCE_THREADS, u64>(key_of, n, count);
    u32 place = 0;
    for (u32 first = 0; first < n; first += INFLUENCE_THREADS) {
        const u32 feature = first + threadIdx.x;
        u64 key = 0;
        const bool keep = feature < n && key_of(feature, &key) && cut.keeps(key, feature);
        const Rank rank = block_rank<INFLUENCE_THREADS>(keep);
        if (keep) selected[place + rank.before] = feature;
        place += rank.total;
    }
    if (threadIdx.x == 0) *n_selected = place;
}
