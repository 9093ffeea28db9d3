// The linear layer's C interface.
#include "linear_work.h"
#include "scratch.h"

using namespace overtone;

// y = product + residuals, or y += residuals if `add_to_y` is set. Returns 0, or 1 if memory cannot be allocated.
OVERTONE_FUNCTION(expert_linear, LinearArguments, layer) {
  static thread_local Scratch scratch;
  LinearWork work(*kernels_of(layer->isa), layer->batch, layer->type, layer->threads);
  work.fit(*layer);
  char* memory = scratch.reserve(work.bytes());
  if (!memory) return 1;
  work.place(memory);
  Meeting meeting;
#pragma omp parallel num_threads(layer->threads)
  {
    Team team(meeting);
    work.run(*layer, team);
  }
  return 0;
}
