// The public C++ interface to checkpoints.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <dormant/checkpoint.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "checkpoint/catalog.h"
#include "record/identity.h"
#include "record/lazy_storage.h"
#include "record/snapshot.h"
#include "record/turns.h"
#include "text/printable.h"
#include "tile/held_tensors.h"

namespace dormant {
namespace {

using checkpoint::CatalogEntry;
using text::in_quotes;

const CatalogEntry& find(const checkpoint::Catalog& catalog, const std::string& name) {
  const auto found = catalog.tensors.find(name);
  TORCH_CHECK_INDEX(found != catalog.tensors.end(), "dormant: the checkpoint has no tensor ",
                    in_quotes(name), "; it has ", catalog.tensors.size(), " tensors");
  return found->second;
}

CheckpointEntry described(const CatalogEntry& found) {
  const auto& entry = found.entry;
  CheckpointEntry result{entry.dtype, entry.sizes, {}, entry.offset, entry.nbytes, {}, {}};
  if (found.decoding == nullptr) {
    result.file = found.file->path();
    return result;
  }
  result.encoding = found.decoding->decoder->name();
  for (const auto& part : found.decoding->parts) {
    result.parts.push_back(described(part));
  }
  return result;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const auto& part : parts) {
    text += (text.empty() ? "" : ", ") + part;
  }
  return text;
}

/// One tensor of the module under all names that it has there.
struct ModuleTensor {
  at::Tensor tensor;
  std::vector<std::string> names;
  std::vector<std::string> sources;  ///< names in the checkpoint, under which it is
  bool fits = true;                  ///< whether they have its sizes
};

/// What no other thread may load meanwhile.
std::vector<const void*> things_of(const NamedTensors& tensors) {
  std::vector<const void*> things;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.defined() && tensor.has_storage()) {
      things.push_back(tensor.storage().unsafeGetStorageImpl());
    }
  }
  return things;
}

std::vector<ModuleTensor> distinct(const NamedTensors& tensors) {
  std::map<record::Identity, size_t> known;
  std::vector<ModuleTensor> found;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) {
      continue;  // libtorch's way to say that a layer has no bias
    }
    TORCH_CHECK_VALUE(!tensor.is_meta(), "load: ", in_quotes(name),
                      " is on the meta device and cannot hold values. Next: build the model under "
                      "dormant::LazyInit instead.");
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.has_storage() && tensor.is_cpu(), "load: ", in_quotes(name),
                                " is a tensor of layout ", tensor.layout(), " on ", tensor.device(),
                                ", expected a strided one on the CPU");
    const auto [place, added] = known.emplace(record::identity_of(tensor), found.size());
    if (added) {
      found.push_back({tensor, {}, {}, true});
    }
    found[place->second].names.push_back(name);
  }
  return found;
}

/// Names of the checkpoint by what the module calls them.
std::map<std::string, std::string> renamed(
    const Checkpoint& checkpoint,
    const std::function<std::optional<std::string>(const std::string&)>& rename) {
  std::map<std::string, std::string> names;
  for (const auto& name : checkpoint.names()) {
    const auto own = rename ? rename(name) : name;
    if (!own) {
      continue;
    }
    const auto [found, added] = names.emplace(*own, name);
    TORCH_CHECK_VALUE(added, "load: rename gives ", in_quotes(found->first),
                      " for two tensors of the checkpoint, ", in_quotes(found->second), " and ",
                      in_quotes(name), ", expected different names");
  }
  return names;
}

bool same_bytes(const CatalogEntry& a, const CatalogEntry& b) {
  constexpr size_t kBlock = 1024 * 1024;
  if (a.entry.dtype != b.entry.dtype || a.entry.sizes != b.entry.sizes) {
    return false;
  }
  const auto width = static_cast<int64_t>(c10::elementSize(a.entry.dtype));
  const auto all = static_cast<int64_t>(a.entry.nbytes) / width;
  const auto step = static_cast<int64_t>(kBlock) / width;
  for (int64_t done = 0; done < all; done += step) {
    // A copy, because a view would materialize all of the tensor.
    const auto part = [&](const CatalogEntry& entry) {
      auto copy = entry.tensor().flatten().narrow(0, done, std::min(step, all - done)).clone();
      materialize({copy});
      return copy;
    };
    const auto one = part(a);
    const auto other = part(b);
    if (std::memcmp(one.const_data_ptr(), other.const_data_ptr(), one.nbytes()) != 0) {
      return false;
    }
  }
  return true;
}

/// c10::ValueError unless all tensors have the same bytes.
void check_equal(const checkpoint::Catalog& catalog, const ModuleTensor& tensor) {
  const auto& first = find(catalog, tensor.sources.front());
  for (size_t i = 1; i < tensor.sources.size(); ++i) {
    const auto& second = find(catalog, tensor.sources[i]);
    TORCH_CHECK_VALUE(same_bytes(first, second), "load: ", in_quotes(tensor.names[0]), " and ",
                      in_quotes(tensor.names[1]),
                      " are one tensor in the module, and the checkpoint has different values for "
                      "them: ",
                      in_quotes(first.entry.name), " in ", first.home(), " and ",
                      in_quotes(second.entry.name), " in ", second.home(),
                      ". Next: untie the module, or leave one out with `rename`.");
  }
}

/// For a message: where an entry is.
std::string home(const CheckpointEntry& entry) {
  return entry.parts.empty()
             ? c10::str(text::printable(entry.file), " at byte ", entry.offset)
             : text::printable(entry.parts.front().file) + ", decoded from " + entry.encoding;
}

/// What will be done, decided before anything is.
struct Match {
  std::vector<ModuleTensor> tensors;
  LoadReport report;
};

/// Whether a tensor of the module takes one of these sizes. A scalar takes a vector of one, as
/// Module._load_from_state_dict of Python does: PyTorch 0.3 saved scalars so.
bool fits(const CheckpointEntry& entry, const at::Tensor& tensor) {
  const at::IntArrayRef sizes(entry.sizes);
  return sizes == tensor.sizes() || (tensor.dim() == 0 && sizes == at::IntArrayRef{1});
}

/// A part of the error about names; "" where there are none.
std::string listed(const char* what, const std::vector<std::string>& names) {
  return names.empty() ? "" : c10::str(" ", names.size(), " ", what, ": ", joined(names), ".");
}

Match match(const NamedTensors& tensors, const Checkpoint& checkpoint,
            const checkpoint::Catalog& catalog, const LoadOptions& options) {
  Match result;
  result.tensors = distinct(tensors);
  auto available = renamed(checkpoint, options.rename);
  const auto offered = available.size();
  std::vector<std::string> missing;
  std::vector<std::string> mismatched;
  for (auto& tensor : result.tensors) {
    for (const auto& name : tensor.names) {
      const auto found = available.find(name);
      if (found == available.end()) {
        continue;
      }
      const auto source = found->second;
      available.erase(found);
      tensor.sources.push_back(source);
      const auto entry = checkpoint.entry(source);
      if (!fits(entry, tensor.tensor)) {
        tensor.fits = false;
        mismatched.push_back(c10::str(in_quotes(name), " has sizes ", at::IntArrayRef(entry.sizes),
                                      " in ", home(entry), ", expected ", tensor.tensor.sizes()));
      }
    }
    if (tensor.sources.size() > 1) {
      check_equal(catalog, tensor);
    }
    const bool is_loaded = !tensor.sources.empty() && tensor.fits;
    auto& list = is_loaded                ? result.report.loaded
                 : is_lazy(tensor.tensor) ? result.report.initialized
                                          : result.report.kept;
    list.insert(list.end(), tensor.names.begin(), tensor.names.end());
    if (tensor.sources.empty()) {
      std::transform(tensor.names.begin(), tensor.names.end(), std::back_inserter(missing),
                     [](const auto& name) { return in_quotes(name); });
    }
  }
  std::vector<std::string> unexpected;
  for (const auto& [name, source] : available) {
    unexpected.push_back(in_quotes(source));
    result.report.ignored.push_back(source);
  }
  // With Unexpected::ignore that would be a model of random values.
  TORCH_CHECK_INDEX(offered == 0 || tensors.empty() || unexpected.size() < offered,
                    "load: no name of the checkpoint is a name of the module; nothing was "
                    "changed.",
                    listed("tensors of the checkpoint are not in the module", unexpected),
                    listed("names of the module are not in the checkpoint", missing),
                    " Next: pass `rename`, or the checkpoint of this module.");
  std::string refusal;
  std::vector<std::string> accepting;
  if (options.missing == Missing::error && !missing.empty()) {
    refusal += listed("names of the module are not in the checkpoint", missing);
    accepting.emplace_back("missing = Missing::initialize");
  }
  if (options.unexpected == Unexpected::error && !unexpected.empty()) {
    refusal += listed("tensors of the checkpoint are not in the module", unexpected);
    accepting.emplace_back("unexpected = Unexpected::ignore");
  }
  if (options.mismatched == Mismatched::error && !mismatched.empty()) {
    refusal += listed("tensors have other sizes in the checkpoint", mismatched);
    accepting.emplace_back("mismatched = Mismatched::initialize");
  }
  TORCH_CHECK_INDEX(refusal.empty(),
                    "load: the checkpoint does not fit the module; nothing was changed.", refusal,
                    " Next: pass `rename`, or accept it with ", joined(accepting), ".");
  return result;
}

/// For an error: which real tensors are no longer what they were.
std::string begun_names(const std::vector<ModuleTensor>& tensors,
                        const std::vector<const c10::StorageImpl*>& begun) {
  const std::set<const c10::StorageImpl*> storages(begun.begin(), begun.end());
  std::vector<std::string> names;
  for (const auto& tensor : tensors) {
    if (storages.contains(tensor.tensor.storage().unsafeGetStorageImpl())) {
      names.push_back(in_quotes(tensor.names.front()));
    }
  }
  return names.empty() ? ""
                       : "load: these tensors, real before, were written in whole or in part: " +
                             joined(names);
}

/// Without the system's words for the code, which the constructor appends.
std::string text_of(const std::system_error& error) {
  std::string text = error.what();
  const auto message = ": " + error.code().message();
  if (text.ends_with(message)) {
    text.resize(text.size() - message.size());
  }
  return text;
}

}  // namespace

Checkpoint::Checkpoint(std::shared_ptr<const checkpoint::Catalog> catalog)
    : catalog_(std::move(catalog)) {}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, found] : catalog_->tensors) {
    names.push_back(name);
  }
  return names;
}

bool Checkpoint::contains(const std::string& name) const {
  return catalog_->tensors.contains(name);
}

CheckpointEntry Checkpoint::entry(const std::string& name) const {
  return described(find(*catalog_, name));
}

at::Tensor Checkpoint::operator[](const std::string& name) const {
  return find(*catalog_, name).tensor();
}

const std::map<std::string, std::string>& Checkpoint::metadata() const {
  return catalog_->metadata;
}

const std::vector<std::string>& Checkpoint::warnings() const { return catalog_->warnings; }

Checkpoint open_checkpoint(const std::string& path, const OpenOptions& options) {
  return Checkpoint(std::make_shared<const checkpoint::Catalog>(checkpoint::open_catalog(
      path, {.decode = options.decode, .dtype = options.dtype, .key = options.key})));
}

LoadReport load(const NamedTensors& tensors, const Checkpoint& checkpoint,
                const LoadOptions& options) {
  const record::Turn turn(things_of(tensors), [&] {
    if (options.on_step) {
      options.on_step(0, 0);
    }
  });
  auto [matched, report] = match(tensors, checkpoint, *checkpoint.catalog_, options);
  std::vector<at::Tensor> all;
  for (const auto& each : matched) {
    all.push_back(each.tensor);
  }
  tile::HeldTensors held(all);
  const auto put_back = [&, &matched = matched] {
    held.restore();
    return begun_names(matched, held.begun());
  };
  try {
    const at::NoGradGuard values_only;
    for (const auto& each : matched) {
      if (!each.sources.empty() && each.fits) {
        const auto source = checkpoint[each.sources.front()];
        each.tensor.copy_(each.tensor.dim() == 0 ? source.view(at::IntArrayRef()) : source);
      }
    }
    const tile::Options engine{
        {.memory_budget = options.memory_budget, .mmap = options.mmap, .on_step = options.on_step}};
    for (const auto& storage : held.materialize(all, engine)) {
      report.bytes += storage.nbytes;
    }
    held.keep();
  } catch (c10::Error& error) {
    if (const auto names = put_back(); !names.empty()) {
      error.add_context(names);
    }
    throw;
  } catch (const std::system_error& error) {
    const auto names = put_back();
    if (names.empty()) {
      throw;
    }
    throw std::system_error(error.code(), text_of(error) + "; " + names);
  } catch (...) {
    put_back();
    throw;
  }
  return std::move(report);  // a copy could fail, and the module is loaded
}

}  // namespace dormant
