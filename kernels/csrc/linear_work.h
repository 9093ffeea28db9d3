// A linear layer on a team of threads: their memory, and the order of their work.
#pragma once
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "team.h"

namespace overtone {

// Memory for several linear layers of the same tokens, allocated once for all of them.
class LinearWork {
 public:
  LinearWork(const Kernels& kernels, const Batch* batch, int64_t type, int64_t threads)
      : kernels_(kernels), threads_(threads), element_(type == kFloat32 ? 4 : 2) {
    if (!batch) return;
    int32_t widest = kernels.widest(type);
    pairs_ = batch->start[batch->groups];
    for (int32_t group = 0; group < batch->groups; group++) {
      int32_t first = batch->start[group], last = batch->start[group + 1];
      for (int32_t begin = first; begin < last; begin += kLongestRun)
        runs_.push_back({group, begin, last - begin < kLongestRun ? last - begin : kLongestRun});
      int32_t most = last - first < kFewest ? 1 : widest;
      for (; first < last; first += most) {
        int32_t tokens = last - first < most ? last - first : most;
        pieces_.push_back({group, first, tokens, lanes_for(tokens, widest), nullptr});
      }
    }
  }

  // Makes the memory large enough for this layer as well.
  void fit(const LinearArguments& layer) {
    Task task = task_of(layer);
    if (!layer.add_to_y) grow(packed_bytes_, kernels_.packed_bytes(&task));
    grow(own_bytes_, kernels_.scratch_floats(task) * int64_t(sizeof(float)));
    if (layer.bank && layer.columns > columns_) columns_ = layer.columns;
    if (task.low_rank) grow(u_bytes_, pairs_ * layer.low_rank->directions * int64_t(sizeof(float)));
  }

  int64_t bytes() const {
    int64_t sum = packed_bytes_ + u_bytes_ + threads_ * own_bytes_;
    for (const Columns& piece : pieces_) sum += bytes_of(piece);
    return sum;
  }

  void place(char* memory) {
    packed_ = memory;
    u_ = memory + packed_bytes_;
    own_ = u_ + u_bytes_;
    char* at = own_ + threads_ * own_bytes_;
    for (Columns& piece : pieces_) {
      piece.data = at;
      at += bytes_of(piece);
    }
  }

  // y = product + residuals, or y += residuals if `add_to_y` is set. Each thread returns when its share is done. The
  // threads' shares of u are exchanged while they compute their first products, without a barrier.
  void run(const LinearArguments& layer, Team& team, const float* shift = nullptr, bool onto_y = false) const {
    Task task = task_of(layer);
    task.shift = shift;
    task.onto_y = onto_y;
    bool prepares = false;
    if (!layer.add_to_y && kernels_.packed_bytes(&task)) {
      task.packed = packed_;
      prepares = true;
    }
    for (int32_t p = 0; p < task.pieces; p++) prepares = prepares || task.piece[p].width;
    if (prepares) kernels_.prepare(task, team.thread, team.threads);
    if (task.low_rank) {
      task.u = reinterpret_cast<float*>(u_);
      task.team = &team;
      task.wait_for_u = [](const Team& own) { own.wait_for_others(); };
      kernels_.shrink(task, team.thread, team.threads);
      team.hand_over();
    }
    if (prepares) team.wait();
    float* scratch = reinterpret_cast<float*>(own_ + team.thread * own_bytes_);
    team.share((layer.rows + kRowBlock - 1) / kRowBlock,
               [&](int64_t first, int64_t last) { kernels_.run(task, first, last, scratch); });
  }

 private:
  // The fewest tokens of one expert that are transposed. Transposing saves a tenth of the time with eight tokens, and
  // nothing with four.
  static constexpr int32_t kFewest = 6;

  static int32_t lanes_for(int32_t tokens, int32_t widest) {
    if (tokens == 1) return 0;
    int32_t lanes = 8;
    while (lanes < tokens) lanes *= 2;
    return lanes < widest ? lanes : widest;
  }

  static void grow(int64_t& size, int64_t bytes) {
    if (rounded(bytes) > size) size = rounded(bytes);
  }

  int64_t bytes_of(const Columns& piece) const {
    return rounded(piece.width * columns_ * element_);
  }

  Task task_of(const LinearArguments& layer) const {
    Task task{};
    static_cast<LinearArguments&>(task) = layer;
    if (layer.bank) {
      task.piece = pieces_.data();
      task.pieces = static_cast<int32_t>(pieces_.size());
    }
    if (layer.low_rank && directions(*layer.low_rank, *layer.batch)) {
      task.run = runs_.data();
      task.runs = static_cast<int32_t>(runs_.size());
    } else {
      task.low_rank = nullptr;
    }
    return task;
  }

  // The number of directions of all groups of a batch. It may be 0: an expert may have no low-rank residual of this
  // layer.
  static int64_t directions(const LowRank& bank, const Batch& batch) {
    int64_t sum = 0;
    for (int32_t group = 0; group < batch.groups; group++)
      for (int64_t s = 0; s < bank.segments; s++) sum += bank.ranks[batch.slot[group] * bank.segments + s];
    return sum;
  }

  const Kernels& kernels_;
  int64_t threads_, element_, columns_ = 0, packed_bytes_ = 0, own_bytes_ = 0, u_bytes_ = 0, pairs_ = 0;
  std::vector<Columns> pieces_;
  std::vector<Run> runs_;
  char *packed_ = nullptr, *own_ = nullptr, *u_ = nullptr;
};

}  // namespace overtone
