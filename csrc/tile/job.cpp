#include "tile/job.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "tile/program_job.h"
#include "tile/reader.h"
#include "tile/tiling.h"

namespace dormant::tile {
namespace {

c10::DataPtr allocate_memory(size_t nbytes) {
  const auto storage = record::allocate(nbytes);
  return std::move(storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks());
}

/// Memory that is given back before the tensors around it are. Straight from the system: from the
/// heap it would leave holes between tensors that stay, tens of megabytes in a large model.
c10::DataPtr allocate_scratch(size_t nbytes) {
  auto memory = reserve(nbytes);
  return memory ? std::move(memory) : allocate_memory(nbytes);
}

/// Unless its bytes go elsewhere, or an earlier attempt got so far.
void allocate_target(Target& target, size_t nbytes) {
  if (target.destination == nullptr && !target.memory) {
    target.memory = allocate_memory(nbytes);
  }
}

// Rows of a rectangle are at least a cache line, where they can be.
constexpr Medium kMemory{/*in_place=*/true, {.row_bytes = 64, .best = 2 << 20}};
// Each row of a rectangle is a call of the quantizer, and what is packed a quarter of it or less.
constexpr RectangleSize kPackedInMemory{.row_bytes = 512, .best = 2 << 20};
constexpr RectangleSize kPackedForFile{.row_bytes = 2048, .best = 8 << 20};

class StorageJob final : public ProgramJob {
 public:
  StorageJob(Target target, std::shared_ptr<const Program> program)
      : ProgramJob(program, target.part ? target.part->elements : Run{0, program->numel()},
                   kMemory) {
    targets.push_back(std::move(target));
  }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
           const std::function<bool(size_t)>& after_tile) override {
    if (in_place() && targets.front().destination == nullptr) {
      pages.prepare(memory() + begin * itemsize(), static_cast<size_t>((end - begin) * itemsize()));
    }
    return ProgramJob::run(begin, end, tile, pages, after_tile);
  }

 private:
  void allocate() override {
    auto& target = targets.front();
    if (target.part) {
      target.memory = reserve_part(*target.part, target.history.buffer->nbytes,
                                   static_cast<size_t>(itemsize()));
    }
    allocate_target(target, target.part ? target.part->nbytes : target.history.buffer->nbytes);
  }

  std::byte* memory() const override { return targets.front().data(); }

  void store(int64_t element, const std::byte* data, size_t nbytes) const override {
    std::memcpy(memory() + element * itemsize(), data, nbytes);
  }
};

class QuantizeJob final : public Job {
 public:
  QuantizeJob(record::NodePtr node, std::vector<Target> wanted,
              std::shared_ptr<const Program> source, StorePacked store)
      : node_(std::move(node)),
        source_(std::move(source)),
        store_(std::move(store)),
        tiling_(*source_, Run{0, source_->numel()}, store_ ? kPackedForFile : kPackedInMemory,
                quantizer().unit(sizes()), /*whole_units=*/true) {
    targets = std::move(wanted);
  }

  int64_t numel() const override { return node_->operands[0].geometry.numel(); }
  int64_t itemsize() const override { return static_cast<int64_t>(source_->itemsize()); }

  TileSize tile_size() const override { return tiling_.tile_size(); }
  int64_t tile(int64_t bytes) const override { return tiling_.tile(bytes); }

  size_t thread_bytes(int64_t elements) const override {
    const auto rows = tiling_.rows();
    return static_cast<size_t>(elements * itemsize() + loose_bytes(elements)) +
           static_cast<size_t>(rows) * sizeof(Run) + source_->scratch_bytes(elements, rows);
  }

  size_t shared_bytes() const override {
    size_t bytes = 0;
    for (const auto& geometry : quantizer().scratch(sizes())) {
      bytes += geometry.nbytes_needed();
    }
    for (size_t i = kPacked + 1; i < node_->operands.size(); ++i) {
      if (!target_of(i)) {
        bytes += node_->operands[i].geometry.nbytes_needed();
      }
    }
    return bytes;
  }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& /*pages*/,
           const std::function<bool(size_t)>& after_tile) override {
    Reader reader(*source_, fast_seed);
    std::vector<std::byte> elements(static_cast<size_t>(std::min(tile, end - begin) * itemsize()));
    std::vector<std::byte> loose(static_cast<size_t>(loose_bytes(std::min(tile, end - begin))));
    auto memory = memory_;
    std::vector<Run> runs;
    while (begin < end) {
      const auto count = tiling_.cut(begin, std::min(tile, end - begin), runs);
      reader.read(runs, elements.data());
      for_each_row(runs, [&](int64_t row, int64_t length, int64_t element) {
        const auto first = quantizer().packed_bytes(row);
        memory[0] = loose.empty() ? static_cast<std::byte*>(memory_[0]) + first : loose.data();
        quantizer().run(elements.data() + element * itemsize(), source_->dtype(), sizes(), row,
                        length, memory);
        if (store_) {
          store_(first, static_cast<const std::byte*>(memory[0]), quantizer().packed_bytes(length));
        }
      });
      begin += count;
      if (!after_tile(static_cast<size_t>(count * itemsize()))) {
        return false;
      }
    }
    return true;
  }

  void finish() override {
    quantizer().finish(sizes(), node_->threads, memory_);
    scratch_.clear();
  }

  std::optional<Program::Range> read_range(int64_t begin, int64_t end) const override {
    return tiling_.read_range(begin, end);
  }

  void append_reads(int64_t begin, int64_t end,
                    std::vector<Program::Range>& ranges) const override {
    tiling_.append_reads(begin, end, ranges);
  }

  Program::Origins origins() const override { return source_->origins(); }

 private:
  void allocate() override {
    scratch_.clear();
    memory_.clear();
    for (size_t i = kPacked; i < node_->operands.size(); ++i) {
      const auto nbytes = node_->operands[i].geometry.nbytes_needed();
      if (const auto target = target_of(i)) {
        allocate_target(targets[*target], nbytes);
        memory_.push_back(targets[*target].data());
      } else if (i == kPacked) {
        memory_.push_back(nullptr);
      } else {
        add_scratch(nbytes);
      }
    }
    for (const auto& geometry : quantizer().scratch(sizes())) {
      add_scratch(geometry.nbytes_needed());
    }
  }

  void add_scratch(size_t nbytes) {
    scratch_.push_back(allocate_scratch(nbytes));
    memory_.push_back(scratch_.back().get());
  }

  const record::Quantizer& quantizer() const { return *node_->quantizer; }
  c10::IntArrayRef sizes() const { return node_->operands[0].geometry.sizes; }

  /// Which of `targets` the node's operand is, if it is wanted.
  std::optional<size_t> target_of(size_t operand) const {
    for (size_t i = 0; i < targets.size(); ++i) {
      if (targets[i].history.buffer == node_->operands[operand].buffer) {
        return i;
      }
    }
    return std::nullopt;
  }

  /// Bytes of a tile's packed elements where nothing keeps them.
  int64_t loose_bytes(int64_t elements) const {
    return target_of(kPacked) ? 0 : quantizer().packed_bytes(elements);
  }

  /// The node's operand that is packed: after what it reads.
  static constexpr size_t kPacked = 1;

  const record::NodePtr node_;
  const std::shared_ptr<const Program> source_;
  const StorePacked store_;
  const Tiling tiling_;
  std::vector<void*> memory_;  ///< of the outputs, then of the scratch
  std::vector<c10::DataPtr> scratch_;
};

}  // namespace

void Job::begin() {
  const std::lock_guard<std::mutex> lock(allocating_);
  if (!begun) {
    allocate();
    begun = true;
  }
}

std::unique_ptr<Job> make_storage_job(Target target, std::shared_ptr<const Program> program) {
  return std::make_unique<StorageJob>(std::move(target), std::move(program));
}

std::unique_ptr<Job> make_quantize_job(record::NodePtr node, std::vector<Target> targets,
                                       StorePacked store) {
  const auto& source = node->operands[0];
  const auto& geometry = source.geometry;
  if (geometry.conjugate || geometry.negative || geometry.numel() == 0) {
    return nullptr;
  }
  auto program = Program::of(geometry, *source.buffer, source.before);
  if (!program || program->steps().empty() ||
      !Tiling::fits(*program, node->quantizer->unit(geometry.sizes))) {
    return nullptr;
  }
  return std::make_unique<QuantizeJob>(std::move(node), std::move(targets), std::move(program),
                                       std::move(store));
}

}  // namespace dormant::tile
