// Threads that share the work of one pass, piece by piece.
//
// Every thread has a stretch of its own, which it takes piece by piece from front to back: what comes
// next in memory is then what it needs next. One that has finished helps the others, so that a thread
// that is held up (another process has its core, or its core is slower) leaves the rest to them. Who
// computes a piece changes nothing about its result. Waiting threads spin for some microseconds and
// then let others run: a thread that only spins would keep the core from the one it waits for.

#pragma once
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

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
        const ptrdiff_t pieces = (count + unit - 1) / unit, size = stretches_.size();
        for (ptrdiff_t i = 0, who = own(); i < size; i++, who = who + 1 < size ? who + 1 : 0) {
            const ptrdiff_t first = pieces * who / size, last = pieces * (who + 1) / size;
            for (;;) {
                const ptrdiff_t piece =
                    first + stretches_[who].taken.fetch_add(1, std::memory_order_relaxed);
                if (piece >= last) break;
                work(piece * unit, piece + 1 < pieces ? (piece + 1) * unit : count);
            }
        }
        wait();
    }

    // Runs member() on all threads at once. Threads are OpenMP's, so that they are those that torch
    // uses too, and do not compete with them.
    template <class Member>
    static void run(int64_t num_threads, const Member& member) {
#if defined(_OPENMP)
        Team team(num_threads);
#pragma omp parallel num_threads(static_cast<int>(num_threads)) if (num_threads > 1)
        {
#pragma omp single
            team.size_ = omp_get_num_threads();  // may be fewer; others then take their stretches
            member(team);
        }
#else
        (void)num_threads;
        Team team(1);
        member(team);
#endif
    }

  private:
    struct alignas(64) Stretch {
        std::atomic<ptrdiff_t> taken{0};
    };

    explicit Team(int64_t num_threads) : stretches_(num_threads > 1 ? num_threads : 1) {}

    static ptrdiff_t own() {
#if defined(_OPENMP)
        return omp_get_thread_num();
#else
        return 0;
#endif
    }

    void wait() {
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            for (Stretch& stretch : stretches_) stretch.taken.store(0, std::memory_order_relaxed);
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
    std::vector<Stretch> stretches_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace anyorder
