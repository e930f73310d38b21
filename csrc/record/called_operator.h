// What tests of checks before recording share: an operator with its arguments, as eager runs it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <exception>
#include <string>
#include <vector>

namespace dormant::record {

struct CalledOperator {
  std::string name;
  std::string overload;
  std::vector<c10::IValue> arguments;

  c10::OperatorHandle op() const {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + name).c_str(),
                                                          overload.c_str());
  }

  /// Whether eager runs it. Only for real arguments.
  bool accepted() const {
    torch::jit::Stack stack = arguments;
    try {
      op().callBoxed(stack);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }
};

}  // namespace dormant::record
