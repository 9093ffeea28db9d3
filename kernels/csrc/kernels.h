// What the C interface and the kernels of each instruction set (isa.cpp) share.
//
// Every function that Python calls takes one struct whose fields are all 8 bytes wide: packing them costs less than
// converting that many arguments. Sizes and strides are in elements.
#pragma once
#include <cstdint>

namespace overtone {

constexpr int kRowBlock = 16;   // rows of a bank's block, and of the blocks that threads take
constexpr int kMaxTile = 8;     // tokens whose sums are in registers at once
constexpr int kLine = 64;       // bytes of a cache line
constexpr int kPart = 256;      // keys of a context that are attended to at once, counted from its beginning

enum Type : int64_t { kBfloat16 = 0, kFloat32 = 1, kInt8 = 2 };

// ExpertBank of bank.py: index and value are [slots, blocks, entries, kRowBlock].
struct Bank {
  const uint16_t* index;
  const void* value;
  const float* scale;  // [slots, blocks * kRowBlock], int8 values only
  int64_t blocks;
  int32_t entries;
  int32_t value_type;
};

// LowRankBank of low_rank.py: rows [first_row, last_row) of a layer have factors of their own.
struct Segment {
  int64_t first_row, last_row;
  int64_t first_rank;  // of its directions in a slot
  int64_t start;       // of its part of B in a slot: [blocks, rank, kRowBlock]
};
struct LowRank {
  const void* a;         // [slots, directions, columns]
  const void* b;         // [slots, elements]
  const float* scale;    // [slots, directions]
  const int32_t* ranks;  // [slots, segments]
  const Segment* segment;
  int64_t segments, directions, elements;
  int64_t value_type;
};

// PackedWeight of packed_weight.py, in blocks of kRowBlock rows.
struct Quantised {
  const void* data;
  const float* scale;  // [blocks * kRowBlock], 8 bits only
  int64_t bits;        // 8 or 4
};

// ExpertBatch of batch.py: its groups flattened, and the table [tokens, width] they come from.
struct Batch {
  int32_t groups;
  int32_t width;
  const int32_t* slot;
  const int32_t* start;
  const int32_t* token;
  const float* gate;
  const int32_t* slots;
  const float* gates;
};

// Tokens of one group side by side: element [column][lane] is x[token of that lane][column], in the type of x. With
// tokens in the lanes one load of an entry serves all of them; a piece of one token picks straight from x instead. 32
// tokens of bf16 come in pairs: lane i has the bits of token i below those of token i + 16, so a column is one cache line.
struct Columns {
  int32_t group;
  int32_t first;  // into Batch::token
  int32_t tokens;
  int32_t width;  // 8, 16 or 32 tokens, 4 where vectors are as short; 0 for a single token
  void* data;
};

// Tokens of one group whose low-rank residuals are computed together.
struct Run {
  int32_t group;
  int32_t first;  // into Batch::token
  int32_t tokens;
};
constexpr int32_t kLongestRun = 32;

class Team;

struct LinearArguments {
  int64_t isa, threads;
  int64_t type;      // of x, weight, bias and y
  int64_t add_to_y;  // 1: y already holds the product, add the residuals only, each group's rounded to y
  int64_t tokens, rows, columns;
  const void* x;
  int64_t x_stride;
  const void* weight;
  int64_t weight_stride;
  const void* bias;  // null for none
  void* y;           // [tokens, rows]
  const Bank* bank;         // null where no expert has a sparse residual
  const Batch* batch;       // null for the plain product
  const LowRank* low_rank;  // null where no expert has a low-rank residual
  const Quantised* quantised;  // in place of `weight`, or null
};

struct Task : LinearArguments {
  int32_t pieces;
  const Columns* piece;
  int32_t runs;
  const Run* run;
  float* u;  // scale * A x: [pairs of a token and its expert, directions]
  void (*wait_for_u)(const Team&);
  const Team* team;
  const float* shift;  // what the experts add to the bias: [slots, rows] with a batch, or null
  bool onto_y;         // y += the result, after its rounding
  void* packed;  // x as the instruction set wants it, `packed_stride` elements from token to token
  int64_t packed_stride;
};

// A query row and the keys it sees: tokens [first, last) of its sequence.
struct QueryRow {
  int32_t row, sequence, first, last;
};

struct AttentionArguments {
  int64_t isa, threads, type;
  int64_t heads, kv_heads, dim, block_size;
  double scale;
  double softcap;     // scores become softcap * tanh(score / softcap); 0 for none
  const void* query;  // [.., heads, dim], `query_stride` from row to row
  int64_t query_stride;
  const void* keys;  // [blocks, block_size, kv_heads, dim]
  const void* values;
  void* out;  // [.., heads, dim]
  const QueryRow* rows;
  int64_t row_count;
  const int32_t* tables;  // [sequences, table_stride] blocks of the cache
  int64_t table_stride;
  int64_t blocks;  // of the cache
};

struct NormArguments {
  int64_t isa, threads, type;
  int64_t tokens, heads, size;
  const void* x;  // [tokens, heads, size]
  int64_t token_stride, head_stride;
  const void* weight;
  double eps;
  double offset;       // added to the weight; the result is then rounded once
  void* out;           // [tokens, heads, size]
  const float* delta;  // [slots, size] with a batch, or both null
  const Batch* batch;
};

struct BiasArguments {
  int64_t isa, threads, type;
  int64_t tokens, size;
  const void* y;
  int64_t y_stride;
  void* out;
  const float* delta;
  const Batch* batch;
};

enum Activation : int64_t { kSilu = 0, kGeluTanh = 1 };

struct GatedArguments {
  int64_t isa, threads, type;
  int64_t activation;
  int64_t tokens, size;
  const void* x;  // [tokens, 2 * size]
  int64_t x_stride;
  void* out;
};

struct AddArguments {
  int64_t type;
  int64_t size;
  void* x;  // [tokens, size], changed
  const void* y;
  double scale;
};

struct RotaryArguments {
  int64_t isa, threads, type;
  int64_t tokens, heads, kv_heads, dim;
  int64_t rotated;    // the first dimensions of each head; the others are copied
  const void* query;  // [tokens, heads, dim]; keys and values [tokens, kv_heads, dim]
  int64_t query_stride;
  const void* key;
  int64_t key_stride;
  const void* value;
  int64_t value_stride;
  const void* cos;  // [tokens, rotated]
  const void* sin;
  const int64_t* places;  // [tokens] rows of the flattened caches
  void* out;              // [tokens, heads, dim]
  void* keys;
  void* values;
  int64_t cache_rows;
};

// A norm's weight and what the slots add to it, [slots, size]; a linear layer of decoder.cpp. Null: there is none.
struct NormWeights {
  const void* weight;
  const float* delta;
};
struct LinearWeights {
  const void* weight;  // [rows, columns]
  const void* bias;
  const Bank* bank;
  const LowRank* low_rank;
  const float* shift;
  const Quantised* quantised;  // in place of `weight`, or null
};

// One layer of a decoder. Norms are of what goes into the attention and the MLP, or of what comes out of them, or both.
struct Layer {
  NormWeights input_norm, q_norm, k_norm, output_norm, mlp_norm, down_norm;
  LinearWeights qkv, output, gate_up, down;
  void* keys;  // [blocks, block_size, kv_heads, dim]
  void* values;
  int64_t view;      // which of the step's
  int64_t rotation;  // which of the step's
};

// What the layers of one sliding window see.
struct View {
  const QueryRow* rows;  // [tokens]
  const int32_t* tables;
  int64_t table_stride;
};

// The angles of the layers that share them.
struct Rotation {
  const void* cos;  // [tokens, rotated]
  const void* sin;
};

struct DecoderArguments {
  int64_t isa, threads, type;
  int64_t hidden, inner, heads, kv_heads, dim, rotated, block_size, blocks;
  int64_t activation;
  int64_t norms_of_rows;  // 1: q_norm and k_norm are of all heads at once
  double eps, norm_offset, scale, softcap, residual_scale;
  const Layer* layer;
  int64_t layers;
  int64_t tokens;
  void* x;  // [tokens, hidden], changed
  const Rotation* rotation;
  const int64_t* places;  // [tokens] rows of the flattened caches
  const View* view;
  int64_t views;
  const Batch* batch;  // null where no token has an expert
};

struct PatchArguments {
  int64_t isa, threads, type;
  int64_t value_type, index_bytes, position_bytes;
  int64_t rows, columns, entries;
  const void* index;  // [rows, entries]
  const void* value;
  void* weight;     // [rows, columns]
  int64_t* starts;  // [rows + 1]: where each row's changes begin in the next two
  void* position;   // room for rows * entries
  void* original;
};

struct UnpatchArguments {
  int64_t isa, threads, type;
  int64_t position_bytes, count;
  const void* position;
  const void* original;
  void* weight;
};

// How one row's token is chosen.
struct SamplingRow {
  const void* logits;  // [vocab]
  double scale;        // log2(e) / temperature; 0: the highest logit is taken
  double top_p, min_p, uniform;
  int64_t top_k;  // 0 for all
  double repetition, presence, frequency;
  const int64_t* seen;  // distinct tokens that are penalised
  const float* times;   // how often each was generated
  int64_t seen_count;
};
struct SamplingArguments {
  int64_t isa, threads, type;
  int64_t rows, vocab;
  const SamplingRow* row;
  int64_t* token;  // [rows]
};

// isa_exact.cpp's functions are named after their instruction sets.
namespace sampling {
int64_t generic(const SamplingArguments&, int64_t row, char* memory);
int64_t avx2(const SamplingArguments&, int64_t row, char* memory);
int64_t avx512(const SamplingArguments&, int64_t row, char* memory);
int64_t avx512bf16(const SamplingArguments&, int64_t row, char* memory);
}  // namespace sampling

struct UnpackArguments {
  int64_t isa, threads, type;
  int64_t rows, columns;
  const Quantised* quantised;
  void* out;  // [rows, columns]
};

// One instruction set's kernels. They are references, so that a table without one of them does not compile.
struct Kernels {
  // The linear layer. `prepare` fills this thread's share of the packed x and of the columns; when all threads are
  // done `run` computes blocks [first, last). `packed_bytes` says how much packed x needs, 0 for none.
  // `shrink` makes this thread's share of u, which `run` waits for before it adds the first low-rank residual.
  int64_t (&packed_bytes)(Task*);
  void (&prepare)(const Task&, int thread, int threads);
  void (&shrink)(const Task&, int thread, int threads);
  void (&run)(const Task&, int64_t first, int64_t last, float* scratch);
  int64_t (&scratch_floats)(const Task&);
  int32_t (&widest)(int64_t type);  // tokens of one Columns at most

  // Attention of one row's query heads that share a key head. `attend` makes the state of keys [first, last) of a
  // part, `join` adds the state of the next part, `finish` writes the result.
  int64_t (&attention_scratch)(const AttentionArguments&);
  int64_t (&state_floats)(const AttentionArguments&);
  void (&attend)(const AttentionArguments&, const QueryRow&, int64_t kv_head, int64_t first, int64_t last,
                 float* scratch, float* state);
  void (&join)(const AttentionArguments&, float* state, const float* next);
  void (&finish)(const AttentionArguments&, const QueryRow&, int64_t kv_head, const float* state);

  // Tokens [first, last); `gated` elements [first, last) of all tokens' results, one token after another.
  void (&norm)(const NormArguments&, int64_t first, int64_t last);
  void (&bias)(const BiasArguments&, int64_t first, int64_t last);
  void (&gated)(const GatedArguments&, int64_t first, int64_t last);
  void (&rotary)(const RotaryArguments&, int64_t first, int64_t last);
  void (&add)(const AddArguments&, int64_t first, int64_t last);

  // A row's token, or -1 where a penalised token is outside the vocabulary; `memory` as sampling_memory.h says.
  int64_t (&sample)(const SamplingArguments&, int64_t row, char* memory);

  // A quantised weight multiplied out, blocks of rows [first, last).
  void (&unpack)(const UnpackArguments&, int64_t first, int64_t last);
};

// Whether all places are rows of a cache.
bool inside(const int64_t* places, int64_t count, int64_t cache_rows);

// The kernels of an instruction set by its number in library.py, or null where the processor or the build lacks it.
const Kernels* kernels_of(int64_t isa);

}  // namespace overtone

#define OVERTONE_EXPORT extern "C" __attribute__((visibility("default")))

// A function that Python calls with one struct, and the size of the struct, which library.py compares with its own.
#define OVERTONE_FUNCTION(name, Arguments, task)                                \
  OVERTONE_EXPORT int overtone_##name##_bytes() { return sizeof(Arguments); }   \
  OVERTONE_EXPORT int overtone_##name(const Arguments* task)

// The size of a struct that Python fills and passes by its address, which library.py compares with its own.
#define OVERTONE_STRUCT(Name) \
  OVERTONE_EXPORT int overtone_##Name##_bytes() { return sizeof(overtone::Name); }
