// CPU features -> tables. Which one is used is decided once per process, in TypeScript (EAGLET_ISA overrides).
#include "kernels.h"

namespace eaglet {

int supportedTables(const Kernels** out, int capacity) {
  int count = 0;
  auto offer = [&](const Kernels& table) {
    if (count < capacity) out[count++] = &table;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(EAGLET_EMULATED_AVX512)  // npm run test:isa
  const bool avx512 = true;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
  if (avx512) offer(kAvx512Vnni);
  if (avx2) offer(kAvx2);
#endif
  offer(kGeneric);
  return count;
}

}  // namespace eaglet
