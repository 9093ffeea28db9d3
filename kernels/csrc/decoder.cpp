// All layers of a decoder for the tokens of one step, in one parallel region. It uses the kernels of the single
// operations, in the same order and with the same roundings, and a barrier instead of the end of each operation's
// region.
#include <vector>

#include "attention_work.h"
#include "linear_work.h"
#include "scratch.h"

namespace overtone {
namespace {

class Step {
 public:
  explicit Step(const DecoderArguments& task)
      : task_(task), kernels_(*kernels_of(task.isa)), linear_(kernels_, task.batch, task.type, task.threads) {
    for (int64_t v = 0; v < task.views; v++) attention_.emplace_back(kernels_, attention_of(task.view[v], nullptr));
    for (const Layer* layer = task.layer; layer < task.layer + task.layers; layer++) {
      linear_.fit(qkv_of(*layer, nullptr));
      linear_.fit(output_of(*layer, nullptr));
      linear_.fit(gate_up_of(*layer, nullptr));
      linear_.fit(down_of(*layer, nullptr));
    }
  }

  // Returns whether all places and blocks of the step are in the cache.
  bool inside() const {
    bool found = overtone::inside(task_.places, task_.tokens, task_.blocks * task_.block_size);
    for (int64_t v = 0; v < task_.views; v++)
      found = found && AttentionWork::inside(attention_of(task_.view[v], nullptr));
    return found;
  }

  // Assigns each buffer its part of the memory, and returns the number of bytes. If `memory` is null, it only counts
  // them.
  int64_t place(char* memory) {
    int64_t used = 0, element = task_.type == kFloat32 ? 4 : 2, heads = task_.heads * task_.dim;
    auto take = [&](int64_t bytes) {
      char* part = memory ? memory + used : nullptr;
      used += rounded(bytes);
      return part;
    };
    normed_ = take(task_.tokens * task_.hidden * element);
    projected_ = take(task_.tokens * task_.hidden * element);
    qkv_ = take(task_.tokens * qkv_rows() * element);
    normed_heads_ = take(task_.tokens * qkv_rows() * element);
    query_ = take(task_.tokens * heads * element);
    attended_ = take(task_.tokens * heads * element);
    gate_up_ = take(task_.tokens * 2 * task_.inner * element);
    activated_ = take(task_.tokens * task_.inner * element);
    linear_.place(take(linear_.bytes()));
    int64_t most = 0;
    for (const AttentionWork& work : attention_) most = work.bytes() > most ? work.bytes() : most;
    char* states = take(most);
    for (AttentionWork& work : attention_) work.place(states);
    return used;
  }

  void run(Team& team) const {
    for (const Layer* layer = task_.layer; layer < task_.layer + task_.layers; layer++) {
      attention(*layer, team);
      mlp(*layer, team);
    }
  }

 private:
  int64_t qkv_rows() const { return (task_.heads + 2 * task_.kv_heads) * task_.dim; }

  void attention(const Layer& layer, Team& team) const {
    linear_.run(qkv_of(layer, norm(layer.input_norm, team)), team, shift_of(layer.qkv));
    team.wait();
    team.share(task_.tokens, [&](int64_t first, int64_t last) { rotate(layer, first, last); });
    team.wait();
    attention_[layer.view].run(attention_of(task_.view[layer.view], &layer), team);
    team.wait();
    bool direct = adds_directly(layer.output_norm);
    linear_.run(output_of(layer, direct ? task_.x : projected_), team, shift_of(layer.output), direct);
    team.wait();
    if (!direct) add(layer.output_norm, team);
  }

  void mlp(const Layer& layer, Team& team) const {
    linear_.run(gate_up_of(layer, norm(layer.mlp_norm, team)), team, shift_of(layer.gate_up));
    team.wait();
    GatedArguments gated{task_.isa,    1,        task_.type,      task_.activation, task_.tokens,
                         task_.inner,  gate_up_, 2 * task_.inner, activated_};
    team.share(task_.tokens * task_.inner, [&](int64_t first, int64_t last) { kernels_.gated(gated, first, last); });
    team.wait();
    bool direct = adds_directly(layer.down_norm);
    linear_.run(down_of(layer, direct ? task_.x : projected_), team, shift_of(layer.down), direct);
    team.wait();
    if (!direct) add(layer.down_norm, team);
  }

  // Returns the input of a linear layer: the residual stream, normalised if the layer has a norm.
  const void* norm(const NormWeights& weights, Team& team) const {
    if (!weights.weight) return task_.x;
    NormArguments norm = norm_of(weights, 1, task_.hidden, task_.x, task_.hidden, normed_);
    team.share(task_.tokens, [&](int64_t first, int64_t last) { kernels_.norm(norm, first, last); });
    team.wait();
    return normed_;
  }

  // Returns whether a product is added to the residual stream without a norm or a scale.
  bool adds_directly(const NormWeights& after) const { return !after.weight && task_.residual_scale == 1; }

  // Adds the output of a linear layer to the residual stream, normalised if the layer has a norm after it.
  void add(const NormWeights& after, Team& team) const {
    NormArguments norm = norm_of(after, 1, task_.hidden, projected_, task_.hidden, normed_);
    const char* from = after.weight ? normed_ : projected_;
    AddArguments add{task_.type, task_.hidden, task_.x, from, task_.residual_scale};
    team.share(task_.tokens, [&](int64_t first, int64_t last) {
      if (after.weight) kernels_.norm(norm, first, last);
      kernels_.add(add, first, last);
    });
    team.wait();
  }

  // For tokens [first, last), normalises and rotates the heads, and writes keys and values into the cache.
  void rotate(const Layer& layer, int64_t first, int64_t last) const {
    int64_t element = task_.type == kFloat32 ? 4 : 2, stride = qkv_rows(), dim = task_.dim;
    RotaryArguments rotary{};
    rotary.type = task_.type;
    rotary.tokens = task_.tokens;
    rotary.heads = task_.heads;
    rotary.kv_heads = task_.kv_heads;
    rotary.dim = dim;
    rotary.query = qkv_;
    rotary.key = qkv_ + task_.heads * dim * element;
    rotary.value = qkv_ + (task_.heads + task_.kv_heads) * dim * element;
    rotary.query_stride = rotary.key_stride = rotary.value_stride = stride;
    if (layer.q_norm.weight) {
      char* keys = normed_heads_ + task_.tokens * task_.heads * dim * element;
      kernels_.norm(heads_norm(layer.q_norm, task_.heads, rotary.query, normed_heads_), first, last);
      kernels_.norm(heads_norm(layer.k_norm, task_.kv_heads, rotary.key, keys), first, last);
      rotary.query = normed_heads_;
      rotary.query_stride = task_.heads * dim;
      rotary.key = keys;
      rotary.key_stride = task_.kv_heads * dim;
    }
    rotary.rotated = task_.rotated;
    rotary.cos = task_.rotation[layer.rotation].cos;
    rotary.sin = task_.rotation[layer.rotation].sin;
    rotary.places = task_.places;
    rotary.out = query_;
    rotary.keys = layer.keys;
    rotary.values = layer.values;
    kernels_.rotary(rotary, first, last);
  }

  // The norm of each head, or of all heads of a token at once.
  NormArguments heads_norm(const NormWeights& weights, int64_t heads, const void* x, void* out) const {
    if (task_.norms_of_rows) return norm_of(weights, 1, heads * task_.dim, x, qkv_rows(), out);
    return norm_of(weights, heads, task_.dim, x, qkv_rows(), out);
  }

  NormArguments norm_of(const NormWeights& weights, int64_t heads, int64_t size, const void* x, int64_t token_stride,
                        void* out) const {
    const float* delta = task_.batch ? weights.delta : nullptr;
    return {task_.isa,      1,         task_.type,        task_.tokens, heads, size, x, token_stride, size,
            weights.weight, task_.eps, task_.norm_offset, out,          delta, task_.batch};
  }

  AttentionArguments attention_of(const View& view, const Layer* layer) const {
    return {task_.isa,    task_.threads,      task_.type,
            task_.heads,  task_.kv_heads,     task_.dim,
            task_.block_size, task_.scale,    task_.softcap,
            query_,       task_.heads * task_.dim, layer ? layer->keys : nullptr,
            layer ? layer->values : nullptr,  attended_,
            view.rows,    task_.tokens,       view.tables,
            view.table_stride, task_.blocks};
  }

  LinearArguments qkv_of(const Layer& layer, const void* x) const {
    return linear_of(layer.qkv, qkv_rows(), task_.hidden, x, qkv_);
  }
  LinearArguments output_of(const Layer& layer, void* to) const {
    return linear_of(layer.output, task_.hidden, task_.heads * task_.dim, attended_, to);
  }
  LinearArguments gate_up_of(const Layer& layer, const void* x) const {
    return linear_of(layer.gate_up, 2 * task_.inner, task_.hidden, x, gate_up_);
  }
  LinearArguments down_of(const Layer& layer, void* to) const {
    return linear_of(layer.down, task_.hidden, task_.inner, activated_, to);
  }
  LinearArguments linear_of(const LinearWeights& weights, int64_t rows, int64_t columns, const void* x,
                            void* y) const {
    const Bank* bank = task_.batch ? weights.bank : nullptr;
    const LowRank* low_rank = task_.batch ? weights.low_rank : nullptr;
    return {task_.isa, task_.threads,  task_.type, 0,            task_.tokens, rows, columns,     x,
            columns,   weights.weight, columns,    weights.bias, y,            bank, task_.batch, low_rank,
            weights.quantised};
  }
  const float* shift_of(const LinearWeights& weights) const { return task_.batch ? weights.shift : nullptr; }

  const DecoderArguments& task_;
  const Kernels& kernels_;
  LinearWork linear_;
  std::vector<AttentionWork> attention_;
  char *normed_ = nullptr, *projected_ = nullptr, *qkv_ = nullptr, *normed_heads_ = nullptr, *query_ = nullptr, *attended_ = nullptr,
       *gate_up_ = nullptr, *activated_ = nullptr;
};

}  // namespace
}  // namespace overtone

using namespace overtone;

// Computes all layers on x and writes the step's keys and values to the caches. Returns 0, 1 if memory cannot be
// allocated, or 2 if a place or a block is not in the cache. In the last two cases nothing is written.
OVERTONE_FUNCTION(decoder, DecoderArguments, task) {
  static thread_local Scratch scratch;
  Step step(*task);
  if (!step.inside()) return 2;
  char* memory = scratch.reserve(step.place(nullptr));
  if (!memory) return 1;
  step.place(memory);
  Meeting meeting;
#pragma omp parallel num_threads(task->threads)
  {
    Team team(meeting);
    step.run(team);
  }
  return 0;
}
