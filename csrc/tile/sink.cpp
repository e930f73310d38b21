#include "tile/sink.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "record/lazy_storage.h"
#include "record/replay.h"
#include "tile/engine.h"
#include "tile/program.h"
#include "tile/reader.h"
#include "tile/workers.h"

namespace dormant::tile {
namespace {

using record::Geometry;

// A tile stays in a core's cache, and is large enough that the system call costs little beside it.
constexpr int64_t kTileBytes = 128 * 1024;
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
  const std::byte* memory = nullptr;
  int64_t itemsize;
  int64_t numel;
  int64_t offset;  ///< in the file
};

struct Piece {
  const Source* source;
  int64_t begin;
  int64_t end;
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
  if (const auto* history = record::history_of(output.tensor)) {
    source.program = Program::of(geometry, *history->buffer, history->tail);
    return source.program ? std::make_optional(source) : std::nullopt;
  }
  if (!output.tensor.is_cpu() || !output.tensor.is_contiguous()) {
    return std::nullopt;
  }
  source.memory = static_cast<const std::byte*>(output.tensor.const_data_ptr());
  return source;
}

std::vector<Piece> cut(const std::vector<Source>& sources) {
  std::vector<Piece> pieces;
  for (const auto& source : sources) {
    const auto length = kPieceBytes / source.itemsize / kAlignment * kAlignment;
    for (int64_t begin = 0; begin < source.numel; begin += length) {
      pieces.push_back({&source, begin, std::min(begin + length, source.numel)});
    }
  }
  return pieces;
}

/// A lazy storage with the same history: it is brought to life in place of `storage`, which stays
/// lazy.
c10::Storage twin(const c10::Storage& storage) {
  auto copy = record::make_lazy_storage(storage.nbytes());
  *record::history_of(copy.unsafeGetStorageImpl()) =
      *record::history_of(storage.unsafeGetStorageImpl());
  return copy;
}

/// Writes to one sink, and tells how far it is.
class Writer {
 public:
  Writer(const Sink& sink, const OnBytes& on_bytes, size_t total)
      : sink_(sink), workers_(at::get_num_threads(), [&on_bytes, total](size_t done) {
          if (on_bytes) {
            on_bytes(std::min(done, total), total);
          }
        }) {}

  /// Writes pieces on all threads.
  void run(const std::vector<Piece>& pieces) {
    workers_.run(pieces.size(), [&](size_t i) { run(pieces[i]); });
  }

  /// Writes a real tensor however its elements lie, and wherever: a few rows at a time.
  void gather(const at::Tensor& tensor, int64_t offset) {
    const auto itemsize = static_cast<int64_t>(tensor.element_size());
    const auto numel = tensor.numel();
    if (numel == 0) {
      return;
    }
    const auto rows = tensor.dim() == 0 ? 1 : tensor.size(0);
    const auto row_bytes = numel / rows * itemsize;
    const auto at_once = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, rows);
    for (int64_t row = 0; row < rows; row += at_once) {
      const auto part =
          tensor.dim() == 0 ? tensor : tensor.narrow(0, row, std::min(at_once, rows - row));
      const auto plain = part.resolve_conj().resolve_neg().cpu().contiguous();
      put(plain.const_data_ptr(), static_cast<size_t>(plain.numel() * itemsize), offset);
      offset += plain.numel() * itemsize;
    }
  }

  /// Tells at once: also where only a signal shall be looked for.
  void tell_now() { workers_.tell(); }

 private:
  /// Whether to go on.
  bool put(const void* data, size_t count, int64_t offset) {
    write_at(sink_, data, count, offset);
    return workers_.advance(count);
  }

  void run(const Piece& piece) {
    const auto& source = *piece.source;
    std::optional<Reader> reader;
    std::vector<std::byte> buffer;
    const auto bytes = source.program ? kTileBytes : kBlockBytes;
    const auto tile = std::max(bytes / source.itemsize / kAlignment * kAlignment, kAlignment);
    if (source.program) {
      reader.emplace(*source.program);
      buffer.resize(static_cast<size_t>(tile * source.itemsize));
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
      if (!put(data, size, source.offset + begin * source.itemsize)) {
        return;
      }
    }
  }

  const Sink& sink_;
  Workers workers_;
};

}  // namespace

void write(c10::ArrayRef<Output> outputs, const Sink& sink, const OnBytes& on_bytes) {
  const c10::impl::ExcludeDispatchKeyGuard plain(record::foreign_modes());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  size_t total = 0;
  std::vector<Source> sources;
  std::vector<const Output*> real;
  // What has to be whole, by the number of its last node: all that one node makes, and all views of
  // it, is written from one run of it.
  std::map<uint64_t, std::vector<const Output*>> whole;
  for (const auto& output : outputs) {
    total += static_cast<size_t>(output.tensor.numel()) * output.tensor.element_size();
    if (output.tensor.numel() == 0) {
      continue;
    }
    if (auto source = source_of(output)) {
      sources.push_back(std::move(*source));
    } else if (record::is_lazy(output.tensor)) {
      const auto& tail = record::history_of(output.tensor)->tail;
      whole[tail ? tail->sequence : 0].push_back(&output);
    } else {
      real.push_back(&output);
    }
  }
  std::set<const record::Source*> files;
  for (const auto& source : sources) {
    if (source.program) {
      files.merge(source.program->origins().sources);
    }
  }
  for (const auto* file : files) {
    file->check();
  }
  Writer writer(sink, on_bytes, total);
  writer.tell_now();
  writer.run(cut(sources));
  for (const auto* output : real) {
    writer.gather(output->tensor, output->offset);
  }
  for (const auto& [number, parts] : whole) {
    std::map<const c10::StorageImpl*, c10::Storage> copies;
    std::vector<c10::Storage> wanted;
    for (const auto* output : parts) {
      const auto& storage = output->tensor.storage();
      auto& copy = copies[storage.unsafeGetStorageImpl()];
      if (!copy) {
        copy = twin(storage);
        wanted.push_back(copy);
      }
    }
    Options options;
    options.mmap = Mmap::never;
    options.on_step = [&](size_t, size_t) { writer.tell_now(); };
    materialize(wanted, options);
    for (const auto* output : parts) {
      const auto& copy = copies.at(output->tensor.storage().unsafeGetStorageImpl());
      writer.gather(Geometry::of(output->tensor).over(copy), output->offset);
    }
  }
  writer.tell_now();
}

}  // namespace dormant::tile
