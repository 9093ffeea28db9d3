// Attention on a team of threads: how rows, heads and parts of contexts are divided among the threads.
#pragma once
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "team.h"

namespace overtone {

// The attention of one step. The division is computed once for all layers that attend to the same keys.
class AttentionWork {
 public:
  AttentionWork(const Kernels& kernels, const AttentionArguments& task)
      : kernels_(kernels.attention(task)), threads_(task.threads) {
    group(task);
    items_ = int64_t(groups_.size()) * task.kv_heads;
    int64_t most = 0;
    for (const Group& group : groups_) most = group.count > most ? group.count : most;
    own_ = rounded(kernels_.scratch(task) * int64_t(sizeof(float)));
    state_ = rounded(kernels_.state_floats(task, most) * int64_t(sizeof(float)));
    if (items_ >= 8 * threads_) return;
    // There are too few items for equal shares: divide them into parts.
    for (int64_t item = 0; item < items_; item++)
      for_parts(groups_[item / task.kv_heads],
                [&](int64_t first, int64_t last) { parts_.push_back({item, first, last}); });
    if (count() == items_) parts_.clear();
  }

  // Returns whether every block that the rows read is in the cache.
  static bool inside(const AttentionArguments& task) {
    for (int64_t r = 0; r < task.row_count; r++) {
      const QueryRow& row = task.rows[r];
      const int32_t* blocks = task.tables + row.sequence * task.table_stride;
      for (int64_t b = row.first / task.block_size; b * task.block_size < row.last; b++)
        if (blocks[b] < 0 || blocks[b] >= task.blocks) return false;
    }
    return true;
  }

  int64_t bytes() const { return threads_ * (own_ + 2 * state_) + count() * state_; }

  void place(char* memory) { memory_ = memory; }

  // The states of a row's parts are always joined in their order. So the result is the same to the last bit for any
  // number of threads. A thread returns when no items are left.
  void run(const AttentionArguments& task, Team& team) const {
    char* mine = memory_ + team.thread * (own_ + 2 * state_);
    float* space = reinterpret_cast<float*>(mine);
    if (count()) return run_parts(task, team, space);
    float* total = reinterpret_cast<float*>(mine + own_);
    float* next = reinterpret_cast<float*>(mine + own_ + state_);
    team.deal(items_, [&](int64_t item) {
      const Group& group = groups_[item / task.kv_heads];
      for_parts(group, [&](int64_t first, int64_t last) {
        bool begins = first == group.first;
        attend(task, item, first, last, space, begins ? total : next);
        if (!begins) kernels_.join(task, group.count, total, next);
      });
      finish(task, item, total);
    });
  }

 private:
  // Consecutive rows of one sequence, and the keys that any of them attends to.
  struct Group {
    const QueryRow* rows;
    int64_t count, first, last;
  };
  struct Part {
    int64_t item, first, last;
  };

  void group(const AttentionArguments& task) {
    int64_t most = kernels_.rows_at_once(task);
    for (const QueryRow* row = task.rows; row < task.rows + task.row_count; row++) {
      Group* group = groups_.empty() ? nullptr : &groups_.back();
      if (group && group->count < most && group->rows->sequence == row->sequence) {
        group->count++;
        group->first = row->first < group->first ? row->first : group->first;
        group->last = row->last > group->last ? row->last : group->last;
      } else {
        groups_.push_back({row, 1, row->first, row->last});
      }
    }
  }

  void attend(const AttentionArguments& task, int64_t item, int64_t first, int64_t last, float* space,
              float* state) const {
    const Group& group = groups_[item / task.kv_heads];
    kernels_.attend(task, group.rows, group.count, item % task.kv_heads, first, last, space, state);
  }

  void finish(const AttentionArguments& task, int64_t item, const float* state) const {
    const Group& group = groups_[item / task.kv_heads];
    kernels_.finish(task, group.rows, group.count, item % task.kv_heads, state);
  }

  // Calls `function` for each part of a group's context. The boundaries do not depend on what else is computed.
  template <class Function> static void for_parts(const Group& group, Function function) {
    for (int64_t first = group.first; first < group.last;) {
      int64_t last = (first / kPart + 1) * kPart;
      if (last > group.last) last = group.last;
      function(first, last);
      first = last;
    }
  }

  int64_t count() const { return static_cast<int64_t>(parts_.size()); }

  void run_parts(const AttentionArguments& task, Team& team, float* space) const {
    char* stored = memory_ + threads_ * (own_ + 2 * state_);
    auto state_of = [&](int64_t part) { return reinterpret_cast<float*>(stored + part * state_); };
    team.deal(count(), [&](int64_t p) {
      const Part& part = parts_[p];
      attend(task, part.item, part.first, part.last, space, state_of(p));
    });
    team.wait();
    team.deal(count(), [&](int64_t p) {
      int64_t item = parts_[p].item;
      if (p && parts_[p - 1].item == item) return;
      for (int64_t more = p + 1; more < count() && parts_[more].item == item; more++)
        kernels_.join(task, groups_[item / task.kv_heads].count, state_of(p), state_of(more));
      finish(task, item, state_of(p));
    });
  }

  const AttentionKernels& kernels_;
  int64_t items_ = 0, threads_, own_ = 0, state_ = 0;
  std::vector<Group> groups_;  // the groups of the task that was passed to the constructor
  std::vector<Part> parts_;
  char* memory_ = nullptr;
};

}  // namespace overtone
