// How many threads PyTorch's operators use on the calling thread.
#pragma once

namespace dormant::system {

/// While it lives, operators that this thread calls split their work by `count`, and no other
/// thread notices: at::set_num_threads also stores the number for threads that have not asked yet.
class ThreadCount {
 public:
  explicit ThreadCount(int count);
  ~ThreadCount();
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_ = 0;      ///< of OpenMP; 0 where nothing was changed
  int before_mkl_ = 0;  ///< of MKL on this thread, 0 for its default
};

}  // namespace dormant::system
