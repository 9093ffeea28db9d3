// The C interface of dequantising weights.
#include "kernels.h"

using namespace overtone;

OVERTONE_FUNCTION(unpack, UnpackArguments, task) {
  int64_t blocks = (task->rows + kRowBlock - 1) / kRowBlock;
#pragma omp parallel for num_threads(task->threads)
  for (int64_t block = 0; block < blocks; block++) kernels_of(task->isa)->unpack(*task, block, block + 1);
  return 0;
}
