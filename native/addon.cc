// Unpacks N-API arguments and calls the table; the only file that includes node_api.h. Arguments were checked in TypeScript
// (src/kernels/check.ts): here they are read and trusted. Each table is an object of functions that carry the table as data.
#include <node_api.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "threads.h"

using namespace eaglet;

namespace {

constexpr size_t kPage = 4096, kHugePage = size_t(2) << 20;

// Dense memory lies side by side in regions of many large pages: a matrix of its own, smaller than one, would get none.
struct Region {
  uint8_t* data;
  size_t used = 0;
  int blocks = 0;
};
#if defined(__linux__)
constexpr size_t kRegion = size_t(64) << 20;
#else
constexpr size_t kRegion = 0;  // only Linux is asked for large pages
#endif

// Memory behind the ArrayBuffers that allocate() made, so that release() can return it before the collector comes by.
struct Block {
  void* data;
  size_t bytes;
  Region* region;  // null: a mapping of its own
};
std::mutex blocksMutex;
std::unordered_map<void*, Block*> blocks;
Region* openRegion = nullptr;  // where dense memory is taken from next

// Large pages for memory that is used in full: weights are streamed front to back, and large pages spare the address translation.
// None for memory that is filled little by little, as caches are: its first byte would take 2 MiB.
void* mapMemory(size_t bytes, bool dense) {
#if defined(__linux__)
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  if (bytes >= kHugePage) madvise(data, bytes, dense ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return data;
#else
  void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (data) std::memset(data, 0, bytes);
  return data;
#endif
}

void unmapMemory(void* data, size_t bytes) {
#if defined(__linux__)
  munmap(data, bytes);
#else
  std::free(data);
#endif
}

// The next functions are called under blocksMutex.

Block* takeBlock(size_t bytes, bool dense) {
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  if (!dense || whole > kRegion) {
    void* data = mapMemory(bytes, dense);
    return data == nullptr ? nullptr : new Block{data, bytes, nullptr};
  }
  if (openRegion == nullptr || openRegion->used + whole > kRegion) {
    void* data = mapMemory(kRegion, true);
    if (data == nullptr) return nullptr;
    openRegion = new Region{static_cast<uint8_t*>(data)};
  }
  Block* block = new Block{openRegion->data + openRegion->used, whole, openRegion};
  openRegion->used += whole;
  openRegion->blocks++;
  return block;
}

void returnBlock(Block& block) {
  if (block.data == nullptr) return;
  blocks.erase(block.data);
  Region* region = block.region;
  if (region == nullptr) {
    unmapMemory(block.data, block.bytes);
  } else if (--region->blocks == 0) {
    unmapMemory(region->data, kRegion);
    if (openRegion == region) openRegion = nullptr;
    delete region;
  } else {
#if defined(__linux__)
    madvise(block.data, block.bytes, MADV_DONTNEED);
#endif
  }
  block.data = nullptr;
}

void finalizeBlock(napi_env, void*, void* hint) {
  Block* block = static_cast<Block*>(hint);
  std::lock_guard<std::mutex> lock(blocksMutex);
  returnBlock(*block);
  delete block;
}

// The arguments of one call, read one after another.
struct Arguments {
  static constexpr size_t kMost = 12;
  napi_env env;
  napi_value values[kMost];
  size_t next = 0;
  const Kernels* table = nullptr;

  Arguments(napi_env e, napi_callback_info info) : env(e) {
    size_t count = kMost;
    void* data = nullptr;
    napi_get_cb_info(env, info, &count, values, nullptr, &data);
    table = static_cast<const Kernels*>(data);
  }
  int32_t integer() {
    int32_t v = 0;
    napi_get_value_int32(env, values[next++], &v);
    return v;
  }
  double number() {
    double v = 0;
    napi_get_value_double(env, values[next++], &v);
    return v;
  }
  // A typed array's data; null for null.
  template <class T>
  T* data() {
    void* p = nullptr;
    if (napi_get_typedarray_info(env, values[next++], nullptr, nullptr, &p, nullptr, nullptr) != napi_ok) return nullptr;
    return static_cast<T*>(p);
  }
  Matrix matrix() {  // dtype, rows, cols, data
    Matrix m;
    m.dtype = Dtype(integer());
    m.rows = integer();
    m.cols = integer();
    m.data = data<uint8_t>();
    return m;
  }
  KvLayer kv() {  // half, kvHeads, headDim, slots, keys, values
    KvLayer kv;
    kv.half = integer() != 0;
    kv.kvHeads = integer();
    kv.headDim = integer();
    kv.slots = integer();
    kv.keys = data<void>();
    kv.values = data<void>();
    return kv;
  }
};

napi_value jsAllocate(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const size_t bytes = size_t(a.number());
  const bool dense = a.integer() != 0;
  Block* block;
  {
    std::lock_guard<std::mutex> lock(blocksMutex);
    block = takeBlock(bytes == 0 ? 64 : bytes, dense);
    if (block != nullptr) blocks[block->data] = block;
  }
  if (block == nullptr) {
    napi_throw_range_error(env, nullptr, "allocate: the system has no memory of this size");
    return nullptr;
  }
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(env, block->data, bytes, finalizeBlock, block, &buffer) == napi_no_external_buffers_allowed) {
    // A host without external buffers (pointer compression): plain memory does, alignment is then a matter of speed only.
    // After any other failure the host has called the finalizer itself, and its exception is pending.
    finalizeBlock(env, nullptr, block);
    void* plain = nullptr;
    napi_create_arraybuffer(env, bytes, &plain, &buffer);
  }
  return buffer;
}

napi_value jsRelease(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  void* data = nullptr;
  size_t bytes = 0;
  if (napi_get_arraybuffer_info(env, a.values[0], &data, &bytes) != napi_ok) return nullptr;
  napi_detach_arraybuffer(env, a.values[0]);
  std::lock_guard<std::mutex> lock(blocksMutex);
  auto found = blocks.find(data);
  if (found == blocks.end()) return nullptr;
  returnBlock(*found->second);
  return nullptr;
}

napi_value jsSetThreads(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  napi_value result;
  napi_create_int32(env, setThreads(a.integer()), &result);
  return result;
}

napi_value jsPack(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const Matrix m = a.matrix();
  const int32_t firstRow = a.integer();
  const uint8_t* source = a.data<uint8_t>();
  const SourceType type = SourceType(a.integer());
  const int32_t* rowMap = a.data<int32_t>();
  pack(m, firstRow, source, type, rowMap, a.integer());
  return nullptr;
}

napi_value jsGatherRows(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const int32_t stride = a.integer();
  const Matrix m = a.matrix();
  const int32_t* ids = a.data<int32_t>();
  gatherRows(out, stride, m, ids, a.integer());
  return nullptr;
}

napi_value jsMatmul(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const float* x = a.data<float>();
  const Matrix m = a.matrix();
  const int32_t n = a.integer();
  a.table->matmul(out, x, m, n, a.data<float>());
  return nullptr;
}

napi_value jsRmsNorm(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const float* x = a.data<float>();
  const float* weight = a.data<float>();
  const int32_t n = a.integer(), cols = a.integer();
  a.table->rmsNorm(out, x, weight, n, cols, float(a.number()));
  return nullptr;
}

napi_value jsRope(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* x = a.data<float>();
  const int32_t stride = a.integer(), n = a.integer(), heads = a.integer(), headDim = a.integer();
  const int32_t* positions = a.data<int32_t>();
  const float* cos = a.data<float>();
  a.table->rope(x, stride, n, heads, headDim, positions, cos, a.data<float>());
  return nullptr;
}

Layout readLayout(Arguments& a) {  // rows, base, prefix, slots, extrasStart, extras
  Layout l;
  l.rows = a.integer();
  l.base = a.data<int32_t>();
  l.prefix = a.data<int32_t>();
  l.slots = a.data<int32_t>();
  l.extrasStart = a.data<int32_t>();
  l.extras = a.data<int32_t>();
  return l;
}

// A layout is used by every layer of a forward and a cache layer by every forward: both are set once and then named.
struct Current {
  Layout layout{};
  KvLayer kv{};
};
thread_local Current current;

napi_value jsUseLayout(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  current.layout = readLayout(a);
  return nullptr;
}

napi_value jsUseKv(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  current.kv = a.kv();
  return nullptr;
}

napi_value jsStoreKv(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const float* qkv = a.data<float>();
  const int32_t stride = a.integer(), keyOffset = a.integer();
  a.table->storeKv(current.kv, qkv, stride, keyOffset, a.integer(), current.layout);
  return nullptr;
}

napi_value jsAttention(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const float* qkv = a.data<float>();
  const int32_t stride = a.integer(), heads = a.integer();
  KvLayer next = current.kv;
  next.keys = a.data<void>();
  next.values = a.data<void>();
  a.table->attention(out, qkv, stride, heads, current.kv, current.layout, next.keys == nullptr ? nullptr : &next);
  return nullptr;
}

napi_value jsMoveKv(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const int32_t* from = a.data<int32_t>();
  const int32_t* to = a.data<int32_t>();
  moveKv(current.kv, from, to, a.integer());
  return nullptr;
}

napi_value jsSwiglu(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const float* x = a.data<float>();
  const int32_t n = a.integer();
  a.table->swiglu(out, x, n, a.integer());
  return nullptr;
}

napi_value jsSoftmax(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* out = a.data<float>();
  const float* x = a.data<float>();
  const int32_t n = a.integer(), cols = a.integer();
  a.table->softmax(out, x, n, cols, float(a.number()));
  return nullptr;
}

napi_value jsArgmax(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  int32_t* out = a.data<int32_t>();
  const float* x = a.data<float>();
  const int32_t n = a.integer();
  a.table->argmax(out, x, n, a.integer());
  return nullptr;
}

napi_value jsTopK(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  int32_t* ids = a.data<int32_t>();
  float* values = a.data<float>();
  const float* x = a.data<float>();
  const int32_t n = a.integer(), cols = a.integer();
  a.table->topK(ids, values, x, n, cols, a.integer());
  return nullptr;
}

napi_value jsRace(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  int32_t* ids = a.data<int32_t>();
  float* times = a.data<float>();
  const float* rates = a.data<float>();
  const int32_t n = a.integer(), cols = a.integer(), k = a.integer();
  const int32_t* key = a.data<int32_t>();
  a.table->race(ids, times, rates, n, cols, k, key, a.data<int32_t>());
  return nullptr;
}

napi_value jsTranspose(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const Matrix out = a.matrix();
  a.table->transpose(out, a.matrix());
  return nullptr;
}

napi_value jsAccumulateOuter(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const Matrix gradient = a.matrix();
  const float* dy = a.data<float>();
  const float* x = a.data<float>();
  a.table->accumulateOuter(gradient, dy, x, a.integer());
  return nullptr;
}

napi_value jsScatterAddRows(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const Matrix gradient = a.matrix();
  const int32_t* ids = a.data<int32_t>();
  const float* dy = a.data<float>();
  a.table->scatterAddRows(gradient, ids, dy, a.integer());
  return nullptr;
}

napi_value jsRmsNormBackward(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* dx = a.data<float>();
  float* dWeight = a.data<float>();
  const float* dy = a.data<float>();
  const float* x = a.data<float>();
  const float* weight = a.data<float>();
  const int32_t n = a.integer(), cols = a.integer();
  a.table->rmsNormBackward(dx, dWeight, dy, x, weight, n, cols, float(a.number()));
  return nullptr;
}

napi_value jsSwigluBackward(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* dx = a.data<float>();
  const float* dy = a.data<float>();
  const float* x = a.data<float>();
  const int32_t n = a.integer();
  a.table->swigluBackward(dx, dy, x, n, a.integer());
  return nullptr;
}

napi_value jsAttentionBackward(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* dQkv = a.data<float>();
  float* dKeys = a.data<float>();
  float* dValues = a.data<float>();
  const float* dOut = a.data<float>();
  const float* qkv = a.data<float>();
  const int32_t stride = a.integer();
  a.table->attentionBackward(dQkv, dKeys, dValues, dOut, qkv, stride, a.integer(), current.kv, current.layout);
  return nullptr;
}

napi_value jsSoftCrossEntropy(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  float* losses = a.data<float>();
  float* dLogits = a.data<float>();
  const float* logits = a.data<float>();
  const float* teacher = a.data<float>();
  const float* weights = a.data<float>();
  const int32_t n = a.integer();
  a.table->softCrossEntropy(losses, dLogits, logits, teacher, weights, n, a.integer());
  return nullptr;
}

napi_value jsBandwidth(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const int64_t floats = int64_t(a.number()) / 4;
  const int32_t repeats = a.integer();
  float* data = static_cast<float*>(mapMemory(size_t(floats) * 4, true));
  double best = 0;
  if (data != nullptr) {
    for (int64_t i = 0; i < floats; i++) data[i] = 1;
    const int64_t chunk = 1 << 18;  // floats: 1 MiB
    volatile double sink = 0;
    auto body = [&](int c) {
      const int64_t from = c * chunk, count = floats - from < chunk ? floats - from : chunk;
      const double total = a.table->readAll(data + from, count);
      if (total < 0) sink = total;
    };
    for (int32_t i = 0; i < repeats; i++) {
      const auto start = std::chrono::steady_clock::now();
      parallel(int((floats + chunk - 1) / chunk), body);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      const double rate = double(floats) * 4 / seconds / 1e9;
      if (rate > best) best = rate;
    }
    unmapMemory(data, size_t(floats) * 4);
  }
  napi_value result;
  napi_create_double(env, best, &result);
  return result;
}

napi_value jsFmaLimit(napi_env env, napi_callback_info info) {
  Arguments a(env, info);
  const int32_t repeats = a.integer(), rounds = 1 << 17;  // a chunk takes about a quarter of a millisecond
  const int chunks = threadCount() * 8;
  double best = 0;
  for (int32_t i = 0; i < repeats; i++) {
    std::atomic<int64_t> done{0};
    volatile float sink = 0;
    auto body = [&](int) {
      float result = 0.5f;
      done += a.table->multiplyAdds(rounds, &result);
      if (result < 0) sink = result;
    };
    const auto start = std::chrono::steady_clock::now();
    parallel(chunks, body);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double rate = 2 * double(done) / seconds / 1e9;
    if (rate > best) best = rate;
  }
  napi_value result;
  napi_create_double(env, best, &result);
  return result;
}

void define(napi_env env, napi_value object, const char* name, napi_callback callback, const Kernels* table) {
  napi_value function;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, const_cast<Kernels*>(table), &function);
  napi_set_named_property(env, object, name, function);
}

napi_value init(napi_env env, napi_value exports) {
  const Kernels* tables[8];
  const int count = supportedTables(tables, 8);
  napi_value list;
  napi_create_object(env, &list);
  for (int i = 0; i < count; i++) {
    napi_value object;
    napi_create_object(env, &object);
    const struct { const char* name; napi_callback callback; } functions[] = {
        {"allocate", jsAllocate}, {"release", jsRelease}, {"setThreads", jsSetThreads}, {"pack", jsPack}, {"gatherRows", jsGatherRows},
        {"matmul", jsMatmul}, {"rmsNorm", jsRmsNorm}, {"rope", jsRope}, {"useLayout", jsUseLayout}, {"useKv", jsUseKv}, {"storeKv", jsStoreKv},
        {"attention", jsAttention}, {"moveKv", jsMoveKv}, {"swiglu", jsSwiglu}, {"softmax", jsSoftmax}, {"argmax", jsArgmax}, {"topK", jsTopK}, {"race", jsRace},
        {"transpose", jsTranspose}, {"accumulateOuter", jsAccumulateOuter}, {"scatterAddRows", jsScatterAddRows}, {"rmsNormBackward", jsRmsNormBackward},
        {"swigluBackward", jsSwigluBackward}, {"attentionBackward", jsAttentionBackward}, {"softCrossEntropy", jsSoftCrossEntropy},
        {"bandwidth", jsBandwidth}, {"fmaLimit", jsFmaLimit}};
    for (const auto& f : functions) define(env, object, f.name, f.callback, tables[i]);
    napi_set_named_property(env, list, tables[i]->isa, object);  // best first: property order is insertion order
  }
  napi_set_named_property(env, exports, "tables", list);
  return exports;
}

}  // namespace

NAPI_MODULE(NODE_GYP_MODULE_NAME, init)
