// The products of training by a BLAS, as a yardstick for `eaglet bench train`, which compiles this and talks to it line by line:
//
//   shape ROWS OUT IN          allocates and fills x [rows, in], w [out, in] and dy [rows, out]; answers "ready"
//   forward | input | weight   y = x wᵀ, dx = dy w or dw += dyᵀ x once; answers milliseconds and the result's first and last element
//
// Matrices are row-major and filled by a formula that the other side knows.
#include <cblas.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

static std::vector<float> filled(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; i++) values[i] = float(uint32_t(uint32_t(i) * 2654435761u + seed) / 4294967296.0 - 0.5);
  return values;
}

int main() {
  std::vector<float> x, w, dy, y, dx, dw;
  int rows = 0, out = 0, in = 0;
  char line[128];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    if (std::sscanf(line, "shape %d %d %d", &rows, &out, &in) == 3) {
      x = filled(int64_t(rows) * in, 1);
      w = filled(int64_t(out) * in, 2);
      dy = filled(int64_t(rows) * out, 3);
      y.assign(int64_t(rows) * out, 0);
      dx.assign(int64_t(rows) * in, 0);
      dw.assign(int64_t(out) * in, 0);
      std::puts("ready");
    } else {
      std::vector<float>* result = &y;
      const auto began = std::chrono::steady_clock::now();
      if (std::strcmp(line, "forward\n") == 0) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, out, in, 1, x.data(), in, w.data(), in, 0, y.data(), out);
      } else if (std::strcmp(line, "input\n") == 0) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, in, out, 1, dy.data(), out, w.data(), in, 0, dx.data(), in);
        result = &dx;
      } else if (std::strcmp(line, "weight\n") == 0) {
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, out, in, rows, 1, dy.data(), out, x.data(), in, 1, dw.data(), in);
        result = &dw;
      } else {
        return 1;
      }
      const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
      std::printf("%.6f %.9g %.9g\n", ms, result->front(), result->back());
    }
    std::fflush(stdout);
  }
}
