// What recording must know about an operator, worked out once from its row in operator_table.cpp,
// its schema and its registered kernels.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DispatchKey.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "random/draws.h"
#include "record/operator_table.h"

namespace dormant::record {

/// What happens to an operator that meets a lazy tensor, or is called inside the context.
enum class Route : uint8_t {
  metadata,     ///< reads or changes only geometry: runs as it is
  view,         ///< returns an alias of its input: runs as it is, the result stays lazy
  make_empty,   ///< aten::empty.memory_format and aten::empty_strided: a new lazy storage
  decompose,    ///< a composite operator: its kernel is called with recording still on
  set_storage,  ///< aten::set_: exchanges storages
  resize,       ///< aten::resize_
  in_place,     ///< writes some of its arguments (in-place and out= operators): recorded
  functional,   ///< returns new tensors: recorded, the geometry comes from its Meta kernel
  real,         ///< needs values or cannot be recorded: its inputs are materialized and it runs
};

struct OperatorTraits : OperatorFacts {
  Route route = Route::real;
  /// decompose: the key whose kernel is called.
  c10::DispatchKey composite_key = c10::DispatchKey::CompositeImplicitAutograd;
  /// decompose: an explicit-autograd kernel, which runs below autograd in eager.
  bool below_autograd = false;
  /// Its result depends on the geometry of its tensor arguments at most.
  bool factory = false;
  /// Moves or initializes data: stays lazy outside the context too.
  bool movement = false;
  /// Draws random numbers.
  bool random = false;
  /// in_place: the written arguments are not read.
  bool write_only = false;
  /// Autocast may change what it computes.
  bool autocast = false;
  /// The argument that takes a generator, if any.
  std::optional<size_t> generator;
  /// How far it moves the generator; null where nothing is known.
  random::CheckedLaw* law = nullptr;
  /// The tensor whose values `values` is about, if any.
  std::optional<size_t> checked;
  std::vector<size_t> written;       ///< indices of the written arguments; lists where decomposed
  std::vector<size_t> return_alias;  ///< in_place: return i is argument return_alias[i]
};

/// The traits of `op`; cached per thread, valid for the life of the thread.
const OperatorTraits& traits_of(const c10::OperatorHandle& op);

}  // namespace dormant::record
