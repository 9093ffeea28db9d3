// What the dispatcher (expert_linear.cpp) and the kernels of each instruction set (isa.cpp) share.
#pragma once
#include <cstdint>

namespace overtone {

constexpr int kRowBlock = 16;   // rows of a bank's block, and of the blocks that threads take
constexpr int kMaxTile = 8;     // tokens whose sums are in registers at once
constexpr int kLine = 64;       // bytes of a cache line

enum Type : int32_t { kBfloat16 = 0, kFloat32 = 1, kInt8 = 2 };

// ExpertBank of bank.py: index and value are [slots, blocks, entries, kRowBlock].
struct Bank {
  const uint16_t* index;
  const void* value;
  const float* scale;  // [slots, blocks * kRowBlock], int8 values only
  int64_t blocks;
  int32_t entries;
  int32_t value_type;
};

// ExpertBatch of batch.py, flattened.
struct Batch {
  int32_t groups;
  const int32_t* slot;
  const int32_t* start;
  const int32_t* token;
  const float* gate;
};

// Tokens of one group side by side: element [column][lane] is x[token of that lane][column] in fp32. With tokens in
// the lanes one load of an entry serves all of them; a group of one token gathers straight from x instead.
struct Columns {
  int32_t group;
  int32_t first;  // into Batch::token
  int32_t tokens;
  int32_t width;  // 4, 8 or 16 lanes; 0 for a single token
  float* data;
};

struct Task {
  int64_t tokens, rows, columns;
  const void* x;
  int64_t x_stride;
  const void* weight;
  int64_t weight_stride;
  const void* bias;  // null for none
  void* y;           // [tokens, rows]
  int32_t type;      // of x, weight, bias and y
  int32_t add_to_y;  // 1: y already holds the product, add the residuals only, each group's rounded to y
  int32_t pieces;
  const Columns* piece;
  const Bank* bank;
  const Batch* batch;
  void* packed;  // x as the instruction set wants it, `packed_stride` elements from token to token
  int64_t packed_stride;
};

// One instruction set's kernels. `prepare` fills this thread's share of the packed x and of the columns; when all
// threads are done `run` computes blocks [first, last). `packed_bytes` says how much packed x needs, 0 for none.
struct Kernels {
  int64_t (*packed_bytes)(Task*);
  void (*prepare)(const Task&, int thread, int threads);
  void (*run)(const Task&, int64_t first, int64_t last, float* scratch);
  int64_t (*scratch_floats)(const Task&);
  int32_t widest;  // tokens of one Columns at most
};

}  // namespace overtone
