// The C interface of the element-wise operations. Every function returns 0, or 2 if a place is not in the cache.
#include "kernels.h"

namespace overtone {
namespace {

constexpr int64_t kElementsAThread = 32768;  // the fewest elements for which another thread is used

template <class Arguments>
void share(const Arguments& task, int64_t items, int64_t item_elements,
           void (*function)(const Arguments&, int64_t, int64_t)) {
  int64_t worth = items * item_elements / kElementsAThread, threads = worth < task.threads ? worth : task.threads;
  if (threads <= 1) return function(task, 0, items);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < threads; t++) function(task, items * t / threads, items * (t + 1) / threads);
}

}  // namespace

bool inside(const int64_t* places, int64_t count, int64_t cache_rows) {
  for (int64_t i = 0; i < count; i++)
    if (places[i] < 0 || places[i] >= cache_rows) return false;
  return true;
}

}  // namespace overtone

using namespace overtone;

// out = x / sqrt(mean(x^2) + eps) * (weight + shifts of the token's experts), over the last dimension.
OVERTONE_FUNCTION(norm, NormArguments, task) {
  share(*task, task->tokens, task->heads * task->size, kernels_of(task->isa)->norm);
  return 0;
}

// out = y + shifts of the token's experts.
OVERTONE_FUNCTION(bias, BiasArguments, task) {
  share(*task, task->tokens, task->size, kernels_of(task->isa)->bias);
  return 0;
}

// out = activation(first half of x) * second half.
OVERTONE_FUNCTION(gated, GatedArguments, task) {
  share(*task, task->tokens * task->size, 1, kernels_of(task->isa)->gated);
  return 0;
}

// Rotates queries into `out` and keys into their places in the cache, and copies the values into the cache.
OVERTONE_FUNCTION(rotary, RotaryArguments, task) {
  if (!inside(task->places, task->tokens, task->cache_rows)) return 2;
  share(*task, task->tokens, (task->heads + 2 * task->kv_heads) * task->dim, kernels_of(task->isa)->rotary);
  return 0;
}
