// The attention's C interface.
#include "attention_work.h"

using namespace overtone;

// Computes the attention of each row over the keys of its sequence. Returns 0, 1 if memory cannot be allocated, or 2 if
// a block is not in the cache.
OVERTONE_FUNCTION(paged_attention, AttentionArguments, task) {
  static thread_local Scratch scratch;
  if (!AttentionWork::inside(*task)) return 2;
  AttentionWork work(*kernels_of(task->isa), *task);
  char* memory = scratch.reserve(work.bytes());
  if (!memory) return 1;
  work.place(memory);
  Meeting meeting;
#pragma omp parallel num_threads(task->threads)
  {
    Team team(meeting);
    work.run(*task, team);
  }
  return 0;
}
