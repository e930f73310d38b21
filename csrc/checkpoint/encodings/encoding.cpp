#include "checkpoint/encodings/encoding.h"

#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <utility>

#include "text/printable.h"

namespace dormant::checkpoint {

using text::in_quotes;

Scan::Scan(std::vector<RawTensor> tensors, Configuration configuration,
           std::optional<c10::ScalarType> dtype, std::string where, ReadSmall read)
    : tensors_(std::move(tensors)),
      configuration_(std::move(configuration)),
      dtype_(dtype),
      about_("open_checkpoint: " + where + ": "),
      read_(std::move(read)) {
  for (const auto& tensor : tensors_) {
    by_name_.emplace(tensor.name, &tensor);
  }
}

const RawTensor* Scan::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const RawTensor& Scan::part(const std::string& name, const std::string& owner) const {
  const auto* found = find(name);
  TORCH_CHECK_VALUE(found != nullptr, about_, in_quotes(owner), " is encoded, but ",
                    in_quotes(name), ", which is needed to decode it, is missing. ", kNextRaw);
  return *found;
}

c10::ScalarType Scan::dtype(c10::ScalarType otherwise) const {
  return dtype_.value_or(configuration_.dtype.value_or(otherwise));
}

std::string Scan::read(const RawTensor& tensor) const {
  uint64_t nbytes = c10::elementSize(tensor.dtype);
  for (const auto size : tensor.sizes) {
    const bool overflow = c10::mul_overflows(nbytes, static_cast<uint64_t>(size), &nbytes);
    TORCH_CHECK_VALUE(!overflow && nbytes <= kSmall, about_, in_quotes(tensor.name), " has sizes ",
                      c10::IntArrayRef(tensor.sizes), " of ", tensor.dtype, ", expected at most ",
                      kSmall, " bytes. ", kNextRaw);
  }
  auto bytes = read_(tensor);
  TORCH_INTERNAL_ASSERT(bytes.size() == nbytes);
  return bytes;
}

bool Scan::taken(const std::string& name) const {
  return owners_.contains(name) || findings_.spent.contains(name);
}

void Scan::add(Encoded encoded) {
  const auto& name = encoded.name;
  const auto& parts = encoded.parts;
  TORCH_CHECK_VALUE(
      find(name) == nullptr || std::find(parts.begin(), parts.end(), name) != parts.end(), about_,
      in_quotes(name), " is in the checkpoint twice: plain, and encoded in ",
      in_quotes(parts.front()), ". Cause: files of different checkpoints are mixed. ", kNextRaw);
  TORCH_CHECK_VALUE(names_.insert(name).second, about_, in_quotes(name),
                    " is encoded twice, the second time in ", in_quotes(parts.front()),
                    ". Cause: files of different checkpoints are mixed. ", kNextRaw);
  const auto expected = encoded.decoder->parts();
  TORCH_INTERNAL_ASSERT(expected.size() == parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& raw = part(parts[i], name);
    TORCH_CHECK_VALUE(raw.dtype == expected[i].dtype &&
                          c10::IntArrayRef(raw.sizes) == c10::IntArrayRef(expected[i].sizes),
                      about_, in_quotes(raw.name), " has sizes ", c10::IntArrayRef(raw.sizes),
                      " of ", raw.dtype, ", expected ", c10::IntArrayRef(expected[i].sizes), " of ",
                      expected[i].dtype, " for ", in_quotes(name), " in ", encoded.decoder->name(),
                      ". ", kNextRaw);
    const auto [owner, added] = owners_.emplace(raw.name, name);
    TORCH_CHECK_VALUE(added, about_, in_quotes(raw.name), " is part of ", in_quotes(name),
                      " and of ", in_quotes(owner->second), ", expected one of them. ", kNextRaw);
  }
  findings_.encoded.push_back(std::move(encoded));
}

void Scan::refuse(const std::string& name, const std::vector<std::string>& parts,
                  const std::string& cause) const {
  std::string list;
  for (const auto& part : parts) {
    list += (list.empty() ? "" : ", ") + in_quotes(part);
  }
  TORCH_CHECK_VALUE(false, about_, in_quotes(name), " cannot be decoded from ", list, ": ", cause,
                    ". ", kNextRaw);
}

void Scan::spend(const std::string& name) {
  if (find(name) != nullptr) {
    findings_.spent.insert(name);
  }
}

void Scan::warn(std::string message) { findings_.warnings.push_back(std::move(message)); }

std::string Scan::configured_in() const {
  return configuration_.file.empty() ? "(there is no config.json)" : configuration_.file;
}

}  // namespace dormant::checkpoint
