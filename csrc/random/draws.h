// Consumption laws: how far an operator moves the CPU generator, told from its arguments' geometry
// alone.
//
// Recording a random operator must leave the generator where eager would, at once and without the
// values: code that reads, saves, forks or reseeds the generator later in a constructor then sees
// the truth, and the order of materialisation cannot matter.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

namespace dormant::random {

enum class Draw {
  // Draws nothing: not a random operator, or nothing to draw with these arguments (an empty tensor,
  // dropout of p = 0).
  none,
  // The generator stands where eager would have left it.
  skipped,
  // How much is drawn depends on values (rejection sampling). The generator was not touched: run
  // the operator.
  value_dependent,
  // Random, but no law is known for it or for these arguments, which eager may well refuse. The
  // generator was not
  // touched: run the operator, which also raises eager's own error.
  unknown,
};

// Advances `generator`, engine and cached normal, by exactly what eager CPU `op(args)` would draw
// from it.
//
// `args` are the operator's arguments in schema order, defaults filled in, out= arguments included.
// Of tensors only sizes, strides and dtype are read, through TensorImpl, never through the
// dispatcher, and never the data: they may be lazy. A Generator among `args` is ignored: the caller
// has resolved it to `generator` (the default one where it is absent) and holds generator.mutex_.
// Composite operators that draw through other operators (randn, dropout, ...) are covered too, so
// that a caller may ask before it decomposes them.
Draw skip(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args,
          at::CPUGeneratorImpl& generator);

}  // namespace dormant::random
