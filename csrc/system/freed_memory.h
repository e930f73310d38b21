// Memory that was freed and that the C library keeps for later.
//
// glibc serves blocks of up to 32 MiB from its heap, once some that large were freed, and keeps the
// holes that freed ones leave between others. A replay leaves such holes between final tensors: its
// intermediate results, which can be as large as the tensors themselves.
#pragma once

#include <cstddef>

namespace dormant::system {

/// Counts what a replay frees, and gives it back to the system now and then, and at the end.
class FreedMemory {
 public:
  FreedMemory() = default;
  ~FreedMemory();
  FreedMemory(const FreedMemory&) = delete;
  FreedMemory& operator=(const FreedMemory&) = delete;

  void add(size_t nbytes);

 private:
  size_t nbytes_ = 0;
};

}  // namespace dormant::system
