// The attention's C interface: how rows, heads and parts of contexts are shared among threads.
#include <omp.h>

#include <vector>

#include "kernels.h"
#include "scratch.h"

namespace overtone {
namespace {

struct Part {
  int64_t item, first, last;
};

// The parts of one row's context, cut at the same places whatever else is computed.
template <class Function> void for_parts(const QueryRow& row, Function function) {
  for (int64_t first = row.first; first < row.last;) {
    int64_t last = (first / kPart + 1) * kPart;
    if (last > row.last) last = row.last;
    function(first, last);
    first = last;
  }
}

// Whether every block that the rows read is in the cache.
bool inside(const AttentionArguments& task) {
  for (int64_t r = 0; r < task.row_count; r++) {
    const QueryRow& row = task.rows[r];
    const int32_t* blocks = task.tables + row.sequence * task.table_stride;
    for (int64_t b = row.first / task.block_size; b * task.block_size < row.last; b++)
      if (blocks[b] < 0 || blocks[b] >= task.blocks) return false;
  }
  return true;
}

}  // namespace
}  // namespace overtone

using namespace overtone;

// Attention of each row over its own part of the cache. The states of a row's parts are joined in their order, on one
// thread or on several, so the result is the same to the last bit. Returns 0, 1 where memory ran out, or 2 where a
// block is not in the cache.
OVERTONE_EXPORT int overtone_paged_attention(const AttentionArguments* arguments) {
  static thread_local Scratch scratch;
  const AttentionArguments& task = *arguments;
  if (!inside(task)) return 2;
  const Kernels& kernels = *kernels_of(task.isa);
  int64_t items = task.row_count * task.kv_heads, threads = task.threads;
  int64_t own = rounded(kernels.attention_scratch(task) * int64_t(sizeof(float)));
  int64_t state = rounded(kernels.state_floats(task) * int64_t(sizeof(float)));
  std::vector<Part> parts;
  if (items < 8 * threads)  // too few to be shared evenly
    for (int64_t item = 0; item < items; item++)
      for_parts(task.rows[item / task.kv_heads],
                [&](int64_t first, int64_t last) { parts.push_back({item, first, last}); });
  int64_t count = static_cast<int64_t>(parts.size());
  if (count == items) count = 0;
  char* memory = scratch.reserve(threads * (own + 2 * state) + count * state);
  if (!memory) return 1;
  char* stored = memory + threads * (own + 2 * state);
  auto state_of = [&](int64_t part) { return reinterpret_cast<float*>(stored + part * state); };
#pragma omp parallel num_threads(threads)
  {
    char* mine = memory + omp_get_thread_num() * (own + 2 * state);
    float* space = reinterpret_cast<float*>(mine);
    float* total = reinterpret_cast<float*>(mine + own);
    float* next = reinterpret_cast<float*>(mine + own + state);
    if (count) {
#pragma omp for schedule(dynamic)
      for (int64_t p = 0; p < count; p++) {
        const Part& part = parts[p];
        kernels.attend(task, task.rows[part.item / task.kv_heads], part.item % task.kv_heads, part.first, part.last,
                       space, state_of(p));
      }
#pragma omp for schedule(dynamic)
      for (int64_t p = 0; p < count; p++) {
        int64_t item = parts[p].item;
        if (p && parts[p - 1].item == item) continue;
        for (int64_t more = p + 1; more < count && parts[more].item == item; more++)
          kernels.join(task, state_of(p), state_of(more));
        kernels.finish(task, task.rows[item / task.kv_heads], item % task.kv_heads, state_of(p));
      }
    } else {
#pragma omp for schedule(dynamic)
      for (int64_t item = 0; item < items; item++) {
        const QueryRow& row = task.rows[item / task.kv_heads];
        for_parts(row, [&](int64_t first, int64_t last) {
          bool begins = first == row.first;
          kernels.attend(task, row, item % task.kv_heads, first, last, space, begins ? total : next);
          if (!begins) kernels.join(task, total, next);
        });
        kernels.finish(task, row, item % task.kv_heads, total);
      }
    }
  }
  return 0;
}
