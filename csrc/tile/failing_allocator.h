// An allocator whose n-th call finds no memory.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstddef>

namespace dormant::tile {

/// The CPU allocator while it lives: one allocation fails, those before and after it do not.
class FailingAllocator final : public c10::Allocator {
 public:
  /// `n` counts from 0.
  explicit FailingAllocator(int n) : left_(n), before_(c10::GetCPUAllocator()) {
    c10::SetCPUAllocator(this);
  }
  ~FailingAllocator() override { c10::SetCPUAllocator(before_); }
  FailingAllocator(const FailingAllocator&) = delete;
  FailingAllocator& operator=(const FailingAllocator&) = delete;

  bool failed() const { return left_ < 0; }

  c10::DataPtr allocate(size_t nbytes) override {
    TORCH_CHECK_WITH(OutOfMemoryError, left_-- != 0, "no memory for ", nbytes, " bytes");
    return before_->allocate(nbytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return before_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    before_->copy_data(to, from, count);
  }

 private:
  std::atomic<int> left_;
  c10::Allocator* const before_;
};

}  // namespace dormant::tile
