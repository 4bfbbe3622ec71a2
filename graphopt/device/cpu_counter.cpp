// torch's CPU allocator with a counter in front: how many bytes are allocated now, and the most since a mark.
//
// Blocks come from c10::alloc_cpu and are reported to torch's profiler exactly as torch's own allocator does. Each
// has a header of one alignment unit in front, which holds its size, so that nothing is looked up when it is freed.
// A block that torch's own allocator made before is freed by that one, and never counted.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

// What is needed of Python's stable ABI, so that nothing but torch's headers has to be there.
extern "C" {

struct PyObject;
struct PyMethodDef {
  const char* name;
  PyObject* (*call)(PyObject*, PyObject*);
  int flags;
  const char* doc;
};
PyObject* PyCFunction_NewEx(PyMethodDef*, PyObject*, PyObject*);
PyObject* PyLong_FromLongLong(long long);
long PyLong_AsLong(PyObject*);

}  // extern "C"

namespace {

constexpr int kNoArguments = 4;  // METH_NOARGS

constexpr size_t kHeader = 64;  // c10::gAlignment, so that data is aligned as before

std::atomic<int64_t> live{0}, peak{0};

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

// The counter knows one peak, since it was last taken. Each window has the most that others took since it looked itself;
// -1 where the window is closed. Python holds its lock whenever these are read or written.
std::vector<int64_t> taken;

int64_t& taken_by_others(PyObject* window) { return taken[PyLong_AsLong(window)]; }

PyObject* live_bytes(PyObject*, PyObject*) { return PyLong_FromLongLong(live.load(std::memory_order_relaxed)); }

PyObject* peak_bytes(PyObject* window, PyObject*) {
  return PyLong_FromLongLong(std::max(peak.load(std::memory_order_relaxed), taken_by_others(window)));
}

PyObject* take_peak_bytes(PyObject* window, PyObject*) {
  const int64_t now = peak.exchange(live.load(std::memory_order_relaxed), std::memory_order_relaxed);
  for (auto& each : taken)
    if (each >= 0) each = std::max(each, now);
  auto& own = taken_by_others(window);
  const int64_t most = own;
  own = 0;
  return PyLong_FromLongLong(most);
}

PyMethodDef functions[] = {
    {"live_bytes", live_bytes, kNoArguments, nullptr},
    {"peak_bytes", peak_bytes, kNoArguments, nullptr},
    {"take", take_peak_bytes, kNoArguments, nullptr},
};

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

// A new window: its number.
long graphopt_open_cpu_window() {
  const auto free = std::find(taken.begin(), taken.end(), -1);
  const long number = free - taken.begin();
  if (free == taken.end()) taken.push_back(0);
  else *free = 0;
  return number;
}

void graphopt_close_cpu_window(long number) { taken[number] = -1; }

// What a window tells: what is allocated now, the most since it took that, and the same taken, by these numbers. They are
// functions of Python's own kind: they are called some ten times in a training step, and ctypes takes several times as
// long for each.
PyObject* graphopt_cpu_function(PyObject* window, int number) {
  return PyCFunction_NewEx(&functions[number], window, nullptr);
}

}  // extern "C"
