#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
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

// About 0.1 ms at ~40 cycles a pause: longer than the TypeScript between two kernels of one round, short enough that an
// idle process lets go of its cores at once.
constexpr int kSpins = 8000;

constexpr int kMostChunks = 0xffff;  // of one job: what fits in its part of the ticket

struct Pool {
  std::mutex caller;  // one job at a time, also when several JavaScript threads load the add-on
  std::vector<std::thread> workers;
  int threads = 1;

  // Job number (32 bits), chunks of the job (16), next chunk (16): one word, so that whoever claims a chunk by compare-exchange has
  // seen the number of chunks that belongs to it. A worker that wakes up late can never take part in a job it has not seen, and
  // nobody waits for a worker that is asleep.
  std::atomic<uint64_t> ticket{0};
  std::atomic<int> done{0};
  void (*body)(void*, int) = nullptr;
  void* context = nullptr;

  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};

  // Runs chunks of the job that `seen` belongs to until none is left.
  void work(uint64_t job) {
    uint64_t now = ticket.load(std::memory_order_acquire);
    while (now >> 32 == job && (now & kMostChunks) < (now >> 16 & kMostChunks)) {
      if (ticket.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        body(context, int(now & kMostChunks));
        done.fetch_add(1, std::memory_order_release);
        now = ticket.load(std::memory_order_acquire);
      }
    }
  }

  void run() {
    uint64_t last = ticket.load(std::memory_order_acquire) >> 32;
    for (;;) {
      int spins = 0;
      while (ticket.load(std::memory_order_acquire) >> 32 == last && !stop.load(std::memory_order_relaxed)) {
        if (++spins < kSpins) {
          relax();
          continue;
        }
        std::unique_lock<std::mutex> lock(sleep);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return ticket.load() >> 32 != last || stop.load(); });
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      last = ticket.load(std::memory_order_acquire) >> 32;
      work(last);
    }
  }

  void end() {
    {
      std::lock_guard<std::mutex> lock(sleep);
      stop = true;
    }
    wake.notify_all();
    for (auto& worker : workers) worker.join();
    workers.clear();
    stop = false;
  }
};

// Never destroyed: workers may outlive static destruction when the process exits.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
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

void setThreads(int threads) {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.caller);
  if (threads == p.threads) return;
  p.end();
  p.threads = threads;
  for (int i = 1; i < threads; i++) p.workers.emplace_back([&p] { p.run(); });
}

int threadCount() { return pool().threads; }

void parallelFor(int chunks, void (*body)(void*, int), void* context) {
  Pool& p = pool();
  if (chunks <= 1 || p.threads == 1 || chunks > kMostChunks) {  // no kernel hands out so many: right, if slow
    for (int i = 0; i < chunks; i++) body(context, i);
    return;
  }
  std::lock_guard<std::mutex> lock(p.caller);
  const uint64_t job = ((p.ticket.load(std::memory_order_relaxed) >> 32) + 1) & 0xffffffffu;
  p.body = body;
  p.context = context;
  p.done.store(0, std::memory_order_relaxed);
  p.ticket.store(job << 32 | uint64_t(chunks) << 16);
  if (p.sleepers.load() > 0) {
    std::lock_guard<std::mutex> wakeLock(p.sleep);
    p.wake.notify_all();
  }
  p.work(job);
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
