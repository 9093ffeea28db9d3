// The linear layer's C interface: scratch memory and threads.
#include <omp.h>

#include <vector>

#include "kernels.h"
#include "scratch.h"

namespace overtone {
namespace {

int32_t lanes_for(int32_t tokens, int32_t widest) {
  if (tokens == 1) return 0;
  if (tokens <= 4) return 4;
  if (tokens <= 8 || widest == 8) return 8;
  return tokens <= 16 || widest == 16 ? 16 : 32;
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

int64_t bytes_of(const Columns& piece, int64_t columns) {
  return rounded((piece.width == 32 ? 16 : piece.width) * columns * int64_t(sizeof(float)));
}

}  // namespace
}  // namespace overtone

using namespace overtone;

// y = product + residuals, or y += residuals where `add_to_y`. Returns 0, or 1 where memory ran out.
OVERTONE_EXPORT int overtone_expert_linear(const LinearArguments* arguments) {
  static thread_local Scratch scratch;
  Task made{*arguments, 0, nullptr, nullptr, 0};
  Task* task = &made;
  const Kernels& kernels = *kernels_of(task->isa);
  std::vector<Columns> pieces;
  if (task->batch) pieces = cut_into_pieces(*task->batch, kernels.widest(*task));
  int64_t packed = task->add_to_y ? 0 : rounded(kernels.packed_bytes(task));
  int64_t column_bytes = 0;
  for (const Columns& piece : pieces) column_bytes += bytes_of(piece, task->columns);
  int64_t own = rounded(kernels.scratch_floats(*task) * int64_t(sizeof(float)));
  char* memory = scratch.reserve(packed + column_bytes + task->threads * own);
  if (!memory) return 1;
  if (packed) task->packed = memory;
  char* at = memory + packed;
  for (Columns& piece : pieces) {
    piece.data = reinterpret_cast<float*>(at);
    at += bytes_of(piece, task->columns);
  }
  task->piece = pieces.data();
  task->pieces = static_cast<int32_t>(pieces.size());
  int64_t blocks = (task->rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel num_threads(task->threads)
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
