#include "checkpoint/torch_catalog.h"

#include <c10/util/Exception.h>

#include <map>
#include <utility>

#include "checkpoint/torch_archive.h"
#include "checkpoint/torch_state.h"
#include "text/printable.h"

namespace dormant::checkpoint {

std::vector<CatalogEntry> torch_entries(const std::shared_ptr<const File>& file,
                                        const std::optional<std::string>& key) {
  file->copy_always();  // torch.save empties the file that it replaces
  const auto archive = read_torch_archive(*file);
  const auto state = find_state(archive->objects, key, {}, file->name());
  std::map<std::string, std::shared_ptr<FileStorage>> storages;
  std::vector<CatalogEntry> entries;
  for (const auto& [name, value] : state.tensors) {
    const auto tensor =
        archive->objects.tensor(value, file->name() + ": tensor " + text::in_quotes(name));
    const auto& [begin, nbytes] = archive->storages.at(tensor.storage);
    const auto item = c10::elementSize(tensor.dtype);
    auto& storage = storages[tensor.storage];
    if (storage == nullptr) {
      const auto dtype = nbytes % item == 0 ? tensor.dtype : c10::ScalarType::Byte;
      storage = std::make_shared<FileStorage>(file, dtype, begin, nbytes);
    }
    CatalogEntry entry;
    entry.entry = {name, tensor.dtype, tensor.sizes,
                   begin + static_cast<uint64_t>(tensor.offset) * item, tensor.nbytes()};
    entry.file = file;
    entry.view = std::make_shared<const StorageView>(
        StorageView{storage, tensor.strides, tensor.offset, tensor.conjugated, tensor.negated});
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace dormant::checkpoint
