// The linear layer: dense products and residuals of a thread's blocks of rows. Included inside isa.cpp's namespace.

// The number of blocks whose dense products are computed before their residuals are added. Each change between the two
// restarts the hardware prefetcher. A single token's product is bound by memory, so it uses the longest span. The
// products of several tokens are bound by arithmetic, and with fewer blocks more of their data is in the cache. With
// many tokens a change also replaces the columns in the cache. The factors of eight experts are eight streams, which
// are read faster in long pieces.
constexpr int kSpan = 4;
constexpr int kLongSpan = 256;
constexpr int kWideSpan = 64;
inline int64_t span_of(const Task& task) {
  if (task.tokens == 1) return kLongSpan;
  bool low_rank_alone = task.low_rank && !task.bank;
  return task.tokens <= 16 && !low_rank_alone ? kSpan : kWideSpan;
}

#include "dense.h"
#include "quantised.h"
#include "residual.h"
#include "low_rank.h"

template <class Step> int64_t packed_stride(const Task& task) {
  return (task.columns + Step::kColumns - 1) / Step::kColumns * Step::kColumns;
}

template <class Step> bool needs_packing(const Task& task) {
  return Step::kRepack || task.columns % Step::kColumns != 0;
}
template <class Step> int64_t packed_bytes_of(const Task& task) {
  return task.tokens * task.packed_stride * int64_t(sizeof(typename Step::Packed));
}

#if defined(__AMX_BF16__)
#include "dense_amx.h"

using Bfloat16Product = TileStep;
#else
using Bfloat16Product = Bfloat16Step;
#endif

template <class X, class Step> void prepare_as(const Task& task, int thread, int threads) {
  if (!task.add_to_y && task.quantised)
    quantise_tokens<X>(task, task.tokens * thread / threads, task.tokens * (thread + 1) / threads);
  else if (!task.add_to_y && needs_packing<Step>(task))
    pack<Step>(task, thread, threads);
  for (int32_t p = 0; p < task.pieces; p++)
    if (task.piece[p].width)
      lay_side_by_side<X>(task, task.piece[p], task.columns * thread / threads, task.columns * (thread + 1) / threads);
}

template <class X> void store_rows(const float* from, int64_t count, X* to) {
  for (int64_t r = 0; r < count; r += kLanes) store_part(to + r, load<Float>(from + r), count - r);
}

// Writes `count` rows of a token to y. The result of each operation after the product is rounded, as if the operations
// were separate calls.
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

// Calls work(Value{}) with the type of a bank's values.
template <class Work> void with_values(int64_t value_type, Work work) {
  switch (value_type) {
    case kBfloat16: return work(uint16_t{});
    case kFloat32: return work(float{});
    default: return work(int8_t{});
  }
}

inline void fetch_low_rank(const Task& task, int64_t block) {
  with_values(task.low_rank->value_type, [&](auto value) { LowRankResidual<decltype(value)>{task}.fetch(block); });
}

// Adds the low-rank residuals of blocks [first, last) to `out`, [blocks][tokens][kRowBlock].
inline void add_low_rank(const Task& task, int64_t first, int64_t last, float* out) {
  with_values(task.low_rank->value_type, [&](auto value) {
    LowRankResidual<decltype(value)> residual{task};
    for (int32_t i = 0; i < task.runs; i++) {
      const int32_t* token = task.batch->token + task.run[i].first;
      residual.add(task.run[i], first, last, out, task.tokens * kRowBlock, token);
    }
  });
}

// Computes blocks [first, last): the products, then the residuals, then the rounding to y. While residuals are added,
// the weights of the next blocks are prefetched, one cache line for each 16 entries.
template <class X, class Step, class Value>
void run_whole(const Task& task, int64_t first, int64_t last, float* scratch) {
  Walk<Step> walk(task, last);
  Configured<Step> configured(task);
  Float* sums = (Float*)scratch;
  float* out = scratch + task.tokens * kRowBlock * kLanes;
  int64_t block_floats = task.tokens * kRowBlock, span = span_of(task);
  for (int64_t start = first; start < last; start += span) {
    int64_t end = start + span < last ? start + span : last;
    for (int64_t block = start; block < end; block++) {
      if (task.low_rank) fetch_low_rank(task, block);
      float* to = out + (block - start) * block_floats;
      if (task.quantised)
        quantised_block<X>(task, block, rows_in(task, block), to);
      else
        dense_block(task, walk, block * kRowBlock, rows_in(task, block), sums, to);
    }
    const char* ahead = task.quantised ? (const char*)task.quantised->data + end * block_bytes(*task.quantised, task.columns)
                                       : (const char*)(walk.weight + end * kRowBlock * walk.stride);
    for (int32_t p = 0; p < task.pieces; p++) {
      Residual<X, Value> residual{task, *task.bank, *task.batch, false, kLine};
      for (int64_t block = start; block < end; block++, ahead += kLine * task.bank->entries)
        residual.add(task.piece[p], block, out + (block - start) * block_floats, ahead);
    }
    if (task.low_rank) {
      if (start == first) task.wait_for_u(*task.team);
      add_low_rank(task, start, end, out);
    }
    for (int64_t block = start; block < end; block++)
      for (int64_t t = 0; t < task.tokens; t++)
        finish_rows<X>(task, t, block * kRowBlock, out + (block - start) * block_floats + t * kRowBlock,
                       rows_in(task, block));
  }
}

// Loads a block of y for tokens [first, first + count) of the batch, one token after another. `store_block` is the
// inverse.
template <class X> void load_block(const Task& task, int32_t first, int32_t count, int64_t block, float* out) {
  int64_t rows = rows_in(task, block);
  for (int32_t t = 0; t < count; t++, out += kRowBlock) {
    const X* from = (const X*)task.y + task.batch->token[first + t] * task.rows + block * kRowBlock;
    for (int64_t r = 0; r < kRowBlock; r += kLanes)
      store(out + r, r < rows ? load_part(from + r, rows - r) : Float{});
  }
}
template <class X> void store_block(const Task& task, int32_t first, int32_t count, int64_t block, const float* out) {
  for (int32_t t = 0; t < count; t++, out += kRowBlock)
    store_rows(out, rows_in(task, block), (X*)task.y + task.batch->token[first + t] * task.rows + block * kRowBlock);
}

// Adds the residuals to a y that already holds the product. Each piece computes all blocks while its columns are in the
// cache.
template <class X, class Value> void run_residuals(const Task& task, int64_t first, int64_t last) {
  Residual<X, Value> residual{task, *task.bank, *task.batch, true, 0};
  for (int32_t p = 0; p < task.pieces; p++) {
    const Columns& piece = task.piece[p];
    for (int64_t block = first; block < last; block++) {
      float out[32 * kRowBlock];
      load_block<X>(task, piece.first, piece.tokens, block, out);
      residual.add(piece, block, out, (const char*)out);
      store_block<X>(task, piece.first, piece.tokens, block, out);
    }
  }
}

template <class X> void run_low_rank_residuals(const Task& task, int64_t first, int64_t last) {
  int32_t place[kLongestRun];
  for (int32_t t = 0; t < kLongestRun; t++) place[t] = t;
  task.wait_for_u(*task.team);
  with_values(task.low_rank->value_type, [&](auto value) {
    LowRankResidual<decltype(value)> residual{task};
    for (int32_t i = 0; i < task.runs; i++) {
      const Run& run = task.run[i];
      for (int64_t block = first; block < last; block++) {
        float out[kLongestRun * kRowBlock];
        load_block<X>(task, run.first, run.tokens, block, out);
        residual.add(run, block, block + 1, out, 0, place);
        store_block<X>(task, run.first, run.tokens, block, out);
      }
    }
  });
}

template <class X, class Step, class Value>
void run_with(const Task& task, int64_t first, int64_t last, float* scratch) {
  if (!task.add_to_y) return run_whole<X, Step, Value>(task, first, last, scratch);
  if (task.bank) run_residuals<X, Value>(task, first, last);
  if (task.low_rank) run_low_rank_residuals<X>(task, first, last);
}

template <class X, class Step> void run_as(const Task& task, int64_t first, int64_t last, float* scratch) {
  with_values(task.bank ? task.bank->value_type : kFloat32,
              [&](auto value) { run_with<X, Step, decltype(value)>(task, first, last, scratch); });
}

int64_t packed_bytes(Task* task) {
  if (task->quantised) {
    task->packed_stride = quantised_stride(task->columns);
    // If there are several tiles, each of them reads 16 tokens.
    int64_t tokens = task->tokens <= 16 ? task->tokens : (task->tokens + 15) / 16 * 16;
    return tokens * task->packed_stride * int64_t(sizeof(int16_t));
  }
  bool wide = task->type == kFloat32;
  bool needed = wide ? needs_packing<Float32Step>(*task) : needs_packing<Bfloat16Product>(*task);
  if (!needed) {
    task->packed = (void*)task->x;
    task->packed_stride = task->x_stride;
    return 0;
  }
  task->packed_stride = wide ? packed_stride<Float32Step>(*task) : packed_stride<Bfloat16Product>(*task);
  return wide ? packed_bytes_of<Float32Step>(*task) : packed_bytes_of<Bfloat16Product>(*task);
}

int32_t widest(int64_t type) {
  return kLanes == 16 && type == kBfloat16 ? 32 : kLanes;
}

int64_t scratch_floats(const Task& task) { return task.add_to_y ? 0 : task.tokens * kRowBlock * (kLanes + span_of(task)); }

void prepare(const Task& task, int thread, int threads) {
  if (task.type == kFloat32) return prepare_as<float, Float32Step>(task, thread, threads);
  return prepare_as<uint16_t, Bfloat16Product>(task, thread, threads);
}

void shrink(const Task& task, int thread, int threads) {
  with_values(task.low_rank->value_type, [&](auto value) {
    LowRankResidual<decltype(value)> residual{task};
    if (task.type == kFloat32) return residual.template shrink<float>(thread, threads);
    return residual.template shrink<uint16_t>(thread, threads);
  });
}

void run(const Task& task, int64_t first, int64_t last, float* scratch) {
  if (task.type == kFloat32) return run_as<float, Float32Step>(task, first, last, scratch);
  return run_as<uint16_t, Bfloat16Product>(task, first, last, scratch);
}
