// Kernels in which every operation is rounded as in plain torch. Like isa.cpp, this file is compiled once for each
// instruction set, but with -ffp-contract=off, so that products and sums are not fused into one rounding.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace overtone {
namespace {

#include "numbers.h"

#include "lanes.h"

#include "sampling_memory.h"

#include "sampling.h"

}  // namespace

namespace sampling {
int64_t OVERTONE_ISA(const SamplingArguments& task, int64_t row, char* memory) {
  return task.type == kFloat32 ? sample_as<float>(task.row[row], task.vocab, memory)
                               : sample_as<uint16_t>(task.row[row], task.vocab, memory);
}
}  // namespace sampling
}  // namespace overtone
