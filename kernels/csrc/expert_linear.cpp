// The C interface that kernels/compiled loads: choice of instruction set, scratch memory and threads.
#include "expert_linear.h"

#include <omp.h>

#include <cstdlib>
#include <vector>

namespace overtone {
namespace {

// Memory that a calling thread keeps between calls: a step makes a hundred of them, all of similar size.
struct Scratch {
  char* data = nullptr;
  int64_t size = 0;
  ~Scratch() { std::free(data); }
  char* reserve(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + kLine - 1) / kLine * kLine;
      data = static_cast<char*>(std::aligned_alloc(kLine, size));
      if (!data) size = 0;
    }
    return data;
  }
};

int64_t rounded(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

int32_t lanes_for(int32_t tokens, int32_t widest) {
  if (tokens == 1) return 0;
  if (tokens <= 4) return 4;
  return tokens <= 8 || widest == 8 ? 8 : 16;
}

std::vector<Columns> cut_into_pieces(const Batch& batch, int32_t widest) {
  std::vector<Columns> pieces;
  for (int32_t group = 0; group < batch.groups; group++) {
    for (int32_t first = batch.start[group]; first < batch.start[group + 1]; first += widest) {
      int32_t left = batch.start[group + 1] - first;
      int32_t tokens = left < widest ? left : widest;
      pieces.push_back({group, first, tokens, lanes_for(tokens, widest), nullptr});
    }
  }
  return pieces;
}

}  // namespace

#if defined(OVERTONE_AVX512BF16)
extern const Kernels avx512bf16;
#endif
#if defined(OVERTONE_AVX512)
extern const Kernels avx512;
#endif
#if defined(OVERTONE_AVX2)
extern const Kernels avx2;
#endif
extern const Kernels generic;

namespace {

// Best first; the numbers are those of library.py.
const Kernels* kernels_of(int isa) {
  switch (isa) {
#if defined(OVERTONE_AVX512BF16)
    case 3:
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") ? &avx512bf16 : nullptr;
#endif
#if defined(OVERTONE_AVX512)
    case 2:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? &avx512
                 : nullptr;
#endif
#if defined(OVERTONE_AVX2)
    case 1:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? &avx2
                 : nullptr;
#endif
    case 0:
      return &generic;
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace overtone

using namespace overtone;

extern "C" {

__attribute__((visibility("default"))) int overtone_supports(int isa) { return kernels_of(isa) != nullptr; }

// y = product + residuals, or y += residuals where `add_to_y`; bank and batch are null for the plain product. Sizes
// and strides are in elements. Returns 0, or 1 where memory ran out.
__attribute__((visibility("default"))) int overtone_expert_linear(
    int isa, int threads, int type, int add_to_y, int64_t tokens, int64_t rows, int64_t columns, const void* x,
    int64_t x_stride, const void* weight, int64_t weight_stride, const void* bias, void* y, const Bank* bank,
    const Batch* batch) {
  static thread_local Scratch scratch;
  Task made{tokens, rows, columns, x, x_stride, weight, weight_stride, bias, y, type, add_to_y,
            0,      nullptr, bank, batch, nullptr, 0};
  Task* task = &made;
  const Kernels& kernels = *kernels_of(isa);
  std::vector<Columns> pieces;
  if (task->batch) pieces = cut_into_pieces(*task->batch, kernels.widest);
  int64_t packed = task->add_to_y ? 0 : rounded(kernels.packed_bytes(task));
  int64_t column_bytes = 0;
  for (const Columns& piece : pieces) column_bytes += rounded(piece.width * task->columns * int64_t(sizeof(float)));
  int64_t own = rounded(kernels.scratch_floats(*task) * int64_t(sizeof(float)));
  char* memory = scratch.reserve(packed + column_bytes + threads * own);
  if (!memory) return 1;
  if (packed) task->packed = memory;
  char* at = memory + packed;
  for (Columns& piece : pieces) {
    piece.data = reinterpret_cast<float*>(at);
    at += rounded(piece.width * task->columns * int64_t(sizeof(float)));
  }
  task->piece = pieces.data();
  task->pieces = static_cast<int32_t>(pieces.size());
  int64_t blocks = (task->rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    if (packed || column_bytes) {
      kernels.prepare(*task, thread, team);
#pragma omp barrier
    }
    kernels.run(*task, blocks * thread / team, blocks * (thread + 1) / team, reinterpret_cast<float*>(at + thread * own));
  }
  return 0;
}
}
