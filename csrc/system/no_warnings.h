// Silence for calls that the user did not make.
#pragma once

#include <c10/util/Exception.h>

namespace dormant::system {

/// While it lives, warnings of this thread go nowhere.
class NoWarnings {
 public:
  NoWarnings() : guard_(&ignore_) {}
  NoWarnings(const NoWarnings&) = delete;
  NoWarnings& operator=(const NoWarnings&) = delete;

 private:
  class Ignore : public c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };

  Ignore ignore_;
  const c10::WarningUtils::WarningHandlerGuard guard_;
};

}  // namespace dormant::system
