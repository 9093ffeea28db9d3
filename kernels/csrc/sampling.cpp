// The C interface of drawing tokens.
#include "scratch.h"

namespace overtone {
namespace {

#include "sampling_memory.h"

}  // namespace
}  // namespace overtone

using namespace overtone;

// Draws a token for each row. Returns 0, 1 if memory cannot be allocated, or 3 if a penalised token is outside the
// vocabulary.
OVERTONE_FUNCTION(sample, SamplingArguments, task) {
  auto* sample = kernels_of(task->isa)->sample;
  int64_t threads = task->rows < task->threads ? task->rows : task->threads;
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(max : failed)
  for (int64_t row = 0; row < task->rows; row++) {
    static thread_local Scratch scratch;
    char* memory = scratch.reserve(SamplingMemory::bytes(task->vocab));
    int64_t token = memory ? sample(*task, row, memory) : 0;
    task->token[row] = token;
    int found = !memory ? 1 : token < 0 ? 3 : 0;
    failed = found > failed ? found : failed;
  }
  return failed;
}
