// A persistent pool, one per process. Work is handed out in chunks; which thread computes a chunk never changes its result.
#pragma once

#include <cstddef>
#include <cstdint>

namespace eaglet {

// Threads that work, the caller included. Ends and restarts workers when the number changes; returns how many the system let start.
int setThreads(int threads);
int threadCount();

// Calls body(context, chunk) for chunk = 0..chunks-1 on the pool and the caller; returns when all are done.
void parallelFor(int chunks, void (*body)(void* context, int chunk), void* context);

// Scratch memory of the calling thread, 64-byte aligned, kept and grown: slots 0 and 2 for the caller of a kernel, slot 1 inside chunks.
void* scratch(int slot, size_t bytes);

template <class F>
inline void parallel(int chunks, F& body) {
  parallelFor(chunks, [](void* context, int chunk) { (*static_cast<F*>(context))(chunk); }, &body);
}

}  // namespace eaglet
