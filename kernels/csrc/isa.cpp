// The kernels for one instruction set: compiled once for each, with its flags and OVERTONE_ISA as the name. Nothing
// from the standard library's templates may come in here: the linker would share one copy of them between objects
// compiled for different processors.
#include "expert_linear.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace overtone {
namespace {

// Blocks whose dense products are computed before their residuals are added: each change between the two starts the
// hardware's prefetching anew.
constexpr int kSpan = 4;

#include "lanes.h"

#include "dense.h"

#include "residual.h"

template <class Step> int64_t packed_stride(const Task& task) {
  return (task.columns + Step::kColumns - 1) / Step::kColumns * Step::kColumns;
}

template <class Step> bool needs_packing(const Task& task) {
  return Step::kRepack || task.columns % Step::kColumns != 0;
}

template <class X, class Step> void prepare_as(const Task& task, int thread, int threads) {
  if (!task.add_to_y && needs_packing<Step>(task))
    pack<Step>(task, task.tokens * thread / threads, task.tokens * (thread + 1) / threads);
  for (int32_t p = 0; p < task.pieces; p++)
    if (task.piece[p].width)
      lay_side_by_side<X>(task, task.piece[p], task.columns * thread / threads, task.columns * (thread + 1) / threads);
}

template <class X> void load_block(const Task& task, int64_t row, int64_t count, float* out) {
  for (int64_t t = 0; t < task.tokens; t++)
    for (int64_t r = 0; r < count; r++)
      out[t * kRowBlock + r] = widen(((const X*)task.y)[t * task.rows + row + r]);
}

void store_value(float* to, float value) { *to = value; }
void store_value(uint16_t* to, float value) { *to = narrow(value); }

template <class X> void store_block(const Task& task, int64_t row, int64_t count, const float* out) {
  for (int64_t t = 0; t < task.tokens; t++) {
    X* to = (X*)task.y + t * task.rows + row;
    if (count == kRowBlock)
      for (int r = 0; r < kRowBlock; r++) store_value(to + r, out[t * kRowBlock + r]);
    else
      for (int64_t r = 0; r < count; r++) store_value(to + r, out[t * kRowBlock + r]);
  }
}

// The residuals of blocks [first, last), whose rows lie one block after another in `out`.
template <class X, class Value>
void add_residuals(const Task& task, int64_t first, int64_t last, const char* ahead, float* out) {
  Residual<X, Value> residual{task, *task.bank, *task.batch};
  for (int32_t p = 0; p < task.pieces; p++)
    for (int64_t block = first; block < last; block++) {
      residual.add(task.piece[p], block, out + (block - first) * task.tokens * kRowBlock, ahead);
      ahead += kLine * task.bank->entries;
    }
}

template <class X>
void add_residuals_as(const Task& task, int64_t first, int64_t last, const char* ahead, float* out) {
  switch (task.bank->value_type) {
    case kBfloat16: return add_residuals<X, uint16_t>(task, first, last, ahead, out);
    case kFloat32: return add_residuals<X, float>(task, first, last, ahead, out);
    default: return add_residuals<X, int8_t>(task, first, last, ahead, out);
  }
}

// Blocks [first, last): products, residuals, then the one rounding to y. While residuals are added the memory already
// fetches the weights of the next blocks, a cache line for each 16 entries.
template <class X, class Step> void run_as(const Task& task, int64_t first, int64_t last, float* scratch) {
  Walk<Step> walk(task, last);
  Float* sums = (Float*)scratch;
  float* out = scratch + task.tokens * kRowBlock * kLanes;
  for (int64_t start = first; start < last; start += kSpan) {
    int64_t end = start + kSpan < last ? start + kSpan : last;
    for (int64_t block = start; block < end; block++) {
      int64_t row = block * kRowBlock;
      int64_t count = task.rows - row < kRowBlock ? task.rows - row : kRowBlock;
      float* to = out + (block - start) * task.tokens * kRowBlock;
      if (task.add_to_y)
        load_block<X>(task, row, count, to);
      else
        dense_block<Step>(task, walk, row, count, sums, to);
    }
    const char* ahead = (const char*)(walk.weight + end * kRowBlock * walk.stride);
    if (task.pieces) add_residuals_as<X>(task, start, end, ahead, out);
    for (int64_t block = start; block < end; block++) {
      int64_t row = block * kRowBlock;
      int64_t count = task.rows - row < kRowBlock ? task.rows - row : kRowBlock;
      store_block<X>(task, row, count, out + (block - start) * task.tokens * kRowBlock);
    }
  }
}

int64_t packed_bytes(Task* task) {
  bool wide = task->type == kFloat32;
  bool needed = wide ? needs_packing<Float32Step>(*task) : needs_packing<Bfloat16Step>(*task);
  if (!needed) {
    task->packed = (void*)task->x;
    task->packed_stride = task->x_stride;
    return 0;
  }
  task->packed_stride = wide ? packed_stride<Float32Step>(*task) : packed_stride<Bfloat16Step>(*task);
  return task->tokens * task->packed_stride *
         int64_t(wide ? sizeof(Float32Step::Packed) : sizeof(Bfloat16Step::Packed));
}

int64_t scratch_floats(const Task& task) { return task.tokens * kRowBlock * (kLanes + kSpan); }

void prepare(const Task& task, int thread, int threads) {
  if (task.type == kFloat32) return prepare_as<float, Float32Step>(task, thread, threads);
  return prepare_as<uint16_t, Bfloat16Step>(task, thread, threads);
}

void run(const Task& task, int64_t first, int64_t last, float* scratch) {
  if (task.type == kFloat32) return run_as<float, Float32Step>(task, first, last, scratch);
  return run_as<uint16_t, Bfloat16Step>(task, first, last, scratch);
}

}  // namespace

extern const Kernels OVERTONE_ISA;
const Kernels OVERTONE_ISA = {packed_bytes, prepare, run, scratch_floats, kLanes == 16 ? 16 : 8};

}  // namespace overtone
