#include "tile/sink.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "record/lazy_storage.h"
#include "record/replay.h"
#include "system/dispatch_state.h"
#include "system/fork.h"
#include "system/workers.h"
#include "tile/engine.h"
#include "tile/program.h"
#include "tile/reader.h"
#include "tile/walk.h"

namespace dormant::tile {
namespace {

using record::Geometry;

constexpr int64_t kSmallestTileBytes = 4 * 1024;

/// Bytes of a tile: how many are best, and below how many fewer threads are better than smaller
/// tiles.
struct TileSize {
  int64_t largest;
  int64_t comfortable;
};
// Stays in a core's cache, and is large enough that the system call costs little beside it.
constexpr TileSize kTile{128 * 1024, kSmallestTileBytes};
// Where nobody asks for a bound, many threads work with smaller tiles than best, or fewer do.
constexpr size_t kUnaskedBytes = 128 * 1024 * 1024;

// Between two writes from memory an interrupt is looked for.
constexpr int64_t kBlockBytes = 4 * 1024 * 1024;
// Tiles begin where vectors and blocks of normal_ do.
constexpr int64_t kAlignment = 64;
// One thread's work: large enough that the jump to its random numbers costs little.
constexpr int64_t kPieceBytes = 16 * 1024 * 1024;

void write_at(const Sink& sink, const void* data, size_t count, int64_t offset) {
  const auto* bytes = static_cast<const char*>(data);
  while (count > 0) {
    const auto written = ::pwrite(sink.descriptor, bytes, count, offset);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      // A write of nothing without a reason: the device takes no more.
      throw std::system_error(written < 0 ? errno : ENOSPC, std::generic_category(),
                              "dormant: save: writing " + std::to_string(count) +
                                  " bytes at offset " + std::to_string(offset) + " of " +
                                  sink.path);
    }
    bytes += written;
    count -= static_cast<size_t>(written);
    offset += written;
  }
}

/// A tensor whose bytes can be made or found in any order: by a program, or in memory.
struct Source {
  std::shared_ptr<const Program> program;
  std::optional<Transposed> transposed;  ///< how the program is run, unless in order
  const std::byte* memory = nullptr;
  int64_t itemsize;
  int64_t numel;
  int64_t offset;  ///< in the file

  /// What is made at a time: elements, or columns of all matrices of a turned one.
  int64_t tile(int64_t bytes) const {
    if (transposed) {
      return rectangle_width(*transposed, bytes / itemsize);
    }
    bytes = program ? bytes : kBlockBytes;
    return std::max(bytes / itemsize / kAlignment * kAlignment, kAlignment);
  }

  int64_t tiled() const { return transposed ? numel / transposed->rows : numel; }

  /// Bytes that a thread needs for a tile of about so many bytes.
  size_t thread_bytes(int64_t tile_bytes) const {
    if (!program) {
      return 0;
    }
    const auto rows = transposed ? transposed->rows : 1;
    const auto elements = std::min(tile(tile_bytes) * rows, numel);
    return static_cast<size_t>(elements * itemsize) +
           (transposed ? static_cast<size_t>(rows) * sizeof(Run) : 0) +
           program->scratch_bytes(elements, rows);
  }
};

/// Lazy storages that one node makes and that have to be whole while views of them are written.
struct Whole {
  struct Part {
    const c10::StorageImpl* storage;
    Geometry geometry;
    int64_t offset;  ///< in the file
  };
  /// By the storage that stays lazy: another one with the same history, to be brought to life.
  std::map<const c10::StorageImpl*, c10::Storage> twins;
  std::vector<Part> parts;

  std::vector<c10::Storage> wanted() const {
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
};

struct Piece {
  const Source* source;
  int64_t begin;
  int64_t end;
};

/// How many threads work and how large their tiles are.
struct Plan {
  int threads;
  int64_t tile_bytes;
};

/// None where the tensor has to be whole to be written, or its elements have to be gathered.
std::optional<Source> source_of(const Output& output) {
  const auto geometry = Geometry::of(output.tensor);
  if (geometry.conjugate || geometry.negative) {
    return std::nullopt;
  }
  Source source;
  source.itemsize = static_cast<int64_t>(c10::elementSize(geometry.dtype));
  source.numel = geometry.numel();
  source.offset = output.offset;
  if (const auto history = record::history_of(output.tensor)) {
    source.program = Program::of(geometry, *history->buffer, history->tail, /*may_transpose=*/true);
    if (!source.program) {
      return std::nullopt;
    }
    source.transposed = walk_of(*source.program).transposed;
    return source;
  }
  if (!output.tensor.is_cpu() || !output.tensor.is_contiguous()) {
    return std::nullopt;
  }
  source.memory = static_cast<const std::byte*>(output.tensor.const_data_ptr());
  return source;
}

std::vector<Piece> cut(const std::vector<Source>& sources, const Plan& plan) {
  std::vector<Piece> pieces;
  for (const auto& source : sources) {
    const auto tile = source.tile(plan.tile_bytes);
    const auto tile_bytes =
        tile * source.itemsize * (source.transposed ? source.transposed->rows : 1);
    const auto length = std::max<int64_t>(kPieceBytes / tile_bytes, 1) * tile;
    for (int64_t begin = 0; begin < source.tiled(); begin += length) {
      pieces.push_back({&source, begin, std::min(begin + length, source.tiled())});
    }
  }
  return pieces;
}

size_t thread_bytes(const std::vector<Source>& sources, int64_t tile_bytes) {
  size_t most = 0;
  for (const auto& source : sources) {
    most = std::max(most, source.thread_bytes(tile_bytes));
  }
  return most;
}

/// Rectangles have all rows of their matrix, and each row is a write of its own: the longer they
/// are, the fewer system calls.
TileSize rectangle_size(const std::vector<Source>& sources) {
  constexpr int64_t kRowBytes = 512;
  constexpr int64_t kMiB = 1024 * 1024;
  int64_t rows = 1;
  for (const auto& source : sources) {
    rows = std::max(rows, source.transposed->rows);
  }
  const auto comfortable = std::clamp(rows, kMiB / kRowBytes, 64 * kMiB / kRowBytes) * kRowBytes;
  return {std::max(comfortable, 8 * kMiB), comfortable};
}

Plan plan_for(const std::vector<Source>& sources, const TileSize& size,
              const std::optional<size_t>& budget) {
  Plan plan{system::OneThreadIfForked::own_thread_count(), size.largest};
  const auto more_than = [&](size_t most) {
    return thread_bytes(sources, plan.tile_bytes) * static_cast<size_t>(plan.threads) > most;
  };
  const auto most = budget.value_or(kUnaskedBytes);
  while (plan.tile_bytes > size.comfortable && more_than(most)) {
    plan.tile_bytes = std::max(plan.tile_bytes / 2, size.comfortable);
  }
  while (plan.threads > 1 && more_than(most)) {
    --plan.threads;
  }
  while (budget && plan.tile_bytes > kSmallestTileBytes && more_than(*budget)) {
    plan.tile_bytes /= 2;
  }
  return plan;
}

/// What is to be written, by how it can be.
struct Contents {
  std::vector<Source> in_order;
  std::vector<Source> turned;
  std::vector<const Output*> real;
  /// By the number of the last node: all that one node makes, and all views of it, is written from
  /// one run of it.
  std::map<uint64_t, Whole> whole;
  size_t nbytes = 0;

  explicit Contents(c10::ArrayRef<Output> outputs) {
    for (const auto& output : outputs) {
      nbytes += static_cast<size_t>(output.tensor.numel()) * output.tensor.element_size();
      if (output.tensor.numel() == 0) {
        continue;
      }
      if (auto source = source_of(output)) {
        (source->transposed ? turned : in_order).push_back(std::move(*source));
      } else if (const auto history = record::history_of(output.tensor)) {
        const auto& storage = output.tensor.storage();
        auto& group = whole[history->tail ? history->tail->sequence : 0];
        if (group.twins.count(storage.unsafeGetStorageImpl()) == 0) {
          group.twins[storage.unsafeGetStorageImpl()] = record::make_twin_storage(*history);
        }
        group.parts.push_back(
            {storage.unsafeGetStorageImpl(), Geometry::of(output.tensor), output.offset});
      } else {
        real.push_back(&output);
      }
    }
  }

  void check_files() const {
    std::set<const record::Source*> files;
    for (const auto* sources : {&in_order, &turned}) {
      for (const auto& source : *sources) {
        if (source.program) {
          files.merge(source.program->origins().sources);
        }
      }
    }
    for (const auto* file : files) {
      file->check();
    }
  }

  void check_budget(size_t budget) const {
    size_t least = std::max(thread_bytes(in_order, kSmallestTileBytes),
                            thread_bytes(turned, kSmallestTileBytes));
    const char* cause = "the smallest tiles take that much";
    for (const auto& [number, group] : whole) {
      Options options;
      options.mmap = Mmap::never;
      const auto needed = group.nbytes() + smallest_budget(group.wanted(), options);
      if (needed > least) {
        least = needed;
        cause =
            "a tensor that is quantised, or can only be replayed whole, exists while it is written";
      }
    }
    TORCH_CHECK_VALUE(least <= budget, "dormant: save: memory_budget=", budget,
                      " bytes is too small, the minimum for these tensors is ", least,
                      ". Cause: ", cause, ". Next: raise memory_budget.");
  }
};

/// Writes to one sink, and tells how far it is.
class Writer {
 public:
  Writer(const Sink& sink, const WriteOptions& options, size_t total)
      : sink_(sink), options_(options), total_(total) {}

  /// Writes what can be made in any order on all threads.
  void run(const std::vector<Source>& sources, const TileSize& size) {
    const auto plan = plan_for(sources, size, options_.memory_budget);
    const auto pieces = cut(sources, plan);
    system::Workers workers(plan.threads, [this](size_t done) { tell(written_ + done); });
    workers.run(pieces.size(), [&](size_t i) {
      const auto& piece = pieces[i];
      if (piece.source->transposed) {
        run_turned(piece, plan, workers);
      } else {
        run(piece, plan, workers);
      }
    });
    for (const auto& source : sources) {
      written_ += static_cast<size_t>(source.numel * source.itemsize);
    }
  }

  /// Writes a real tensor however its elements lie, and wherever.
  void gather(const at::Tensor& tensor, int64_t offset) {
    gather(tensor, offset, block_under(options_.memory_budget));
  }

  void run(const Whole& group) {
    Options options;
    options.mmap = Mmap::never;
    if (options_.memory_budget) {
      options.memory_budget = *options_.memory_budget - group.nbytes();
    }
    options.on_step = [&](size_t, size_t) { tell(); };
    materialize(group.wanted(), options);
    for (const auto& part : group.parts) {
      gather(part.geometry.over(group.twins.at(part.storage)), part.offset,
             block_under(options.memory_budget));
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

  void run(const Piece& piece, const Plan& plan, system::Workers& workers) const {
    const auto& source = *piece.source;
    const auto tile = source.tile(plan.tile_bytes);
    std::optional<Reader> reader;
    std::vector<std::byte> buffer;
    if (source.program) {
      reader.emplace(*source.program);
      buffer.resize(static_cast<size_t>(std::min(tile, piece.end - piece.begin) * source.itemsize));
    }
    for (auto begin = piece.begin; begin < piece.end; begin += tile) {
      const auto count = std::min(tile, piece.end - begin);
      const auto size = static_cast<size_t>(count * source.itemsize);
      const auto* data = source.memory + begin * source.itemsize;
      if (reader) {
        // What nobody initialised must not show what this process had in its memory.
        std::memset(buffer.data(), 0, size);
        reader->read(Run{begin, count}, buffer.data());
        data = buffer.data();
      }
      write_at(sink_, data, size, source.offset + begin * source.itemsize);
      if (!workers.advance(size)) {
        return;
      }
    }
  }

  void run_turned(const Piece& piece, const Plan& plan, system::Workers& workers) const {
    const auto& source = *piece.source;
    const auto widest = std::min(source.tile(plan.tile_bytes), piece.end - piece.begin);
    Reader reader(*source.program);
    std::vector<std::byte> rectangle(
        static_cast<size_t>(widest * source.transposed->rows * source.itemsize));
    std::vector<Run> runs;
    for (auto column = piece.begin; column < piece.end;) {
      column +=
          cut_rectangle(*source.transposed, column, std::min(widest, piece.end - column), runs);
      std::fill(rectangle.begin(), rectangle.end(), std::byte{0});
      reader.read(runs, rectangle.data());
      const auto* data = rectangle.data();
      for (size_t i = 0; i < runs.size();) {
        const auto begin = runs[i].begin;
        auto end = begin;
        // Rows of all columns follow each other in the file, too.
        for (; i < runs.size() && runs[i].begin == end; ++i) {
          end += runs[i].count;
        }
        const auto size = static_cast<size_t>((end - begin) * source.itemsize);
        write_at(sink_, data, size, source.offset + begin * source.itemsize);
        data += size;
      }
      if (!workers.advance(static_cast<size_t>(data - rectangle.data()))) {
        return;
      }
    }
  }

  void gather(const at::Tensor& tensor, int64_t offset, int64_t block) {
    const auto nbytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    if (nbytes <= block || tensor.dim() == 0) {
      const auto plain = tensor.resolve_conj().resolve_neg().cpu().contiguous();
      write_at(sink_, plain.const_data_ptr(), static_cast<size_t>(nbytes), offset);
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

}  // namespace

void write(c10::ArrayRef<Output> outputs, const Sink& sink, const WriteOptions& wanted) {
  auto options = wanted;
  options.on_bytes = system::in_this_state(wanted.on_bytes);
  const system::OneThreadIfForked threads;
  const system::PlainDispatch plain;
  Contents contents(outputs);
  contents.check_files();
  if (options.memory_budget) {
    contents.check_budget(*options.memory_budget);
  }
  Writer writer(sink, options, contents.nbytes);
  writer.tell();
  writer.run(contents.in_order, kTile);
  writer.run(contents.turned, rectangle_size(contents.turned));
  for (const auto* output : contents.real) {
    writer.gather(output->tensor, output->offset);
  }
  for (auto& [number, group] : contents.whole) {
    writer.run(group);
    group.twins.clear();  // before the next one's tensors exist
  }
  writer.tell();
}

void check_write_budget(c10::ArrayRef<Output> outputs, size_t memory_budget) {
  const system::PlainDispatch plain;
  Contents(outputs).check_budget(memory_budget);
}

}  // namespace dormant::tile
