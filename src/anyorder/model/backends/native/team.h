// Threads that share the work of one pass, piece by piece.
//
// Pieces are handed out one at a time, so that a thread that is held up (another process has its
// core, or its core is slower) leaves the rest to the others. Who computes a piece changes nothing
// about its result. Waiting threads spin for some microseconds and then let others run: a thread
// that only spins would keep the core from the one it waits for.

#pragma once
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace anyorder {

class Team {
  public:
    // Calls work(begin, end) for all of [0, count) in pieces of `unit`; every thread of the team
    // calls it, and it returns when all pieces are done.
    template <class Work>
    void share(ptrdiff_t count, ptrdiff_t unit, const Work& work) {
        for (;;) {
            const ptrdiff_t begin = next_.fetch_add(unit, std::memory_order_relaxed);
            if (begin >= count) break;
            work(begin, begin + unit < count ? begin + unit : count);
        }
        wait();
    }

    // Runs member() on all threads at once. Threads are OpenMP's, so that they are those that torch
    // uses too, and do not compete with them.
    template <class Member>
    static void run(int64_t num_threads, const Member& member) {
        Team team;
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(num_threads)) if (num_threads > 1)
        {
#pragma omp single
            team.size_ = omp_get_num_threads();
            member(team);
        }
#else
        (void)num_threads;
        member(team);
#endif
    }

  private:
    void wait() {
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int turn = 0; phase_.load(std::memory_order_acquire) == phase; turn++) {
            if (turn < 4000) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            } else {
                sched_yield();
            }
        }
    }

    int size_ = 1;
    alignas(64) std::atomic<ptrdiff_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace anyorder
