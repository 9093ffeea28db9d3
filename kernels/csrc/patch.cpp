// Patching: add a residual's entries to a weight in place, and restore the weight. All processors use the same code.
#include <omp.h>

#include "kernels.h"

namespace overtone {
namespace {

#include "numbers.h"

// Returns the number of entries of a row that are not padding, or -1 if one is outside the weight or the columns do not
// ascend.
template <class Index, class Value> int64_t count_row(const Index* index, const Value* value, const PatchArguments& task) {
  int64_t count = 0, before = -1;
  for (int64_t j = 0; j < task.entries; j++) {
    int64_t column = index[j];
    if (column < 0 || column >= task.columns) return -1;
    if (widen(value[j]) == 0.0f) continue;
    if (column <= before) return -1;
    before = column;
    count++;
  }
  return count;
}

template <class Weight, class Position, class Index, class Value>
void patch_row(const PatchArguments& task, int64_t row) {
  const Index* index = (const Index*)task.index + row * task.entries;
  const Value* value = (const Value*)task.value + row * task.entries;
  Weight* weight = (Weight*)task.weight;
  int64_t at = task.starts[row];
  // Prefetch the places of the next row. Each is in another cache line.
  if (row + 1 < task.rows)
    for (int64_t j = 0; j < task.entries; j++) __builtin_prefetch(weight + (row + 1) * task.columns + index[task.entries + j], 1);
  for (int64_t j = 0; j < task.entries; j++) {
    float added = widen(value[j]);
    if (added == 0.0f) continue;
    int64_t place = row * task.columns + index[j];
    ((Position*)task.position)[at] = Position(place);
    ((Weight*)task.original)[at++] = weight[place];
    store_value(weight + place, widen(weight[place]) + added);
  }
}

template <class Weight, class Position, class Index, class Value> int patch_with(const PatchArguments& task) {
  bool plain = true;
  task.starts[0] = 0;
#pragma omp parallel num_threads(task.threads)
  {
#pragma omp for schedule(static) reduction(&& : plain)
    for (int64_t row = 0; row < task.rows; row++) {
      int64_t first = row * task.entries;
      int64_t count = count_row((const Index*)task.index + first, (const Value*)task.value + first, task);
      plain = plain && count >= 0;
      task.starts[row + 1] = count;
    }
#pragma omp single
    if (plain)
      for (int64_t row = 0; row < task.rows; row++) task.starts[row + 1] += task.starts[row];
    if (plain) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < task.rows; row++) patch_row<Weight, Position, Index, Value>(task, row);
    }
  }
  return plain ? 0 : 3;
}

template <class Weight, class Position, class Index> int patch_from(const PatchArguments& task) {
  if (task.value_type == kFloat32) return patch_with<Weight, Position, Index, float>(task);
  return patch_with<Weight, Position, Index, uint16_t>(task);
}

template <class Weight, class Position> int patch_at(const PatchArguments& task) {
  if (task.index_bytes == 2) return patch_from<Weight, Position, uint16_t>(task);
  if (task.index_bytes == 4) return patch_from<Weight, Position, int32_t>(task);
  return patch_from<Weight, Position, int64_t>(task);
}

template <class Weight> int patch_as(const PatchArguments& task) {
  return task.position_bytes == 4 ? patch_at<Weight, int32_t>(task) : patch_at<Weight, int64_t>(task);
}

template <class Weight, class Position> void unpatch_as(const UnpatchArguments& task) {
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t i = 0; i < task.count; i++)
    ((Weight*)task.weight)[((const Position*)task.position)[i]] = ((const Weight*)task.original)[i];
}

}  // namespace
}  // namespace overtone

using namespace overtone;

// Returns 0, or 3 if the columns of a row do not ascend or are outside the weight. In that case nothing is changed.
OVERTONE_FUNCTION(patch, PatchArguments, task) {
  return task->type == kFloat32 ? patch_as<float>(*task) : patch_as<uint16_t>(*task);
}

OVERTONE_FUNCTION(unpatch, UnpatchArguments, task) {
  bool narrow_places = task->position_bytes == 4;
  if (task->type == kFloat32)
    narrow_places ? unpatch_as<float, int32_t>(*task) : unpatch_as<float, int64_t>(*task);
  else
    narrow_places ? unpatch_as<uint16_t, int32_t>(*task) : unpatch_as<uint16_t, int64_t>(*task);
  return 0;
}
