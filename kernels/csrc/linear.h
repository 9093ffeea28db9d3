// The linear layer: dense products and residuals of a thread's blocks of rows. Included inside the namespace of isa.cpp.

// Blocks whose dense products are computed before their residuals are added: each change between the two starts the
// hardware's prefetching anew, which is all that one token's product waits for. Several tokens' are bound by arithmetic
// and find more in the cache with fewer blocks; of many tokens each change also brings other columns into the cache.
constexpr int kSpan = 4;
constexpr int kLongSpan = 256;
constexpr int kWideSpan = 64;
inline int64_t span_of(const Task& task) {
  return task.tokens == 1 ? kLongSpan : task.tokens <= 16 ? kSpan : kWideSpan;
}

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

template <class X> void store_rows(const float* from, int64_t count, X* to) {
  for (int64_t r = 0; r < count; r += kLanes) store_part(to + r, load<Float>(from + r), count - r);
}

// `count` rows of a token on their way to y. What follows the product is rounded after each step, as separate
// operations would round it.
template <class X> void finish_rows(const Task& task, int64_t token, int64_t row, const float* from, int64_t count) {
  X* to = (X*)task.y + token * task.rows + row;
  for (int64_t r = 0; r < count; r += kLanes) {
    Float v = load<Float>(from + r);
    if (task.shift) v = round_as(to, v) + shift_of(*task.batch, task.shift, token, task.rows, row + r);
    if (task.onto_y) v = load_part(to + r, count - r) + round_as(to, v);
    store_part(to + r, v, count - r);
  }
}

int64_t rows_in(const Task& task, int64_t block) {
  int64_t left = task.rows - block * kRowBlock;
  return left < kRowBlock ? left : kRowBlock;
}

// Blocks [first, last): products, residuals, then the rounding to y. While residuals are added the memory already
// fetches the weights of the next blocks, a cache line for each 16 entries.
template <class X, class Step, class Value>
void run_whole(const Task& task, int64_t first, int64_t last, float* scratch) {
  Walk<Step> walk(task, last);
  Float* sums = (Float*)scratch;
  float* out = scratch + task.tokens * kRowBlock * kLanes;
  int64_t block_floats = task.tokens * kRowBlock, span = span_of(task);
  for (int64_t start = first; start < last; start += span) {
    int64_t end = start + span < last ? start + span : last;
    for (int64_t block = start; block < end; block++)
      dense_block<Step>(task, walk, block * kRowBlock, rows_in(task, block), sums, out + (block - start) * block_floats);
    const char* ahead = (const char*)(walk.weight + end * kRowBlock * walk.stride);
    for (int32_t p = 0; p < task.pieces; p++) {
      Residual<X, Value> residual{task, *task.bank, *task.batch, false, kLine};
      for (int64_t block = start; block < end; block++, ahead += kLine * task.bank->entries)
        residual.add(task.piece[p], block, out + (block - start) * block_floats, ahead);
    }
    for (int64_t block = start; block < end; block++)
      for (int64_t t = 0; t < task.tokens; t++)
        finish_rows<X>(task, t, block * kRowBlock, out + (block - start) * block_floats + t * kRowBlock,
                       rows_in(task, block));
  }
}

// The same blocks where y holds the product already: a piece goes over all of them while its columns are in the cache.
template <class X, class Value> void run_residuals(const Task& task, int64_t first, int64_t last) {
  Residual<X, Value> residual{task, *task.bank, *task.batch, true, 0};
  for (int32_t p = 0; p < task.pieces; p++) {
    const Columns& piece = task.piece[p];
    for (int64_t block = first; block < last; block++) {
      float out[32 * kRowBlock];
      int64_t count = rows_in(task, block);
      for (int t = 0; t < piece.tokens; t++) {
        const X* from = (const X*)task.y + task.batch->token[piece.first + t] * task.rows + block * kRowBlock;
        for (int64_t r = 0; r < kRowBlock; r += kLanes)
          store(out + t * kRowBlock + r, r < count ? load_part(from + r, count - r) : Float{});
      }
      residual.add(piece, block, out, (const char*)out);
      for (int t = 0; t < piece.tokens; t++)
        store_rows(out + t * kRowBlock, count,
                   (X*)task.y + task.batch->token[piece.first + t] * task.rows + block * kRowBlock);
    }
  }
}

template <class X, class Step, class Value>
void run_with(const Task& task, int64_t first, int64_t last, float* scratch) {
  if (task.add_to_y)
    run_residuals<X, Value>(task, first, last);
  else
    run_whole<X, Step, Value>(task, first, last, scratch);
}

template <class X, class Step> void run_as(const Task& task, int64_t first, int64_t last, float* scratch) {
  switch (task.bank ? task.bank->value_type : kFloat32) {
    case kBfloat16: return run_with<X, Step, uint16_t>(task, first, last, scratch);
    case kFloat32: return run_with<X, Step, float>(task, first, last, scratch);
    default: return run_with<X, Step, int8_t>(task, first, last, scratch);
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

int32_t widest(int64_t type) {
  return kLanes == 16 && type == kBfloat16 ? 32 : kLanes;
}

int64_t scratch_floats(const Task& task) { return task.add_to_y ? 0 : task.tokens * kRowBlock * (kLanes + span_of(task)); }

void prepare(const Task& task, int thread, int threads) {
  if (task.type == kFloat32) return prepare_as<float, Float32Step>(task, thread, threads);
  return prepare_as<uint16_t, Bfloat16Step>(task, thread, threads);
}

void run(const Task& task, int64_t first, int64_t last, float* scratch) {
  if (task.type == kFloat32) return run_as<float, Float32Step>(task, first, last, scratch);
  return run_as<uint16_t, Bfloat16Step>(task, first, last, scratch);
}
