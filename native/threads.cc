#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eaglet {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 0.1 ms at the 40 cycles that a pause takes on AMD's machines, 0.4 ms at the 140 of Intel's: longer than the TypeScript between two
// kernels of one round, short enough that an idle process lets go of its cores at once.
constexpr int kSpins = 8000;

constexpr int kMostChunks = 0xffff;  // of one job: what fits in its part of a share's word

// The chunks of a job that a thread begins with, in one word: job number (32 bits), end (16), next (16). Their owner takes them from the
// front, so that it reads memory front to back as if alone; whoever has none left takes from the back of another's. Who claims a chunk by
// compare-exchange has seen the job it belongs to: a worker that wakes up late can never take part in a job it has not seen, and nobody
// waits for a worker that is asleep.
struct alignas(64) Share {
  std::atomic<uint64_t> word{0};

  static uint64_t pack(uint64_t job, int first, int end) { return job << 32 | uint64_t(end) << 16 | uint64_t(first); }

  // A chunk of `job`, or -1.
  int claim(uint64_t job, bool owner) {
    uint64_t now = word.load(std::memory_order_acquire);
    for (;;) {
      const int next = int(now & kMostChunks), end = int(now >> 16 & kMostChunks);
      if (now >> 32 != job || next >= end) return -1;
      const uint64_t left = owner ? pack(job, next + 1, end) : pack(job, next, end - 1);
      if (word.compare_exchange_weak(now, left, std::memory_order_acq_rel, std::memory_order_acquire)) return owner ? next : end - 1;
    }
  }
};

struct Pool {
  std::mutex caller;  // one job at a time, also when several JavaScript threads load the add-on
  std::vector<pthread_t> workers;  // a std::thread would throw where the system refuses it, and nothing here is compiled to catch
  int threads = 1;

  uint64_t job = 0;
  std::unique_ptr<Share[]> shares{new Share[1]};  // one per thread, the caller's first
  std::atomic<int> done{0};
  void (*body)(void*, int) = nullptr;
  void* context = nullptr;

  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};

  // Runs chunks of a job until none is left, its own first. `body` is valid as long as a chunk is claimed and not done.
  void work(uint64_t which, int thread) {
    int count = 0;
    for (int i = 0; i < threads; i++) {
      Share& share = shares[(thread + i) % threads];
      for (int chunk; (chunk = share.claim(which, i == 0)) >= 0; count++) body(context, chunk);
    }
    done.fetch_add(count, std::memory_order_release);
  }

  void run(int thread) {
    const Share& own = shares[thread];
    auto current = [&] { return own.word.load(std::memory_order_acquire) >> 32; };
    uint64_t last = current();
    for (;;) {
      int spins = 0;
      while (current() == last && !stop.load(std::memory_order_relaxed)) {
        if (++spins < kSpins) {
          relax();
          continue;
        }
        std::unique_lock<std::mutex> lock(sleep);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return own.word.load() >> 32 != last || stop.load(); });
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      last = current();
      work(last, thread);
    }
  }

  void end() {
    {
      std::lock_guard<std::mutex> lock(sleep);
      stop = true;
    }
    wake.notify_all();
    for (pthread_t worker : workers) pthread_join(worker, nullptr);
    workers.clear();
    stop = false;
  }
};

// Never destroyed: workers may outlive static destruction when the process exits.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

// By its share a worker knows which it is.
void* startWorker(void* share) {
  Pool& p = pool();
  p.run(int(static_cast<Share*>(share) - p.shares.get()));
  return nullptr;
}

struct Scratch {
  void* data[3] = {nullptr, nullptr, nullptr};
  size_t size[3] = {0, 0, 0};
  ~Scratch() {
    for (void* block : data) std::free(block);
  }
};
thread_local Scratch threadScratch;

}  // namespace

int setThreads(int threads) {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.caller);
  if (threads == p.threads) return threads;
  p.end();
  p.shares.reset(new Share[threads]);
  p.workers.reserve(threads);  // where threads are refused, memory may be too
  pthread_t worker;
  for (p.threads = 1; p.threads < threads; p.threads++) {
    if (pthread_create(&worker, nullptr, startWorker, &p.shares[p.threads]) != 0) break;
    p.workers.push_back(worker);
  }
  return p.threads;
}

int threadCount() { return pool().threads; }

void parallelFor(int chunks, void (*body)(void*, int), void* context) {
  Pool& p = pool();
  if (chunks <= 1 || p.threads == 1 || chunks > kMostChunks) {  // no kernel hands out so many: right, if slow
    for (int i = 0; i < chunks; i++) body(context, i);
    return;
  }
  std::lock_guard<std::mutex> lock(p.caller);
  p.job = (p.job + 1) & 0xffffffffu;
  p.body = body;
  p.context = context;
  p.done.store(0, std::memory_order_relaxed);
  for (int i = 0; i < p.threads; i++)
    p.shares[i].word.store(Share::pack(p.job, int(int64_t(chunks) * i / p.threads), int(int64_t(chunks) * (i + 1) / p.threads)));
  if (p.sleepers.load() > 0) {
    std::lock_guard<std::mutex> wakeLock(p.sleep);
    p.wake.notify_all();
  }
  p.work(p.job, 0);
  while (p.done.load(std::memory_order_acquire) != chunks) relax();
}

void* scratch(int slot, size_t bytes) {
  Scratch& s = threadScratch;
  if (s.size[slot] < bytes) {
    std::free(s.data[slot]);
    s.size[slot] = (bytes + bytes / 2 + 4095) / 4096 * 4096;
    s.data[slot] = std::aligned_alloc(64, s.size[slot]);
    if (s.data[slot] == nullptr) std::abort();
  }
  return s.data[slot];
}

}  // namespace eaglet
