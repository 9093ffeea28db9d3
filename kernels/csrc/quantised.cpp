// The C interface of rounding weights to few bits and of dequantising them.
#include "kernels.h"

using namespace overtone;

OVERTONE_FUNCTION(unpack, UnpackArguments, task) {
  int64_t blocks = (task->rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel for num_threads(task->threads)
  for (int64_t block = 0; block < blocks; block++) kernels_of(task->isa)->unpack(*task, block, block + 1);
  return 0;
}

OVERTONE_FUNCTION(quantise, QuantiseArguments, task) {
#pragma omp parallel for num_threads(task->threads) schedule(static)
  for (int64_t row = 0; row < task->rows; row++) kernels_of(task->isa)->quantise(*task, row, row + 1);
  return 0;
}
