// Types shared by the C interface and the kernels of each instruction set (isa.cpp).
//
// Every function that Python calls takes one struct whose fields are all 8 bytes wide, which costs less than converting
// each argument. Sizes and strides are in elements.
#pragma once
#include <cstdint>

namespace overtone {

constexpr int kRowBlock = 16;   // rows in a bank's block, and in a block that a thread computes
constexpr int kMaxTile = 8;     // maximum number of tokens whose sums are in registers at once
constexpr int kLine = 64;       // bytes of a cache line
constexpr int kPart = 256;      // keys in a part of a context; parts are counted from the beginning of the context

enum Type : int64_t { kBfloat16 = 0, kFloat32 = 1, kInt8 = 2 };

// ExpertBank of bank.py. index and value have the shape [slots, blocks, entries, kRowBlock].
struct Bank {
  const uint16_t* index;
  const void* value;
  const float* scale;  // [slots, blocks * kRowBlock] for int8 values only
  int64_t blocks;
  int32_t entries;
  int32_t value_type;
};

// LowRankBank of low_rank.py. Each segment of a layer, rows [first_row, last_row), has its own factors.
struct Segment {
  int64_t first_row, last_row;
  int64_t first_rank;  // index of its first direction in a slot
  int64_t start;       // offset of its part of B in a slot: [blocks, rank, kRowBlock]
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
  const float* scale;  // [blocks * kRowBlock] for 8 bits only
  int64_t bits;        // 8 or 4
};

// ExpertBatch of batch.py: its flattened groups, and the tables [tokens, width] that they are made from.
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

// Tokens of one group, transposed: element [column][lane] is x[token of that lane][column], in the type of x. One load
// of an entry then serves all tokens. A piece of a single token reads x directly. 32 tokens of bf16 are stored in
// pairs: the lower half of lane i holds token i, and the upper half holds token i + 16. A column is then one cache
// line.
struct Columns {
  int32_t group;
  int32_t first;  // index into Batch::token
  int32_t tokens;
  int32_t width;  // lanes: 8, 16 or 32, or 4 if vectors have 4 lanes; 0 for a single token
  void* data;
};

// Tokens of one group whose low-rank residuals are computed together.
struct Run {
  int32_t group;
  int32_t first;  // index into Batch::token
  int32_t tokens;
};
constexpr int32_t kLongestRun = 32;

class Team;

struct LinearArguments {
  int64_t isa, threads;
  int64_t type;      // of x, weight, bias and y
  int64_t add_to_y;  // 1: y already holds the product; only add the residuals, rounding to y's type after each group
  int64_t tokens, rows, columns;
  const void* x;
  int64_t x_stride;
  const void* weight;
  int64_t weight_stride;
  const void* bias;  // or null
  void* y;           // [tokens, rows]
  const Bank* bank;         // null if no expert has a sparse residual
  const Batch* batch;       // null for the plain product
  const LowRank* low_rank;  // null if no expert has a low-rank residual
  const Quantised* quantised;  // used instead of `weight`, or null
};

struct Task : LinearArguments {
  int32_t pieces;
  const Columns* piece;
  int32_t runs;
  const Run* run;
  float* u;  // scale * A x: [pairs of a token and its expert, directions]
  void (*wait_for_u)(const Team&);
  const Team* team;
  const float* shift;  // the experts' changes of the bias, [slots, rows], with a batch; or null
  bool onto_y;         // add the rounded result to y
  void* packed;  // x in the layout of the instruction set, `packed_stride` elements for each token
  int64_t packed_stride;
};

// A query row and the keys that it attends to: tokens [first, last) of its sequence.
struct QueryRow {
  int32_t row, sequence, first, last;
};

struct AttentionArguments {
  int64_t isa, threads, type;
  int64_t heads, kv_heads, dim, block_size;
  double scale;
  double softcap;     // a score becomes softcap * tanh(score / softcap); 0: scores are not capped
  const void* query;  // [.., heads, dim], with `query_stride` between rows
  int64_t query_stride;
  const void* keys;  // [blocks, block_size, kv_heads, dim]
  const void* values;
  void* out;  // [.., heads, dim]
  const QueryRow* rows;
  int64_t row_count;
  const int32_t* tables;  // [sequences, table_stride], block numbers of the cache
  int64_t table_stride;
  int64_t blocks;  // in the cache
};

struct NormArguments {
  int64_t isa, threads, type;
  int64_t tokens, heads, size;
  const void* x;  // [tokens, heads, size]
  int64_t token_stride, head_stride;
  const void* weight;
  double eps;
  double offset;       // added to the weight; if it is not 0, x is not rounded before the product
  void* out;           // [tokens, heads, size]
  const float* delta;  // [slots, size]; null if `batch` is null
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
  void* x;  // [tokens, size], changed in place
  const void* y;
  double scale;
};

struct RotaryArguments {
  int64_t isa, threads, type;
  int64_t tokens, heads, kv_heads, dim;
  int64_t rotated;    // number of leading dimensions of each head that are rotated; the others are copied
  const void* query;  // [tokens, heads, dim]; key and value: [tokens, kv_heads, dim]
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

// A norm's weight and the slots' changes of it, [slots, size], for decoder.cpp. Null means that there is none.
struct NormWeights {
  const void* weight;
  const float* delta;
};
// A linear layer's weights, for decoder.cpp. Null means that there is none.
struct LinearWeights {
  const void* weight;  // [rows, columns]
  const void* bias;
  const Bank* bank;
  const LowRank* low_rank;
  const float* shift;
  const Quantised* quantised;  // used instead of `weight`, or null
};

// One layer of a decoder. It may have norms before the attention and the MLP, after them, or both.
struct Layer {
  NormWeights input_norm, q_norm, k_norm, output_norm, mlp_norm, down_norm;
  LinearWeights qkv, output, gate_up, down;
  void* keys;  // [blocks, block_size, kv_heads, dim]
  void* values;
  int64_t view;      // index of the step's view
  int64_t rotation;  // index of the step's rotation
};

// The keys that the layers of one sliding window attend to.
struct View {
  const QueryRow* rows;  // [tokens]
  const int32_t* tables;
  int64_t table_stride;
};

// The rotary angles that several layers share.
struct Rotation {
  const void* cos;  // [tokens, rotated]
  const void* sin;
};

struct DecoderArguments {
  int64_t isa, threads, type;
  int64_t hidden, inner, heads, kv_heads, dim, rotated, block_size, blocks;
  int64_t activation;
  int64_t norms_of_rows;  // 1: q_norm and k_norm are computed over all heads of a token at once
  double eps, norm_offset, scale, softcap, residual_scale;
  const Layer* layer;
  int64_t layers;
  int64_t tokens;
  void* x;  // [tokens, hidden], changed in place
  const Rotation* rotation;
  const int64_t* places;  // [tokens] rows of the flattened caches
  const View* view;
  int64_t views;
  const Batch* batch;  // null if no token has an expert
};

struct PatchArguments {
  int64_t isa, threads, type;
  int64_t value_type, index_bytes, position_bytes;
  int64_t rows, columns, entries;
  const void* index;  // [rows, entries]
  const void* value;
  void* weight;     // [rows, columns]
  int64_t* starts;  // [rows + 1]: the index of each row's first change in `position` and `original`
  void* position;   // [rows * entries], only partly used
  void* original;
};

struct UnpatchArguments {
  int64_t isa, threads, type;
  int64_t position_bytes, count;
  const void* position;
  const void* original;
  void* weight;
};

// The sampling parameters of one row.
struct SamplingRow {
  const void* logits;  // [vocab]
  double scale;        // log2(e) / temperature; 0: choose the highest logit
  double top_p, min_p, uniform;
  int64_t top_k;  // 0: no limit
  double repetition, presence, frequency;
  const int64_t* seen;  // the tokens to penalise, without duplicates
  const float* times;   // how often each of them was generated
  int64_t seen_count;
};
struct SamplingArguments {
  int64_t isa, threads, type;
  int64_t rows, vocab;
  const SamplingRow* row;
  int64_t* token;  // [rows]
};

// isa_exact.cpp defines one function for each instruction set, with the name of the set.
namespace sampling {
int64_t generic(const SamplingArguments&, int64_t row, char* memory);
int64_t avx2(const SamplingArguments&, int64_t row, char* memory);
int64_t avx512(const SamplingArguments&, int64_t row, char* memory);
int64_t avx512bf16(const SamplingArguments&, int64_t row, char* memory);
int64_t amx(const SamplingArguments&, int64_t row, char* memory);
}  // namespace sampling

struct UnpackArguments {
  int64_t isa, threads, type;
  int64_t rows, columns;
  const Quantised* quantised;
  void* out;  // [rows, columns]
};

struct QuantiseArguments {
  int64_t isa, threads;
  int64_t rows, size, candidates, lowest, highest;
  const float* value;  // [rows, size]
  const float* scale;  // [rows, candidates]
  int8_t* integer;     // [rows, size]
  int64_t* chosen;     // [rows]
};

// Attention of the query heads that share a key head, for `count` consecutive rows of one sequence, at most
// `rows_at_once`. `attend` computes the state of keys [first, last). These keys lie in one part, and no row attends to
// other keys of that part. `join` adds the state of the next part, and `finish` writes the result. Sizes are in floats.
struct AttentionKernels {
  int64_t (&rows_at_once)(const AttentionArguments&);
  int64_t (&scratch)(const AttentionArguments&);
  int64_t (&state_floats)(const AttentionArguments&, int64_t count);
  void (&attend)(const AttentionArguments&, const QueryRow* rows, int64_t count, int64_t kv_head, int64_t first,
                 int64_t last, float* scratch, float* state);
  void (&join)(const AttentionArguments&, int64_t count, float* state, const float* next);
  void (&finish)(const AttentionArguments&, const QueryRow* rows, int64_t count, int64_t kv_head, const float* state);
};

// The kernels of one instruction set. The members are references: a table that lacks one of them does not compile.
struct Kernels {
  // The linear layer. `packed_bytes` returns the bytes of packed x, or 0 if x needs no packing. `prepare` fills this
  // thread's share of the packed x and of the columns. When all threads have finished it, `run` computes blocks [first,
  // last). `shrink` computes this thread's share of u. `run` waits for u before it adds the first low-rank residual.
  int64_t (&packed_bytes)(Task*);
  void (&prepare)(const Task&, int thread, int threads);
  void (&shrink)(const Task&, int thread, int threads);
  void (&run)(const Task&, int64_t first, int64_t last, float* scratch);
  int64_t (&scratch_floats)(const Task&);
  int32_t (&widest)(int64_t type);  // maximum number of tokens in one Columns

  // Returns the functions for the type and the head size of a task. They do not depend on anything else.
  const AttentionKernels& (&attention)(const AttentionArguments&);

  // These compute tokens [first, last). `gated` computes elements [first, last) of the results [tokens, size].
  void (&norm)(const NormArguments&, int64_t first, int64_t last);
  void (&bias)(const BiasArguments&, int64_t first, int64_t last);
  void (&gated)(const GatedArguments&, int64_t first, int64_t last);
  void (&rotary)(const RotaryArguments&, int64_t first, int64_t last);
  void (&add)(const AddArguments&, int64_t first, int64_t last);

  // Returns a row's token, or -1 if a penalised token is outside the vocabulary. sampling_memory.h describes `memory`.
  int64_t (&sample)(const SamplingArguments&, int64_t row, char* memory);

  // Dequantises blocks of rows [first, last) of a weight.
  void (&unpack)(const UnpackArguments&, int64_t first, int64_t last);

  // Rounds rows [first, last) with the best of their candidates of a scale.
  void (&quantise)(const QuantiseArguments&, int64_t first, int64_t last);
};

// Returns whether all places are rows of the cache.
bool inside(const int64_t* places, int64_t count, int64_t cache_rows);

// Returns the kernels of an instruction set, given its number in library.py, or null if the processor or the build does
// not support it.
const Kernels* kernels_of(int64_t isa);

}  // namespace overtone

#define OVERTONE_EXPORT extern "C" __attribute__((visibility("default")))

// Defines a function that Python calls with one struct, and a function that returns the struct's size. library.py
// compares the size with its own.
#define OVERTONE_FUNCTION(name, Arguments, task)                                \
  OVERTONE_EXPORT int overtone_##name##_bytes() { return sizeof(Arguments); }   \
  OVERTONE_EXPORT int overtone_##name(const Arguments* task)

// Defines a function that returns the size of a struct that Python fills and passes by its address. library.py compares
// the size with its own.
#define OVERTONE_STRUCT(Name) \
  OVERTONE_EXPORT int overtone_##Name##_bytes() { return sizeof(overtone::Name); }
