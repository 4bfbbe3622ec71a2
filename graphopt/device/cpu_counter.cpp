// torch's CPU allocator with a counter in front: how many bytes are allocated now, and the most since a mark.
//
// Blocks come from c10::alloc_cpu and are reported to torch's profiler exactly as torch's own allocator does. Each
// has a header of one alignment unit in front, which holds its size, so that nothing is looked up when it is freed.
// A block that torch's own allocator made before is freed by that one, and never counted.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>

extern "C" {

// Read by Python where they lie: a call costs more than what is measured.
extern std::atomic<int64_t> graphopt_cpu_live, graphopt_cpu_peak;
std::atomic<int64_t> graphopt_cpu_live{0}, graphopt_cpu_peak{0};

}  // extern "C"

namespace {

static_assert(std::atomic<int64_t>::is_always_lock_free && sizeof(std::atomic<int64_t>) == sizeof(int64_t));

constexpr size_t kHeader = 64;  // c10::gAlignment, so that data is aligned as before

std::atomic<int64_t>& live = graphopt_cpu_live;
std::atomic<int64_t>& peak = graphopt_cpu_peak;

void count(int64_t bytes) {
  const int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

void release(void* data) {
  if (data == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  char* block = static_cast<char*>(data) - kHeader;
  live.fetch_sub(static_cast<int64_t>(*reinterpret_cast<size_t*>(block)), std::memory_order_relaxed);
  c10::free_cpu(block);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    // what is too much for torch's own allocator is refused by it, in its own words
    const bool fits = bytes <= std::numeric_limits<size_t>::max() - kHeader;
    char* block = static_cast<char*>(c10::alloc_cpu(fits ? bytes + kHeader : bytes));
    *reinterpret_cast<size_t*>(block) = bytes;
    void* data = block + kHeader;
    c10::profiledCPUMemoryReporter().New(data, bytes);
    count(static_cast<int64_t>(bytes));
    return {data, data, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* dest, const void* src, std::size_t bytes) const override { default_copy_data(dest, src, bytes); }
};

CountingAllocator counting;

}  // namespace

extern "C" {

// 1 where the counter is in front of torch's own allocator now; 0 where somebody else's allocator is there.
int graphopt_count_cpu_memory() {
  c10::Allocator* now = c10::GetAllocator(c10::DeviceType::CPU);
  if (now == &counting) return 1;
  if (now != c10::GetDefaultCPUAllocator()) return 0;
  c10::SetAllocator(c10::DeviceType::CPU, &counting);
  return c10::GetAllocator(c10::DeviceType::CPU) == &counting;
}

// The most that was allocated since the last call.
int64_t graphopt_take_cpu_peak() {
  return peak.exchange(live.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

}  // extern "C"
