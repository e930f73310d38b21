// Consumption laws: how far an operator moves the CPU generator, told from its arguments' geometry
// alone.
//
// Recording a random operator must leave the generator where eager would, at once and without the
// values: code that reads, saves, forks or reseeds the generator later in a constructor then sees
// the truth, and the order of materialization cannot matter.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include <optional>

namespace dormant::random {

enum class Draw {
  // Draws nothing: not a random operator, or nothing to draw with these arguments (no elements).
  none,
  // The generator stands where eager would have left it.
  skipped,
  // How much is drawn depends on values (rejection sampling). The generator was not touched: run
  // the operator.
  value_dependent,
  // Random, but without a law for it or for these arguments, which eager may well refuse. The
  // generator was not touched: run the operator, which also raises eager's own error.
  unknown,
};

// The argument that takes a generator, if any.
std::optional<size_t> generator_argument(const c10::FunctionSchema& schema);

// A consumption law, and for which dtypes it was tried in this process.
struct CheckedLaw;

// The law of an operator, null where there is none. It lives as long as the process; any thread.
CheckedLaw* law_of(const c10::OperatorHandle& op);

// Tries the law that `skip` will follow, if that was not done before: it runs `op` on small
// tensors. To be called before generator.mutex_ is taken, with the arguments of `skip`.
void prepare(CheckedLaw* law, const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args);

// Advances `generator`, engine and cached normal, by exactly what eager CPU `op(args)` would draw
// from it.
//
// Runs no operator if `prepare` was called before. `law` is law_of(op).
//
// `args` are all arguments in schema order, defaults filled in, out= included. Of tensors only
// sizes, strides and dtype are read, from their TensorImpl: they may be lazy. A Generator among
// `args` is ignored: the caller has resolved it to `generator` (the default one where it is absent)
// and holds generator.mutex_.
//
// Ask only for an operator that is recorded whole. One that is decomposed asks through its parts;
// those composites that only ever draw that way (randn, dropout, ...) are Draw::unknown.
//
// A law does not look at values: whether eager would raise an error for one (a probability above 1
// in a tensor, a negative standard deviation in a tensor) is for the caller to check.
Draw skip(CheckedLaw* law, const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args,
          at::CPUGeneratorImpl& generator);

}  // namespace dormant::random
