// Insurance for the consumption laws: they are facts about PyTorch's kernels, and another build may
// have other kernels (some releases drew bernoulli_ and exponential_ through MKL, from one draw of
// the generator).
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include "random/draws.h"

namespace dormant::random {

using Law = Draw (*)(c10::ArrayRef<c10::IValue>, at::CPUGeneratorImpl&);

// Whether `law` says what `op` does to a generator, tried on small real tensors of the dtypes of
// `args`, with their numbers, but with small counts of elements: a law that has another case for
// large ones must answer Draw::unknown there, for nobody could try it. Costs some tens of
// microseconds and touches no generator but its own, nor any dispatch mode that is active. True
// where it cannot be tried: where the operator takes no generator, or refuses those arguments.
// Rethrows what is not a refusal (system/refusal.h). To be called without the mutex of a generator:
// it runs the operator.
bool law_holds(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> args, Law law);

}  // namespace dormant::random
