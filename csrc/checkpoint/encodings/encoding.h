// What an encoding is given to find its tensors among those of a checkpoint.
//
// An encoding (a file in this folder, and a row in registry.cpp) looks at names, dtypes and sizes,
// at what config.json says, and at the values of a few small tensors; no other byte is read. What
// it finds wrong it refuses: a weight without its scale must not pass for a plain one.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/encodings/configuration.h"
#include "checkpoint/encodings/find.h"
#include "record/decoder.h"

namespace dormant::checkpoint {

/// What an encoding looks at, and where it leaves what it finds. Not for several threads.
class Scan {
 public:
  /// More bytes than this are not read from any tensor.
  static constexpr int64_t kSmall = 1 << 16;

  /// `dtype` is what was asked for; std::nullopt leaves it to each encoding. `where` is printable:
  /// the files, for messages.
  Scan(std::vector<RawTensor> tensors, Configuration configuration,
       std::optional<c10::ScalarType> dtype, std::string where, ReadSmall read);

  /// In the order of the files.
  const std::vector<RawTensor>& tensors() const { return tensors_; }
  const Configuration& configuration() const { return configuration_; }

  /// Null where there is none.
  const RawTensor* find(const std::string& name) const;

  /// The same for what has to be there: c10::ValueError says that `name` is missing for `owner`.
  const RawTensor& part(const std::string& name, const std::string& owner) const;

  /// What a library decodes to: the dtype asked for, else config.json's, else `otherwise`.
  c10::ScalarType dtype(c10::ScalarType otherwise) const;
  std::optional<c10::ScalarType> dtype_asked_for() const { return dtype_; }

  /// The bytes of a tensor. c10::ValueError where it is too large to be what it claims to be.
  std::string read(const RawTensor& tensor) const;

  /// What was found until now.
  const std::vector<Encoded>& encoded() const { return findings_.encoded; }

  /// Whether an encoding has taken a raw tensor.
  bool taken(const std::string& name) const;

  /// Makes a decoder, and adds the plain tensor that it gives. What the decoder's constructor says
  /// of sizes and dtypes (c10::ValueError) is said with names; else as the other `add`.
  template <class Decoder>
  void add(std::string name, std::vector<std::string> parts, typename Decoder::Layout layout,
           c10::ScalarType dtype, bool transposed = false) {
    std::shared_ptr<const record::Decoder> decoder;
    try {
      decoder = std::make_shared<Decoder>(std::move(layout));
    } catch (const c10::ValueError& error) {
      refuse(name, parts, error.what_without_backtrace());
    }
    add({std::move(name), std::move(parts), std::move(decoder), dtype, transposed});
  }

  /// Adds a plain tensor. c10::ValueError, with names, where a raw tensor has its name and is none
  /// of its parts, where another plain tensor has it, where a part is missing or was taken, or
  /// where the sizes or the dtype of one are not what the decoder expects.
  void add(Encoded encoded);

  /// Leaves out a raw tensor, if there is one of that name.
  void spend(const std::string& name);

  void warn(std::string message);

  /// How every message begins: "open_checkpoint: FILES: ".
  const std::string& about() const { return about_; }
  /// Where a message says what config.json says: its path, or that there is none.
  std::string configured_in() const;

  Findings finish() && { return std::move(findings_); }

  Scan(const Scan&) = delete;
  Scan& operator=(const Scan&) = delete;

 private:
  [[noreturn]] void refuse(const std::string& name, const std::vector<std::string>& parts,
                           const std::string& cause) const;

  std::vector<RawTensor> tensors_;
  std::map<std::string_view, const RawTensor*> by_name_;
  Configuration configuration_;
  std::optional<c10::ScalarType> dtype_;
  std::string about_;
  ReadSmall read_;
  std::map<std::string, std::string> owners_;  ///< plain tensors by raw ones
  std::set<std::string> names_;                ///< of plain tensors
  Findings findings_;
};

/// "Next: ..." for what a user can do about an encoding that can't be decoded.
inline constexpr const char* kNextRaw =
    "Next: get the whole checkpoint again, or pass decode=False to get the tensors as they are "
    "stored.";

}  // namespace dormant::checkpoint
