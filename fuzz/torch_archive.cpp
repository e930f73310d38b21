// The input is a file of torch.save. Whatever it is, it is refused, or every tensor of its state
// dict lies in it, whole.
//
// Its first byte says how it becomes a file: as it is, or as the pickle of one that is whole
// otherwise, since few mutations leave a directory right.
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "checkpoint/memory_file.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/torch_state.h"
#include "checkpoint/zip_bytes.h"

namespace {

using namespace dormant::checkpoint;

void require(bool condition, const char* what) {
  if (!condition) {
    throw std::logic_error(what);
  }
}

std::string file_of(std::string_view input) {
  if (input.empty() || input[0] % 2 == 0) {
    return std::string(input.substr(input.empty() ? 0 : 1));
  }
  return zip_bytes({{"archive/data.pkl", std::string(input.substr(1))},
                    {"archive/data/0", std::string(24, 'x')},
                    {"archive/data/1", std::string(16, 'y')},
                    {"archive/data/2", {}}});
}

void check_tensor(const TorchArchive& archive, PickleId id, uint64_t file_size) {
  TorchTensor tensor;
  try {
    tensor = archive.objects.tensor(id, "input");
  } catch (const c10::ValueError&) {
    return;
  } catch (const c10::NotImplementedError&) {
    return;
  }
  const auto& run = archive.storages.at(tensor.storage);
  require(run.offset <= file_size && run.nbytes <= file_size - run.offset, "a storage outside");
  const auto item = c10::elementSize(tensor.dtype);
  unsigned __int128 last = static_cast<uint64_t>(tensor.offset);
  bool is_empty = false;
  require(tensor.sizes.size() == tensor.strides.size(), "sizes without strides");
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    require(tensor.sizes[i] >= 0 && tensor.strides[i] >= 0, "a negative size");
    is_empty = is_empty || tensor.sizes[i] == 0;
    last += static_cast<unsigned __int128>(tensor.sizes[i] == 0 ? 0 : tensor.sizes[i] - 1) *
            static_cast<uint64_t>(tensor.strides[i]);
    require(last < uint64_t{1} << 62 || is_empty, "a last element beyond everything");
  }
  require(is_empty || (last + 1) * item <= run.nbytes, "an element outside of the storage");
  require(tensor.nbytes() <= uint64_t{1} << 62, "more bytes than can be");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(file_of({reinterpret_cast<const char*>(data), size}));
  try {
    const auto archive = read_torch_archive(file);
    uint64_t end = 0;
    for (const auto& run : archive->checksums) {
      require(run.offset >= end && run.nbytes <= file.size() - run.offset, "runs that overlap");
      end = run.offset + run.nbytes;
    }
    for (PickleId id = 0; id < archive->pickle.size(); ++id) {
      if (archive->objects.is_tensor(id)) {
        check_tensor(*archive, id, file.size());
      }
    }
    for (const auto* key : {"", "model", "state_dict"}) {
      try {
        for (const auto& [name, value] :
             find_state(archive->objects, std::string(key), {}, "input").tensors) {
          require(archive->objects.is_tensor(value), "a name of something else");
        }
      } catch (const c10::IndexError&) {
      } catch (const c10::ValueError&) {
      }
    }
    static_cast<void>(find_state(archive->objects, std::nullopt, {}, "input"));
  } catch (const c10::ValueError&) {
  } catch (const c10::NotImplementedError&) {
  }
  return 0;
}
