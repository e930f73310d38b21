#include "system/fork.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>

namespace dormant::system {
namespace {

std::atomic<bool> is_child{false};
thread_local int own_threads = 0;  // while a guard is open: how many it found

void in_child() { is_child = true; }

[[maybe_unused]] const int registered = ::pthread_atfork(nullptr, nullptr, in_child);

}  // namespace

bool forked() noexcept { return is_child; }

OneThreadIfForked::OneThreadIfForked() {
  if (forked() && at::get_num_threads() > 1) {
    own_threads = at::get_num_threads();
    one_.emplace(1);
  }
}

OneThreadIfForked::~OneThreadIfForked() {
  if (one_) {
    own_threads = 0;
  }
}

int OneThreadIfForked::own_thread_count() {
  return own_threads != 0 ? own_threads : at::get_num_threads();
}

}  // namespace dormant::system
