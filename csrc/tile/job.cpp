#include "tile/job.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "tile/reader.h"

namespace dormant::tile {
namespace {

// Tiles begin where vectors and blocks of normal_ do.
constexpr int64_t kAlignment = 64;

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

class StorageJob final : public Job {
 public:
  StorageJob(Target target, std::shared_ptr<const Program> program)
      : program_(std::move(program)),
        elements_(target.part ? target.part->elements : Run{0, program_->numel()}) {
    targets.push_back(std::move(target));
  }

  int64_t numel() const override { return elements_.count; }
  int64_t itemsize() const override { return static_cast<int64_t>(program_->itemsize()); }
  int64_t unit() const override { return kAlignment; }
  size_t thread_bytes(int64_t elements) const override { return program_->scratch_bytes(elements); }
  size_t shared_bytes() const override { return 0; }

  void allocate() override {
    auto& target = targets.front();
    if (target.part) {
      target.memory =
          reserve_part(*target.part, target.history.buffer->nbytes, program_->itemsize());
      if (!target.memory) {
        target.memory = allocate_memory(target.part->nbytes);
      }
    } else {
      allocate_target(target);
    }
  }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
           const std::function<bool(size_t)>& after_tile) override {
    auto* memory = targets.front().data();  // of the first of `elements_`
    if (targets.front().destination == nullptr) {
      pages.prepare(memory + begin * itemsize(), static_cast<size_t>((end - begin) * itemsize()));
    }
    Reader reader(*program_, fast_seed);
    for (; begin < end; begin += tile) {
      const auto count = std::min(tile, end - begin);
      reader.read(Run{elements_.begin + begin, count}, memory + begin * itemsize());
      if (!after_tile(static_cast<size_t>(count * itemsize()))) {
        return false;
      }
    }
    return true;
  }

  void finish() override {}

  std::optional<Program::Range> read_range(int64_t begin, int64_t end) const override {
    return program_->read_range(elements_.begin + begin, end - begin);
  }

  Program::Origins origins() const override { return program_->origins(); }

 private:
  const std::shared_ptr<const Program> program_;
  const Run elements_;
};

class QuantizeJob final : public Job {
 public:
  QuantizeJob(std::vector<Target> wanted, std::shared_ptr<const Program> source)
      : node_(wanted.front().history.tail), source_(std::move(source)) {
    targets = std::move(wanted);
  }

  int64_t numel() const override { return node_->operands[0].geometry.numel(); }
  int64_t itemsize() const override { return static_cast<int64_t>(source_->itemsize()); }
  int64_t unit() const override { return quantizer().unit(sizes()); }

  size_t thread_bytes(int64_t elements) const override {
    return static_cast<size_t>(elements * itemsize()) + source_->scratch_bytes(elements);
  }

  size_t shared_bytes() const override {
    size_t bytes = 0;
    for (const auto& geometry : quantizer().scratch(sizes())) {
      bytes += geometry.nbytes_needed();
    }
    for (size_t i = 1; i < node_->operands.size(); ++i) {
      if (find(i) == nullptr) {
        bytes += node_->operands[i].geometry.nbytes_needed();
      }
    }
    return bytes;
  }

  void allocate() override {
    // Where memory was exhausted on the way, another thread tries again, from the start.
    scratch_.clear();
    memory_.clear();
    for (size_t i = 1; i < node_->operands.size(); ++i) {
      const auto nbytes = node_->operands[i].geometry.nbytes_needed();
      auto* target = find(i);
      if (target == nullptr) {
        scratch_.push_back(allocate_scratch(nbytes));
        memory_.push_back(scratch_.back().get());
      } else {
        if (target->destination == nullptr) {
          target->memory = allocate_memory(nbytes);
        }
        memory_.push_back(target->data());
      }
    }
    for (const auto& geometry : quantizer().scratch(sizes())) {
      scratch_.push_back(allocate_scratch(geometry.nbytes_needed()));
      memory_.push_back(scratch_.back().get());
    }
  }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& pages,
           const std::function<bool(size_t)>& after_tile) override {
    static_cast<void>(pages);
    Reader reader(*source_, fast_seed);
    std::vector<std::byte> elements(static_cast<size_t>(std::min(tile, end - begin) * itemsize()));
    for (; begin < end; begin += tile) {
      const auto count = std::min(tile, end - begin);
      reader.read(Run{begin, count}, elements.data());
      quantizer().run(elements.data(), source_->dtype(), sizes(), begin, count, memory_);
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
    return source_->read_range(begin, end - begin);
  }

  Program::Origins origins() const override { return source_->origins(); }

 private:
  const record::Quantizer& quantizer() const { return *node_->quantizer; }
  c10::IntArrayRef sizes() const { return node_->operands[0].geometry.sizes; }

  /// The target that operand `i` of the node is, if it is wanted.
  Target* find(size_t i) {
    for (auto& target : targets) {
      if (target.history.buffer == node_->operands[i].buffer) {
        return &target;
      }
    }
    return nullptr;
  }
  const Target* find(size_t i) const { return const_cast<QuantizeJob*>(this)->find(i); }

  const record::NodePtr node_;
  const std::shared_ptr<const Program> source_;
  std::vector<void*> memory_;  ///< of the outputs, then of the scratch
  std::vector<c10::DataPtr> scratch_;
};

}  // namespace

void allocate_target(Target& target) {
  if (target.destination == nullptr) {
    target.memory = allocate_memory(target.history.buffer->nbytes);
  }
}

std::unique_ptr<Job> make_job(Target target, std::shared_ptr<const Program> program) {
  if (const auto walk = walk_of(*program); walk.transposed) {
    return make_turned_job(std::move(target), std::move(program), *walk.transposed);
  }
  return std::make_unique<StorageJob>(std::move(target), std::move(program));
}

std::unique_ptr<Job> make_quantize_job(std::vector<Target> targets) {
  const auto& source = targets.front().history.tail->operands[0];
  const auto& geometry = source.geometry;
  if (geometry.conjugate || geometry.negative || geometry.numel() == 0) {
    return nullptr;
  }
  auto program = Program::of(geometry, *source.buffer, source.before);
  if (!program || program->steps().empty()) {
    return nullptr;
  }
  return std::make_unique<QuantizeJob>(std::move(targets), std::move(program));
}

}  // namespace dormant::tile
