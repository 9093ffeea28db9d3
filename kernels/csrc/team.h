// The threads of one parallel region: how they divide work and wait for each other.
//
// A step has about three hundred phases, many of them with less than a microsecond of work. A barrier must cost less
// than that, so it spins. After kSpins rounds it yields its processor: if there are more threads than processors, the
// thread that it waits for may need it.
#pragma once
#include <omp.h>
#include <sched.h>

#include <atomic>

#include "kernels.h"

namespace overtone {

// The state that the threads of a region share. The calling thread creates it before the region begins.
struct Meeting {
  alignas(kLine) std::atomic<int> arrived{0};
  alignas(kLine) std::atomic<int> round{0};
  alignas(kLine) std::atomic<int64_t> dealt{0};
  alignas(kLine) std::atomic<int> handed{0};
};

class Team {
 public:
  const int thread = omp_get_thread_num(), threads = omp_get_num_threads();

  explicit Team(Meeting& meeting) : meeting_(meeting) {}

  // A barrier: waits until all threads have arrived. Afterwards each thread sees what the others wrote before it.
  void wait() {
    int round = meeting_.round.load(std::memory_order_relaxed);
    if (meeting_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      meeting_.arrived.store(0, std::memory_order_relaxed);
      meeting_.dealt.store(0, std::memory_order_relaxed);
      meeting_.round.store(round + 1, std::memory_order_release);
      return;
    }
    spin_while([&] { return meeting_.round.load(std::memory_order_acquire) == round; });
  }

  // Announces that this thread has finished its share of a result that all threads need later. It does not wait.
  void hand_over() {
    meeting_.handed.fetch_add(1, std::memory_order_release);
    handed_ += threads;
  }

  // Waits until every thread has called `hand_over` as often as this one.
  void wait_for_others() const {
    spin_while([&] { return meeting_.handed.load(std::memory_order_acquire) < handed_; });
  }

  // Calls run(first, last) with this thread's equal share of the items.
  template <class Run> void share(int64_t items, Run run) const {
    int64_t first = items * thread / threads, last = items * (thread + 1) / threads;
    if (first < last) run(first, last);
  }

  // Calls run(item) for each item that no other thread has taken. May be called once between two calls of `wait`.
  template <class Run> void deal(int64_t items, Run run) {
    for (int64_t item; (item = meeting_.dealt.fetch_add(1, std::memory_order_relaxed)) < items;) run(item);
  }

 private:
  static constexpr int kSpins = 4096;

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  template <class Waits> static void spin_while(Waits waits) {
    for (int spins = 0; waits(); spins++) spins < kSpins ? pause() : void(sched_yield());
  }

  Meeting& meeting_;
  int handed_ = 0;
};

}  // namespace overtone
