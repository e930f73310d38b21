#include "system/thread_count.h"

#include <ATen/Parallel.h>
#ifdef _OPENMP  // which the fuzz targets are built without
#include <omp.h>
#endif

// Where torch was built with MKL it exports this; it changes the calling thread only.
extern "C" int MKL_Set_Num_Threads_Local(int count) __attribute__((weak));

namespace dormant::system {
namespace {

void set_openmp_threads([[maybe_unused]] int count) {
#ifdef _OPENMP
  omp_set_num_threads(count);
#endif
}

}  // namespace

// What at::set_num_threads does (aten/src/ATen/ParallelOpenMP.cpp), but for the process's number.
ThreadCount::ThreadCount(int count) {
  const int now = at::get_num_threads();
  if (count == now) {
    return;
  }
  before_ = now;
  set_openmp_threads(count);
  if (MKL_Set_Num_Threads_Local != nullptr) {
    before_mkl_ = MKL_Set_Num_Threads_Local(count);
  }
}

ThreadCount::~ThreadCount() {
  if (before_ == 0) {
    return;
  }
  set_openmp_threads(before_);
  if (MKL_Set_Num_Threads_Local != nullptr) {
    MKL_Set_Num_Threads_Local(before_mkl_);
  }
}

}  // namespace dormant::system
