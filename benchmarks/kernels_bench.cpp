// Time of the random kernels beside ATen's operators and memset, one thread, in nanoseconds an
// element.
//
// Every kernel's output is compared with ATen's before it is timed. Memory is either touched
// (written before) or fresh: pages that the system hands out at the first write, of 4 KiB or, where
// it allows (madvise), of 2 MiB.
//
//   kernels_bench [elements in millions, default 32]

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "random/exact_path.h"
#include "random/normal_elements.h"
#include "random/philox.h"
#include "random/stream.h"
#include "random/typed_kernels.h"
#include "simd/kernels.h"

namespace {

using dormant::random::Philox;
using dormant::random::Stream;
using dormant::random::StreamKernels;

enum class Memory { touched, fresh, huge };

// An anonymous mapping that starts on a huge page.
class Mapping {
 public:
  Mapping(size_t bytes, Memory memory) : bytes_(bytes + kHugePage) {
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) {
      throw std::runtime_error("kernels_bench: no memory for " + std::to_string(bytes_) + " bytes");
    }
    madvise(base_, bytes_, memory == Memory::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (memory == Memory::touched) {
      std::memset(data(), 1, bytes);
    }
  }
  ~Mapping() { munmap(base_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(base_);
    return reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  void* base_;
  size_t bytes_;
};

double thread_nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// Median of `kRuns` runs, each into memory of the given kind.
double nanoseconds(size_t n, size_t bytes, Memory memory, const std::function<void(void*)>& fill) {
  constexpr size_t kRuns = 5;
  std::vector<double> times;
  for (size_t run = 0; run < kRuns; ++run) {
    const Mapping mapping(bytes, memory);
    const double begin = thread_nanoseconds();
    fill(mapping.data());
    times.push_back((thread_nanoseconds() - begin) / static_cast<double>(n));
  }
  std::sort(times.begin(), times.end());
  return times[kRuns / 2];
}

struct Contestant {
  std::string name;
  std::function<void(void*)> fill;
  bool exact;  // compared with the first contestant
};

void task(const std::string& name, size_t n, size_t bytes,
          const std::vector<Contestant>& contestants) {
  const Mapping expected(bytes, Memory::touched);
  contestants.front().fill(expected.data());
  for (const Contestant& contestant : contestants) {
    if (contestant.exact) {
      const Mapping got(bytes, Memory::touched);
      contestant.fill(got.data());
      if (std::memcmp(got.data(), expected.data(), bytes) != 0) {
        throw std::runtime_error("kernels_bench: " + name + " by " + contestant.name +
                                 " differs from ATen");
      }
    }
    std::printf("%-22s %-18s", name.c_str(), contestant.name.c_str());
    for (const Memory memory : {Memory::touched, Memory::fresh, Memory::huge}) {
      std::printf(" %8.2f", nanoseconds(n, bytes, memory, contestant.fill));
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

at::Tensor over(void* data, size_t n, c10::ScalarType dtype) {
  return at::from_blob(data, {static_cast<int64_t>(n)}, at::TensorOptions().dtype(dtype));
}

at::Generator seeded() { return at::make_generator<at::CPUGeneratorImpl>(1); }

// Those that have the bits of ATen at the level that it uses.
std::vector<const StreamKernels*> levels() {
  auto found = dormant::simd::available_kernels<StreamKernels>();
  if (&dormant::random::stream_kernels() == found.front()) {
    found.resize(1);
  } else {
    found.erase(found.begin());
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) try {
  const size_t n = (argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 32) << 20;
  const Philox philox(1, 0);
  std::printf("%s\n%zu elements, ns an element\n",
              dormant::random::exact_path().description.c_str(), n);
  std::printf("%-22s %-18s %8s %8s %8s\n", "task", "by", "touched", "fresh", "huge");

  // One kernel as a contestant, at every level.
  const auto add = [&](std::vector<Contestant>& contestants, auto kernel) {
    for (const StreamKernels* level : levels()) {
      contestants.push_back({level->name,
                             [=](void* out) {
                               Stream stream(at::mt19937(1).data());
                               kernel(*level, stream.block(), out);
                             },
                             true});
    }
  };

  for (const auto dtype : {c10::ScalarType::Float, c10::ScalarType::BFloat16, c10::ScalarType::Half,
                           c10::ScalarType::Double}) {
    const size_t bytes = n * c10::elementSize(dtype);
    const std::string type = c10::toString(dtype);
    const auto clear = [=](void* out) { std::memset(out, 0, bytes); };

    std::vector<Contestant> normal = {
        {"ATen", [=](void* out) { over(out, n, dtype).normal_(0, 1, seeded()); }, false}};
    // Double has no kernel; nor has any dtype below AVX2.
    if (dtype != c10::ScalarType::Double && levels().front()->block_normal != nullptr) {
      add(normal, [=](const StreamKernels& level, dormant::random::EngineBlock& block, void* out) {
        dormant::random::kernel_block_normal(level, block, dtype, out, n, 0, 1);
      });
      normal.push_back(
          {"Philox", [=](void* out) { philox.normal(dtype, out, 0, n, 0, 1); }, false});
    }
    normal.push_back({"memset", clear, false});
    task("normal " + type, n, bytes, normal);

    std::vector<Contestant> uniform = {
        {"ATen", [=](void* out) { over(out, n, dtype).uniform_(-1, 1, seeded()); }, false}};
    add(uniform, [=](const StreamKernels& level, dormant::random::EngineBlock& block, void* out) {
      dormant::random::kernel_uniform(level, block, dtype, out, n, -1, 1);
    });
    uniform.push_back(
        {"Philox", [=](void* out) { philox.uniform(dtype, out, 0, n, -1, 1); }, false});
    task("uniform " + type, n, bytes, uniform);
  }

  for (const auto dtype : {c10::ScalarType::Float, c10::ScalarType::Bool}) {
    std::vector<Contestant> contestants = {
        {"ATen", [=](void* out) { over(out, n, dtype).bernoulli_(.3, seeded()); }, false}};
    add(contestants,
        [=](const StreamKernels& level, dormant::random::EngineBlock& block, void* out) {
          dormant::random::kernel_bernoulli(level, block, dtype, out, n, .3);
        });
    contestants.push_back(
        {"Philox", [=](void* out) { philox.bernoulli(dtype, out, 0, n, .3); }, false});
    task(std::string("bernoulli ") + c10::toString(dtype), n, n * c10::elementSize(dtype),
         contestants);
  }

  const auto twist = [&](const StreamKernels& level) {
    return nanoseconds(n, 1, Memory::touched, [&](void*) {
      Stream stream(at::mt19937(1).data());
      level.twist(stream.block(), n / dormant::random::EngineBlock::kWords);
    });
  };
  for (const StreamKernels* level : levels()) {
    std::printf("%-22s %-18s %8.3f\n", "twist", level->name, twist(*level));
  }

  // Columns [0, 8192 / part) of an 8192 x 8192 normal_, in milliseconds.
  constexpr size_t kSide = 8192;
  for (const size_t part : {1, 2, 4, 8, 16}) {
    const size_t columns = kSide / part;
    const Mapping mapping(kSide * columns * sizeof(float), Memory::touched);
    const double spent = nanoseconds(1, 1, Memory::touched, [&](void*) {
      auto* out = static_cast<float*>(mapping.data());
      dormant::random::NormalElements elements(Stream(at::mt19937(1).data()),
                                               c10::ScalarType::Float, kSide * kSide, 0, 1);
      for (size_t row = 0; row < kSide; ++row) {
        elements.read(row * kSide, columns, out + row * columns);
      }
    });
    std::printf("%-22s %-18s %8.1f ms\n", ("columns, 1/" + std::to_string(part)).c_str(),
                dormant::random::stream_kernels().name, spent * 1e-6);
  }
  const double comparison = nanoseconds(1, 1, Memory::touched, [](void*) {
    dormant::random::check_exactness(dormant::random::stream_kernels());
  });
  std::printf("%-22s %-18s %8.2f ms\n", "comparison with ATen", "", comparison * 1e-6);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
