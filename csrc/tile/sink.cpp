#include "tile/sink.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "record/lazy_storage.h"
#include "system/dispatch_state.h"
#include "system/faults.h"
#include "system/fork.h"
#include "system/freed_memory.h"
#include "tile/engine.h"
#include "tile/pass.h"
#include "tile/program_job.h"

namespace dormant::tile {
namespace {

using record::Geometry;

// Where nobody asks for a bound, many threads work with smaller tiles than best, or fewer do.
constexpr size_t kUnaskedBytes = 128 * 1024 * 1024;
// Between two writes from memory an interrupt is looked for.
constexpr int64_t kBlockBytes = 4 * 1024 * 1024;
// Each row of a rectangle is a write of its own: the longer they are, the fewer system calls.
constexpr Medium kSink{/*in_place=*/false, {.row_bytes = 512, .best = 8 << 20}};

/// A lazy tensor's elements, made on their way to the sink.
class SinkJob final : public ProgramJob {
 public:
  SinkJob(std::shared_ptr<const Program> program, const Sink& sink, int64_t offset)
      : ProgramJob(program, Run{0, program->numel()}, kSink), sink_(sink), offset_(offset) {}

 private:
  void store(int64_t element, const std::byte* data, size_t nbytes) const override {
    sink_.write(data, nbytes, offset_ + element * itemsize());
  }

  const Sink& sink_;
  const int64_t offset_;
};

/// A real tensor whose elements lie in memory as they shall in the sink.
class CopyJob final : public Job {
 public:
  CopyJob(const Output& output, const Sink& sink)
      : tensor_(output.tensor),
        numel_(tensor_.numel()),
        itemsize_(static_cast<int64_t>(tensor_.element_size())),
        memory_(static_cast<const std::byte*>(tensor_.const_data_ptr())),
        sink_(sink),
        offset_(output.offset) {}

  int64_t numel() const override { return numel_; }
  int64_t itemsize() const override { return itemsize_; }
  int64_t tile(int64_t /*bytes*/) const override { return kBlockBytes / itemsize_; }
  size_t thread_bytes(int64_t /*elements*/) const override { return 0; }

  bool run(int64_t begin, int64_t end, int64_t tile, system::Pages& /*pages*/,
           const std::function<bool(size_t)>& after_tile) override {
    for (; begin < end; begin += tile) {
      const auto nbytes = static_cast<size_t>(std::min(tile, end - begin) * itemsize_);
      sink_.write(memory_ + begin * itemsize_, nbytes, offset_ + begin * itemsize_);
      if (!after_tile(nbytes)) {
        return false;
      }
    }
    return true;
  }

 private:
  const at::Tensor tensor_;
  const int64_t numel_;
  const int64_t itemsize_;
  const std::byte* const memory_;
  const Sink& sink_;
  const int64_t offset_;
};

/// Lazy storages that one node makes and that have to be whole while views of them are written; but
/// packed elements go to the sink as they are made.
struct Group {
  /// By the storage that stays lazy: another one with the same history, to be materialized.
  std::map<const c10::StorageImpl*, c10::Storage> twins;
  std::vector<const Output*> views;
  std::vector<const Output*> packed;  ///< each is all packed elements of the node
  Jobs jobs;                          ///< the one that writes these and makes the twins

  void add_view(const Output& output, const record::History& history) {
    auto& twin = twins[output.tensor.storage().unsafeGetStorageImpl()];
    if (!twin) {
      twin = record::make_twin_storage(history);
    }
    views.push_back(&output);
  }

  void add_packed(const Output& output, const record::History& history) {
    packed.push_back(&output);
    packed_history_ = history;
  }

  /// To be called when everything is in its place. What the node reads may have no program: then
  /// the packed elements are views like others.
  void plan(const Sink& sink) {
    if (packed.empty()) {
      return;
    }
    std::vector<Target> targets;
    for (const auto& [storage, twin] : twins) {
      const auto own = *record::history_of(twin.unsafeGetStorageImpl());
      targets.push_back({twin, own, 0, {}, nullptr, {}});
    }
    std::vector<int64_t> places;
    for (const auto* output : packed) {
      places.push_back(output->offset);
    }
    const auto store = [&sink, places](int64_t begin, const std::byte* data, int64_t nbytes) {
      for (const auto place : places) {
        sink.write(data, static_cast<size_t>(nbytes), place + begin);
      }
    };
    if (auto job = make_quantize_job(packed_history_.tail, std::move(targets), store)) {
      jobs.push_back(std::move(job));
      return;
    }
    for (const auto* output : std::exchange(packed, {})) {
      add_view(*output, packed_history_);
    }
  }

  std::vector<c10::Storage> storages() const {
    std::vector<c10::Storage> storages;
    for (const auto& [storage, twin] : twins) {
      storages.push_back(twin);
    }
    return storages;
  }
  size_t nbytes() const {
    size_t sum = 0;
    for (const auto& [storage, twin] : twins) {
      sum += twin.nbytes();
    }
    return sum;
  }

 private:
  record::History packed_history_;
};

/// Whether `tensor`, which has that history, is all packed elements of a quantize node, in order.
bool is_packed(const at::Tensor& tensor, const record::History& history) {
  if (!history.tail || history.tail->kind != record::NodeKind::quantize) {
    return false;
  }
  const auto& packed = history.tail->operands[1];
  return packed.buffer == history.buffer && tensor.is_contiguous() &&
         tensor.storage_offset() == 0 && tensor.nbytes() == packed.geometry.nbytes_needed();
}

/// They are made in memory of their own, never shown in place.
Options options_for_groups() {
  Options options;
  options.mmap = Mmap::never;
  return options;
}

/// What is to be written, by how it can be.
struct Contents {
  Jobs in_order;
  Jobs by_rectangles;
  std::vector<Output> real;
  /// By the number of the last node: all that one node makes, and all views of it, is written from
  /// one run of it.
  std::map<uint64_t, Group> groups;
  size_t nbytes = 0;

  Contents(c10::ArrayRef<Output> outputs, const Sink& sink) {
    for (const auto& output : outputs) {
      nbytes += output.tensor.nbytes();
      if (output.tensor.numel() == 0) {
        continue;
      }
      // Another thread's load may make a real tensor lazy, or the reverse, at any moment.
      const auto found = record::history_or_values_of(output.tensor);
      if (const auto* history = std::get_if<record::History>(&found)) {
        add(output, *history, sink);
        continue;
      }
      const Output real_output{std::get<at::Tensor>(found), output.offset};
      const auto& tensor = real_output.tensor;
      if (tensor.has_storage() && tensor.is_cpu() && tensor.is_contiguous() && !tensor.is_conj() &&
          !tensor.is_neg()) {
        in_order.push_back(std::make_unique<CopyJob>(real_output, sink));
      } else {
        real.push_back(real_output);
      }
    }
    for (auto& [number, group] : groups) {
      group.plan(sink);
    }
  }

  void check_files() const {
    std::set<const record::Source*> files;
    const auto add = [&](const Jobs& jobs) {
      for (const auto& job : jobs) {
        files.merge(job->origins().sources);
      }
    };
    add(in_order);
    add(by_rectangles);
    for (const auto& [number, group] : groups) {
      add(group.jobs);
    }
    for (const auto* file : files) {
      file->check();
    }
  }

  void check_budget(const WriteOptions& options) const {
    size_t least = 0;
    for (const auto* jobs : {&in_order, &by_rectangles}) {
      least = std::max(least, bytes_needed(*jobs, plan_for(*jobs, 0)));
    }
    const char* cause = "the smallest tiles need that much";
    for (const auto& [number, group] : groups) {
      const auto making = group.jobs.empty()
                              ? smallest_budget(group.storages(), options_for_groups())
                              : bytes_needed(group.jobs, plan_for(group.jobs, 0));
      const auto needed = group.nbytes() + making;
      if (needed > least) {
        least = needed;
        cause =
            "what belongs to a quantized tensor, or one that can only be replayed whole, exists "
            "while it is written";
      }
    }
    tile::check_budget(options.operation, *options.memory_budget, options.sink_bytes + least, cause,
                       "raise memory_budget");
  }

 private:
  void add(const Output& output, const record::History& history, const Sink& sink) {
    if (auto program = Program::of(Geometry::of(output.tensor), *history.buffer, history.tail)) {
      auto job = std::make_unique<SinkJob>(std::move(program), sink, output.offset);
      (job->by_rectangles() ? by_rectangles : in_order).push_back(std::move(job));
      return;
    }
    auto& group = groups[history.tail ? history.tail->sequence : 0];
    if (is_packed(output.tensor, history)) {
      group.add_packed(output, history);
    } else {
      group.add_view(output, history);
    }
  }
};

/// Writes to one sink, and tells how far it is.
class Writer {
 public:
  Writer(const Sink& sink, const WriteOptions& options, size_t total)
      : sink_(sink), options_(options), total_(total) {}

  /// Writes what can be made in any order on all threads.
  void write(const Jobs& jobs) {
    const auto plan = plan_for(jobs, options_.memory_budget, kUnaskedBytes);
    run(jobs, plan, [this](size_t done) { tell(written_ + done); });
    for (const auto& job : jobs) {
      written_ += static_cast<size_t>(job->numel() * job->itemsize());
    }
  }

  /// Writes a real tensor however its elements lie, and wherever.
  void gather(const at::Tensor& tensor, int64_t offset) {
    gather(tensor, offset, block_under(options_.memory_budget));
  }

  void write(const Group& group) {
    auto options = options_for_groups();
    if (options_.memory_budget) {
      options.memory_budget = *options_.memory_budget - group.nbytes();
    }
    if (group.jobs.empty()) {
      options.on_step = [&](size_t, size_t) { tell(); };
      materialize(group.storages(), options);
    } else {
      write_packed(group, options.memory_budget);
    }
    for (const auto* view : group.views) {
      const auto& twin = group.twins.at(view->tensor.storage().unsafeGetStorageImpl());
      gather(Geometry::of(view->tensor).over(twin), view->offset,
             block_under(options.memory_budget));
    }
  }

  void write_packed(const Group& group, std::optional<size_t> budget) {
    const auto& job = *group.jobs.front();
    size_t nbytes = 0;
    for (const auto* output : group.packed) {
      nbytes += output->tensor.nbytes();
    }
    const auto all = static_cast<double>(job.numel() * job.itemsize());
    const auto plan = plan_for(group.jobs, budget, kUnaskedBytes);
    run(group.jobs, plan, [&](size_t done) {
      const auto share = static_cast<double>(done) / all;
      tell(written_ + static_cast<size_t>(share * static_cast<double>(nbytes)));
    });
    written_ += nbytes;
    for (auto& target : group.jobs.front()->targets) {
      record::commit(target.storage.unsafeGetStorageImpl(), target.history,
                     std::move(target.memory));
    }
  }

  /// Tells at once: also where only a signal shall be looked for.
  void tell() const { tell(written_); }

 private:
  void tell(size_t done) const {
    if (options_.on_bytes) {
      options_.on_bytes(std::min(done, total_), total_);
    }
  }

  /// Bytes that are gathered at a time; they may have to be copied several times on their way.
  static int64_t block_under(const std::optional<size_t>& budget) {
    constexpr size_t kCopies = 4;
    const auto most = static_cast<size_t>(kBlockBytes);
    return budget ? static_cast<int64_t>(std::clamp(*budget / kCopies,
                                                    static_cast<size_t>(kSmallestTileBytes), most))
                  : kBlockBytes;
  }

  void gather(const at::Tensor& tensor, int64_t offset, int64_t block) {
    const auto nbytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    if (nbytes <= block || tensor.dim() == 0) {
      const auto plain = tensor.resolve_conj().resolve_neg().cpu().contiguous();
      sink_.write(plain.const_data_ptr(), static_cast<size_t>(nbytes), offset);
      written_ += static_cast<size_t>(nbytes);
      tell();
      return;
    }
    const auto rows = tensor.size(0);
    const auto row_bytes = nbytes / rows;
    const auto at_once = std::clamp<int64_t>(block / row_bytes, 1, rows);
    for (int64_t row = 0; row < rows; row += at_once) {
      gather(at_once == 1 ? tensor.select(0, row)
                          : tensor.narrow(0, row, std::min(at_once, rows - row)),
             offset + row * row_bytes, block);
    }
  }

  const Sink& sink_;
  const WriteOptions& options_;
  const size_t total_;
  size_t written_ = 0;
};

/// Takes nothing.
class Nowhere final : public Sink {
  void write(const void* /*data*/, size_t /*nbytes*/, int64_t /*offset*/) const override {}
};

}  // namespace

void FileSink::write(const void* data, size_t nbytes, int64_t offset) const {
  const auto* bytes = static_cast<const char*>(data);
  while (nbytes > 0) {
    const auto written = system::is_due(system::Fault::write)
                             ? ssize_t{-1}
                             : ::pwrite(descriptor_, bytes, nbytes, offset);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      // A write of nothing without a reason: the device takes no more.
      throw std::system_error(written < 0 ? errno : ENOSPC, std::generic_category(),
                              "save: writing " + std::to_string(nbytes) + " bytes at offset " +
                                  std::to_string(offset) + " of " + path_);
    }
    bytes += written;
    nbytes -= static_cast<size_t>(written);
    offset += written;
  }
}

void write(c10::ArrayRef<Output> outputs, const Sink& sink, const WriteOptions& wanted) {
  auto options = wanted;
  options.on_bytes = system::in_this_state(wanted.on_bytes);
  const system::OneThreadIfForked threads;
  const system::PlainDispatch plain;
  Contents contents(outputs, sink);
  contents.check_files();
  if (options.memory_budget) {
    contents.check_budget(options);
    *options.memory_budget -= options.sink_bytes;
  }
  Writer writer(sink, options, contents.nbytes);
  writer.tell();
  writer.write(contents.in_order);
  writer.write(contents.by_rectangles);
  for (const auto& [tensor, offset] : contents.real) {
    writer.gather(tensor, offset);
  }
  system::FreedMemory freed;
  for (auto& [number, group] : contents.groups) {
    writer.write(group);
    const auto nbytes = group.nbytes();
    group.jobs.clear();  // before the next one's tensors exist
    group.twins.clear();
    freed.add(nbytes);
  }
  writer.tell();
}

void check_write_budget(c10::ArrayRef<Output> outputs, size_t memory_budget) {
  const system::PlainDispatch plain;
  const Nowhere nowhere;
  Contents(outputs, nowhere).check_budget({.memory_budget = memory_budget});
}

}  // namespace dormant::tile
