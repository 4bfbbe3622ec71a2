// A lane to a file: one thread that writes memory to it and reads it back, in the order in which it was asked.
//
// It holds no lock of Python's, so that transfers go on while an interpreter computes.

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int ENDS_EARLY = -1;
constexpr int IS_OTHER = -2;
constexpr int64_t MOST_AT_ONCE = int64_t(1) << 24;

enum class Fault : int { none, short_transfer, no_space, broken, cut_short };

struct Job {
    bool is_write;
    bool is_checked;  // what is read must be what was written there last
    int64_t offset;
    char* memory;
    int64_t bytes;
};

class Lane {
   public:
    Lane(int file, double bytes_per_second) : file_(file), rate_(bytes_per_second), thread_([this] { serve(); }) {}

    ~Lane() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ends_ = true;
        }
        came_.notify_one();
        thread_.join();
    }

    int64_t begin(Job job) {
        int64_t ticket;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            jobs_.push_back(job);
            ticket = ++begun_;
        }
        came_.notify_one();
        return ticket;
    }

    int wait(int64_t ticket) {
        std::unique_lock<std::mutex> lock(mutex_);
        done_one_.wait(lock, [&] { return done_ >= ticket; });
        auto found = failed_.find(ticket);
        return found == failed_.end() ? 0 : found->second;
    }

    void fails(int64_t after, Fault fault) {
        std::lock_guard<std::mutex> lock(mutex_);
        fault_at_ = done_ + static_cast<int64_t>(jobs_.size()) + is_busy_ + after + 1;
        fault_ = fault;
    }

   private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            came_.wait(lock, [&] { return ends_ || !jobs_.empty(); });
            if (jobs_.empty()) return;
            Job job = jobs_.front();
            jobs_.pop_front();
            is_busy_ = 1;
            Fault fault = done_ + 1 == fault_at_ ? fault_ : Fault::none;
            lock.unlock();
            auto begins = Clock::now();
            int error = move(job, fault);
            pace(begins, job.bytes);
            lock.lock();
            is_busy_ = 0;
            ++done_;
            if (error) failed_[done_] = error;
            done_one_.notify_all();
        }
    }

    int move(const Job& job, Fault fault) {
        if (fault == Fault::no_space) return ENOSPC;
        if (fault == Fault::broken) return EIO;
        if (fault == Fault::cut_short && ftruncate(file_, job.offset)) return errno;
        if (job.is_checked && job.is_write) digests_[job.offset] = digest(job.memory, job.bytes);
        int64_t done = 0;
        while (done < job.bytes) {
            int64_t left = std::min(job.bytes - done, MOST_AT_ONCE);
            if (fault == Fault::short_transfer) left = std::max<int64_t>(left / 3, 1);
            char* at = job.memory + done;
            ssize_t moved = job.is_write ? pwrite(file_, at, left, job.offset + done)
                                         : pread(file_, at, left, job.offset + done);
            if (moved < 0 && errno == EINTR) continue;
            if (moved < 0) return errno;
            if (moved == 0) return ENDS_EARLY;
            done += moved;
        }
        if (!job.is_checked || job.is_write) return 0;
        if (digest(job.memory, job.bytes) != digests_[job.offset]) return IS_OTHER;
        return 0;
    }

    // Tells bytes apart from others, at the speed of memory: no defence against somebody who wants them to be alike.
    static uint64_t digest(const char* memory, int64_t bytes) {
        constexpr uint64_t PRIME = 0x9E3779B185EBCA87;
        uint64_t sums[4] = {1, 2, 3, 4};
        int64_t at = 0;
        for (; at + 32 <= bytes; at += 32) {
            uint64_t words[4];
            std::memcpy(words, memory + at, sizeof words);
            for (int i = 0; i < 4; ++i) sums[i] = (sums[i] ^ words[i]) * PRIME;
        }
        for (; at < bytes; ++at) sums[0] = (sums[0] ^ static_cast<unsigned char>(memory[at])) * PRIME;
        for (int i = 1; i < 4; ++i) sums[0] = (sums[0] ^ (sums[i] >> 29) ^ sums[i]) * PRIME;
        return sums[0];
    }

    // A lane of a given speed: each transfer takes as long as its bytes do, and waits for those before it.
    void pace(Clock::time_point begins, int64_t bytes) {
        if (rate_ <= 0) return;
        auto takes = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bytes / rate_));
        free_at_ = std::max(free_at_, begins) + takes;
        std::this_thread::sleep_until(free_at_);
    }

    int file_;
    double rate_;
    std::mutex mutex_;
    std::condition_variable came_, done_one_;
    std::deque<Job> jobs_;
    std::unordered_map<int64_t, int> failed_;
    std::unordered_map<int64_t, uint64_t> digests_;  // by offset, of what was written there last; the thread's own
    int64_t begun_ = 0, done_ = 0, fault_at_ = -1;
    int is_busy_ = 0;
    Fault fault_ = Fault::none;
    bool ends_ = false;
    Clock::time_point free_at_{};
    std::thread thread_;
};

}  // namespace

extern "C" {

void* graphopt_open_lane(int file, double bytes_per_second) { return new Lane(file, bytes_per_second); }

void graphopt_close_lane(void* lane) { delete static_cast<Lane*>(lane); }

int64_t graphopt_begin_transfer(void* lane, int is_write, int is_checked, int64_t offset, void* memory, int64_t bytes) {
    return static_cast<Lane*>(lane)->begin(
        {is_write != 0, is_checked != 0, offset, static_cast<char*>(memory), bytes});
}

int graphopt_wait_for_transfer(void* lane, int64_t ticket) { return static_cast<Lane*>(lane)->wait(ticket); }

void graphopt_fail_transfer(void* lane, int64_t after, int fault) {
    static_cast<Lane*>(lane)->fails(after, static_cast<Fault>(fault));
}
}
