// A stand-in for libcuda, cuBLAS and cuRAND that computes on the CPU, so that the whole program built with
// `--features cuda` runs, and its tests with CIRCUITSCOPE_DEVICE=cuda, on a machine without a GPU.
//
// - This program's kernels are their own source, threads taking turns (`cuda_on_cpu.h`); candle's kernels and cuBLAS's
//   product are plain loops, found by name.
// - What a real driver refuses is refused: empty allocations and those beyond 8 GiB in all, empty grids, unknown
//   kernels; and what a test wants refused.
// - Copies to page-locked memory are done as late as the program's own synchronisation allows, freed memory is
//   overwritten: a missing wait shows as wrong values.
//
// It says nothing about speed, nor about PTX.
#include "cuda_on_cpu.h"

#include <stdlib.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "edge_rows.cu"
#include "encode_active.cu"
#include "frozen_attention.cu"
#include "influence.cu"
#include "norm_pullback.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

using Status = int;
constexpr Status OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500;

// One lock around everything: streams are in order, hosts may have threads.
static std::recursive_mutex driver;
#define LOCKED std::lock_guard<std::recursive_mutex> lock(driver)

// --- fibers: the threads of one block -------------------------------------------------------------------------------

constexpr size_t STACK_BYTES = 64 << 10;
static ucontext_t scheduler;
static ucontext_t fibers[on_cpu::MAX_THREADS];
static bool finished[on_cpu::MAX_THREADS];
static unsigned running;
static const std::function<void()>* body;

static void yield_fiber() { swapcontext(&fibers[running], &scheduler); }

static void run_fiber() {
    (*body)();
    finished[running] = true;
    yield_fiber();
}

static void run_block(unsigned n_threads, const std::function<void()>& kernel) {
    static char* stacks = static_cast<char*>(malloc(STACK_BYTES * on_cpu::MAX_THREADS));
    body = &kernel;
    on_cpu::yield = yield_fiber;
    on_cpu::n_arrived = 0;
    memset(static_cast<void*>(on_cpu::exchanges), 0, sizeof on_cpu::exchanges);
    memset(on_cpu::n_exchanges, 0, sizeof on_cpu::n_exchanges);
    for (unsigned t = 0; t < n_threads; ++t) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks + STACK_BYTES * t;
        fibers[t].uc_stack.ss_size = STACK_BYTES;
        fibers[t].uc_link = &scheduler;
        makecontext(&fibers[t], run_fiber, 0);
        finished[t] = false;
    }
    for (unsigned left = n_threads; left > 0;) {
        for (running = 0; running < n_threads; ++running) {
            if (finished[running]) continue;
            threadIdx = {running, 0, 0};
            swapcontext(&scheduler, &fibers[running]);
            left -= finished[running];
        }
    }
}

template <typename... T, size_t... I>
static void call(void (*kernel)(T...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<T*>(args[I])...);
}

template <typename... T>
static std::function<void(void**)> own(void (*kernel)(T...)) {
    return [kernel](void** args) {
        const std::function<void()> thread = [=] { call(kernel, args, std::index_sequence_for<T...>{}); };
        for (unsigned z = 0; z < gridDim.z; ++z) {
            for (unsigned y = 0; y < gridDim.y; ++y) {
                for (unsigned x = 0; x < gridDim.x; ++x) {
                    blockIdx = {x, y, z};
                    run_block(blockDim.x, thread);
                }
            }
        }
    };
}

// --- candle's kernels -----------------------------------------------------------------------------------------------

template <typename T>
static T arg(void** args, int i) {
    return *static_cast<T*>(args[i]);
}

// Dimensions and strides as candle passes them; null where contiguous.
struct Strided {
    size_t n_dims;
    const size_t* dims;
    const size_t* strides;

    size_t at(size_t i) const {
        if (!dims) return i;
        size_t offset = 0;
        for (size_t d = n_dims; d-- > 0; i /= dims[d]) offset += i % dims[d] * strides[d];
        return offset;
    }
};

static Strided strided(void** args, int first) {
    const size_t n = arg<size_t>(args, first);
    const size_t* info = arg<const size_t*>(args, first + 1);
    return {n, info, info ? info + n : nullptr};
}

using F = float (*)(float);
using G = float (*)(float, float);

static std::function<void(void**)> unary(F f) {
    return [f](void** args) {
        const size_t n = arg<size_t>(args, 0);
        const Strided shape = strided(args, 1);
        const float* in = arg<const float*>(args, 3);
        float* out = arg<float*>(args, 4);
        for (size_t i = 0; i < n; ++i) out[i] = f(in[shape.at(i)]);
    };
}

static std::function<void(void**)> binary(G g) {
    return [g](void** args) {
        const size_t n = arg<size_t>(args, 0), n_dims = arg<size_t>(args, 1);
        const size_t* info = arg<const size_t*>(args, 2);
        const Strided left = {n_dims, info, info ? info + n_dims : nullptr};
        const Strided right = {n_dims, info, info ? info + 2 * n_dims : nullptr};
        const float *a = arg<const float*>(args, 3), *b = arg<const float*>(args, 4);
        float* out = arg<float*>(args, 5);
        for (size_t i = 0; i < n; ++i) out[i] = g(a[left.at(i)], b[right.at(i)]);
    };
}

template <typename From, typename To>
static std::function<void(void**)> cast(To (*f)(From)) {
    return [f](void** args) {
        const size_t n = arg<size_t>(args, 0);
        const Strided shape = strided(args, 1);
        const From* in = arg<const From*>(args, 3);
        To* out = arg<To*>(args, 4);
        for (size_t i = 0; i < n; ++i) out[i] = f(in[shape.at(i)]);
    };
}

static void affine(void** args) {
    const size_t n = arg<size_t>(args, 0);
    const Strided shape = strided(args, 1);
    const float *in = arg<const float*>(args, 3), mul = arg<float>(args, 5), add = arg<float>(args, 6);
    float* out = arg<float*>(args, 4);
    for (size_t i = 0; i < n; ++i) out[i] = in[shape.at(i)] * mul + add;
}

// Reduces the last dimensions; `small` is told the outputs instead of the inputs.
static std::function<void(void**)> reduce(float first, G g, bool small) {
    return [=](void** args) {
        const size_t n = arg<size_t>(args, 0), width = arg<size_t>(args, 1);
        const Strided shape = strided(args, 2);
        const float* in = arg<const float*>(args, 4);
        float* out = arg<float*>(args, 5);
        for (size_t i = 0; i < (small ? n : n / width); ++i) {
            float sum = first;
            for (size_t j = 0; j < width; ++j) sum = g(sum, in[shape.at(i * width + j)]);
            out[i] = sum;
        }
    };
}

static void softmax(void** args) {
    const float* in = arg<const float*>(args, 0);
    float* out = arg<float*>(args, 1);
    const int width = arg<int>(args, 2);
    for (unsigned row = 0; row < gridDim.x; ++row, in += width, out += width) {
        float largest = -INFINITY, sum = 0.0f;
        for (int i = 0; i < width; ++i) largest = fmaxf(largest, in[i]);
        for (int i = 0; i < width; ++i) sum += out[i] = expf(in[i] - largest);
        for (int i = 0; i < width; ++i) out[i] /= sum;
    }
}

static void const_set(void** args) {
    const size_t n = arg<size_t>(args, 0);
    const Strided shape = strided(args, 1);
    const float value = arg<float>(args, 3);
    float* out = arg<float*>(args, 4);
    for (size_t i = 0; i < n; ++i) out[shape.at(i)] = value;
}

template <typename T>
static void copy2d(void** args) {
    const T* src = arg<const T*>(args, 0);
    T* dst = arg<T*>(args, 1);
    const u32 d1 = arg<u32>(args, 2), d2 = arg<u32>(args, 3), from = arg<u32>(args, 4), to = arg<u32>(args, 5);
    for (u32 i = 0; i < d1; ++i) memcpy(dst + size_t(i) * to, src + size_t(i) * from, d2 * sizeof(T));
}

static void index_select(void** args) {
    const u32* ids = arg<const u32*>(args, 3);
    const float* in = arg<const float*>(args, 4);
    float* out = arg<float*>(args, 5);
    const size_t left = arg<size_t>(args, 6), src = arg<size_t>(args, 7), n = arg<size_t>(args, 8);
    const size_t right = arg<size_t>(args, 9);
    for (size_t l = 0; l < left; ++l) {
        for (size_t i = 0; i < n; ++i) {
            memcpy(out + (l * n + i) * right, in + (l * src + ids[i]) * right, right * sizeof(float));
        }
    }
}

static void index_add(void** args) {
    const u32* ids = arg<const u32*>(args, 0);
    const size_t n = arg<size_t>(args, 1);
    const float* in = arg<const float*>(args, 2);
    float* out = arg<float*>(args, 3);
    const size_t left = arg<size_t>(args, 4), dst = arg<size_t>(args, 6), right = arg<size_t>(args, 7);
    for (size_t l = 0; l < left; ++l) {
        for (size_t i = 0; i < n; ++i) {
            for (size_t r = 0; r < right; ++r) out[(l * dst + ids[i]) * right + r] += in[(l * n + i) * right + r];
        }
    }
}

static float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(0.797884560802865f * (x + 0.044715f * x * x * x))); }
static float plus(float a, float b) { return a + b; }

struct Function {
    std::string name;
    std::function<void(void**)> run;
};

static std::map<std::string, Function>& functions() {
    static std::map<std::string, Function> all;
    if (!all.empty()) return all;
    const auto add = [](const char* name, std::function<void(void**)> run) { all[name] = {name, std::move(run)}; };
    add("norm_pullback", own(norm_pullback));
    add("edge_rows", own(edge_rows));
    add("frozen_attention_short", own(frozen_attention_short));
    add("frozen_attention_long", own(frozen_attention_long));
    add("encode_cut", own(encode_cut));
    add("encode_count", own(encode_count));
    add("encode_scan", own(encode_scan));
    add("encode_write", own(encode_write));
    add("row_abs_sums", own(row_abs_sums));
    add("influence_sweep", own(influence_sweep));
    add("influence_select", own(influence_select));

    add("ucopy_f32", unary([](float x) { return x; }));
    add("uneg_f32", unary([](float x) { return -x; }));
    add("uabs_f32", unary(fabsf));
    add("usqr_f32", unary([](float x) { return x * x; }));
    add("usqrt_f32", unary(sqrtf));
    add("urecip_f32", unary([](float x) { return 1.0f / x; }));
    add("uexp_f32", unary(expf));
    add("ulog_f32", unary(logf));
    add("utanh_f32", unary(tanhf));
    add("urelu_f32", unary([](float x) { return fmaxf(x, 0.0f); }));
    add("usilu_f32", unary([](float x) { return x / (1.0f + expf(-x)); }));
    add("usigmoid_f32", unary([](float x) { return 1.0f / (1.0f + expf(-x)); }));
    add("ugelu_f32", unary(gelu_tanh));
    add("ugelu_erf_f32", unary([](float x) { return x * 0.5f * (1.0f + erff(x * 0.70710678f)); }));
    add("badd_f32", binary(plus));
    add("bsub_f32", binary([](float a, float b) { return a - b; }));
    add("bmul_f32", binary([](float a, float b) { return a * b; }));
    add("bdiv_f32", binary([](float a, float b) { return a / b; }));
    add("bmaximum_f32", binary([](float a, float b) { return a > b ? a : b; }));
    add("bminimum_f32", binary([](float a, float b) { return a < b ? a : b; }));
    add("affine_f32", affine);
    add("fast_sum_f32", reduce(0.0f, plus, false));
    add("fast_sum_small_f32", reduce(0.0f, plus, true));
    add("fast_max_f32", reduce(-INFINITY, fmaxf, false));
    add("fast_min_f32", reduce(INFINITY, fminf, false));
    add("softmax_f32", softmax);
    add("const_set_f32", const_set);
    add("copy2d_f32", copy2d<float>);
    add("copy2d_u32", copy2d<u32>);
    add("is_u32_f32", index_select);
    add("ia_u32_f32", index_add);
    add("cast_f32_f32", cast<float, float>([](float x) { return x; }));
    return all;
}

// --- the driver -----------------------------------------------------------------------------------------------------

struct Stream {
    // Copies to the host that nobody has waited for.
    std::deque<std::function<void()>> late;

    void catch_up() {
        for (; !late.empty(); late.pop_front()) late.front()();
    }
};

struct Event {
    Stream* stream = nullptr;
};

static Stream default_stream;
static std::map<void*, size_t> device_memory;
static std::set<void*> page_locked;

constexpr size_t MEMORY_BYTES = 8ull << 30;
static size_t allocated_bytes;

// What a test wants refused: CIRCUITSCOPE_ON_CPU_REFUSE=BYTES:STATUS, allocations of that many bytes with that status.
static Status refusal(size_t bytes) {
    static const char* wanted = getenv("CIRCUITSCOPE_ON_CPU_REFUSE");
    char* rest;
    if (!wanted || strtoull(wanted, &rest, 10) != bytes || *rest != ':') return OK;
    return atoi(rest + 1);
}

static Stream& stream_of(void* handle) {
    // Null and the two special handles are one stream here.
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? default_stream : *static_cast<Stream*>(handle);
}

static Status allocate(void** address, size_t bytes) {
    LOCKED;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > MEMORY_BYTES - allocated_bytes) return OUT_OF_MEMORY;
    if (const Status status = refusal(bytes)) return status;
    *address = malloc(bytes);
    memset(*address, 0xff, bytes);
    device_memory[*address] = bytes;
    allocated_bytes += bytes;
    return OK;
}

static Status release(void* address) {
    LOCKED;
    const auto found = device_memory.find(address);
    if (found == device_memory.end()) return INVALID_VALUE;
    memset(address, 0xee, found->second);
    allocated_bytes -= found->second;
    device_memory.erase(found);
    free(address);
    return OK;
}

EXPORT Status cuInit(unsigned) { return OK; }
EXPORT Status cuDriverGetVersion(int* version) { return *version = 13000, OK; }
EXPORT Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : 101; }
EXPORT Status cuDeviceGetCount(int* count) { return *count = 1, OK; }
EXPORT Status cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "a stand-in on the CPU"), OK; }
EXPORT Status cuDeviceGetUuid_v2(void* uuid, int) { return memset(uuid, 1, 16), OK; }
EXPORT Status cuDeviceGetAttribute(int* value, int, int) { return *value = 1, OK; }
EXPORT Status cuDevicePrimaryCtxRetain(void** context, int) { return *context = &default_stream, OK; }
EXPORT Status cuDevicePrimaryCtxRelease_v2(int) { return OK; }
EXPORT Status cuCtxSetCurrent(void*) { return OK; }
EXPORT Status cuCtxGetCurrent(void** context) { return *context = &default_stream, OK; }
EXPORT Status cuCtxSynchronize() { return OK; }
EXPORT Status cuGetErrorName(Status, const char** text) { return *text = "error", OK; }
EXPORT Status cuGetErrorString(Status, const char** text) { return *text = "refused by the stand-in driver", OK; }

EXPORT Status cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, OK; }
EXPORT Status cuStreamDestroy_v2(void* stream) {
    LOCKED;
    stream_of(stream).catch_up();
    return OK;
}
EXPORT Status cuStreamSynchronize(void* stream) {
    LOCKED;
    stream_of(stream).catch_up();
    return OK;
}
EXPORT Status cuStreamIsCapturing(void*, int* status) { return *status = 0, OK; }
EXPORT Status cuEventCreate(void** event, unsigned) { return *event = new Event, OK; }
EXPORT Status cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), OK; }
EXPORT Status cuEventRecord(void* event, void* stream) {
    LOCKED;
    static_cast<Event*>(event)->stream = &stream_of(stream);
    return OK;
}
EXPORT Status cuEventQuery(void*) { return OK; }
EXPORT Status cuEventSynchronize(void* event) {
    LOCKED;
    if (Stream* stream = static_cast<Event*>(event)->stream) stream->catch_up();
    return OK;
}
EXPORT Status cuStreamWaitEvent(void*, void* event, unsigned) { return cuEventSynchronize(event); }

EXPORT Status cuMemAlloc_v2(void** address, size_t bytes) { return allocate(address, bytes); }
EXPORT Status cuMemAllocAsync(void** address, size_t bytes, void*) { return allocate(address, bytes); }
EXPORT Status cuMemFree_v2(void* address) { return release(address); }
EXPORT Status cuMemFreeAsync(void* address, void*) { return release(address); }
EXPORT Status cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    LOCKED;
    if (bytes == 0) return INVALID_VALUE;
    *address = malloc(bytes);
    page_locked.insert(*address);
    return OK;
}
EXPORT Status cuMemFreeHost(void* address) {
    LOCKED;
    page_locked.erase(address);
    return free(address), OK;
}
EXPORT Status cuMemGetInfo_v2(size_t* available, size_t* total) {
    LOCKED;
    return *available = MEMORY_BYTES - allocated_bytes, *total = MEMORY_BYTES, OK;
}
EXPORT Status cuMemsetD8Async(void* address, unsigned char value, size_t n, void*) {
    LOCKED;
    return memset(address, value, n), OK;
}
EXPORT Status cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    LOCKED;
    return memcpy(to, from, n), OK;
}
EXPORT Status cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t n, void*) {
    LOCKED;
    return memcpy(to, from, n), OK;
}
EXPORT Status cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t n, void* stream) {
    LOCKED;
    // Copies to other memory of the host are done when the call returns.
    if (!page_locked.count(to)) return memcpy(to, from, n), OK;
    stream_of(stream).late.push_back([=] { memcpy(to, from, n); });
    return OK;
}

EXPORT Status cuModuleLoadData(void** module, const void*) { return *module = &default_stream, OK; }
EXPORT Status cuModuleUnload(void*) { return OK; }
EXPORT Status cuModuleGetFunction(void** function, void*, const char* name) {
    LOCKED;
    const auto found = functions().find(name);
    if (found == functions().end()) {
        fprintf(stderr, "the stand-in driver has no kernel %s\n", name);
        return NOT_FOUND;
    }
    return *function = &found->second, OK;
}
EXPORT Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                             unsigned, void*, void** args, void**) {
    LOCKED;
    if (!gx || !gy || !gz || !bx || !by || !bz) {
        fprintf(stderr, "an empty grid for %s\n", static_cast<Function*>(function)->name.c_str());
        return INVALID_VALUE;
    }
    gridDim = {gx, gy, gz};
    blockDim = {bx, by, bz};
    static_cast<Function*>(function)->run(args);
    return OK;
}

// --- cuBLAS and cuRAND ----------------------------------------------------------------------------------------------

EXPORT Status cublasCreate_v2(void** handle) { return *handle = &default_stream, OK; }
EXPORT Status cublasDestroy_v2(void*) { return OK; }
EXPORT Status cublasSetStream_v2(void*, void*) { return OK; }
EXPORT Status cublasSetWorkspace_v2(void*, void*, size_t) { return OK; }
EXPORT Status cublasGemmStridedBatchedEx(void*, int trans_a, int trans_b, int m, int n, int k, const float* alpha,
                                         const float* a, int, int lda, long long stride_a, const float* b, int, int ldb,
                                         long long stride_b, const float* beta, float* c, int, int ldc,
                                         long long stride_c, int n_batches, int, int) {
    LOCKED;
    if (m == 0 || n == 0 || n_batches == 0) return OK;
    const long a_row = trans_a ? lda : 1, a_col = trans_a ? 1 : lda, b_row = trans_b ? ldb : 1, b_col = trans_b ? 1 : ldb;
    for (int batch = 0; batch < n_batches; ++batch, a += stride_a, b += stride_b, c += stride_c) {
        for (int j = 0; j < n; ++j) {
            for (int i = 0; i < m; ++i) {
                float sum = 0.0f;
                for (int l = 0; l < k; ++l) sum += a[i * a_row + l * a_col] * b[l * b_row + j * b_col];
                float& out = c[static_cast<long>(j) * ldc + i];
                out = *alpha * sum + (*beta == 0.0f ? 0.0f : *beta * out);
            }
        }
    }
    return OK;
}

EXPORT Status curandCreateGenerator(void** generator, int) { return *generator = &default_stream, OK; }
EXPORT Status curandDestroyGenerator(void*) { return OK; }
EXPORT Status curandSetStream(void*, void*) { return OK; }
EXPORT Status curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return OK; }
