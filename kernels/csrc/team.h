// The threads of one parallel region, and how they share work and wait for each other.
//
// A step has some three hundred phases with less than a microsecond of work in many of them, so a barrier must cost
// less than that: it spins. Where there are more threads than processors it yields, since who is waited for may need
// the processor of who waits.
#pragma once
#include <omp.h>
#include <sched.h>

#include <atomic>

#include "kernels.h"

namespace overtone {

// What the threads of a region share. Made by the calling thread before the region begins.
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

  // Go on when all threads are here; what each wrote before is then seen by all.
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

  // Say that this thread's part of what all need later is done, without waiting for the others' parts.
  void hand_over() {
    meeting_.handed.fetch_add(1, std::memory_order_release);
    handed_ += threads;
  }

  // Go on when all threads have called `hand_over` as often as this one.
  void wait_for_others() const {
    spin_while([&] { return meeting_.handed.load(std::memory_order_acquire) < handed_; });
  }

  // run(first, last) with this thread's equal share of the items.
  template <class Run> void share(int64_t items, Run run) const {
    int64_t first = items * thread / threads, last = items * (thread + 1) / threads;
    if (first < last) run(first, last);
  }

  // run(item) for whichever items no other thread took. Once between two waits.
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
