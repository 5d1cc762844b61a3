// The VJP of a frozen norm, added to the residual gradient, and what the next post-norm makes of the sum.
//
//   out[r, i]      = residual[r, i] + centre(grad[r, i] * gain[i] * scale[pos(r)])
//   post_out[r, i] = out[r, i] * post_gain[i] * post_scale[pos(r)]
//
// One warp a row. Lanes read and write neighbouring elements, so that every access of a warp is one run of 128 bytes
// (of gains too, which stay in L1). Memory-bound: 1 FLOP for some 4 bytes; a row is read once, or with centring twice,
// the second time from L1.
#include "common.cuh"

constexpr u32 NORM_THREADS = 256;

extern "C" __global__ void __launch_bounds__(NORM_THREADS, 8) norm_pullback(
    float* __restrict__ out,               // [n_rows, width]
    float* __restrict__ post_out,          // [n_rows, width], or null
    const float* __restrict__ grad,        // [n_rows, width]
    const float* __restrict__ residual,    // [n_rows, width], or null for zero
    const float* __restrict__ gain,        // [width], or null for no norm: out = residual + grad
    const float* __restrict__ scale,       // [n_pos]
    const float* __restrict__ post_gain,   // [width], or null where post_out is
    const float* __restrict__ post_scale,  // [n_pos]
    const u32* __restrict__ row_pos,       // [n_rows]
    u32 n_rows, u32 width, u32 centred) {
    const u32 row = blockIdx.x * (NORM_THREADS / WARP) + warp_of_thread();
    if (row >= n_rows) return;  // a whole warp leaves
    const u32 pos = row_pos[row];
    const size_t start = static_cast<size_t>(row) * width;
    const float row_scale = gain ? scale[pos] : 1.0f;
    float mean = 0.0f;
    if (gain && centred) {
        double sum = 0.0;
        for (u32 i = lane_of_thread(); i < width; i += WARP) sum += grad[start + i] * gain[i] * row_scale;
        mean = static_cast<float>(warp_sum(sum) / width);
    }
    for (u32 i = lane_of_thread(); i < width; i += WARP) {
        float value = grad[start + i];
        if (gain) value = value * gain[i] * row_scale - mean;
        if (residual) value += residual[start + i];
        out[start + i] = value;
        if (post_out) post_out[start + i] = value * post_gain[i] * post_scale[pos];
    }
}
