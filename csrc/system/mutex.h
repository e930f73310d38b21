// A mutex whose use clang checks (-Wthread-safety, `make lint`): what is GUARDED_BY it is touched
// only where it is held.
#pragma once

#include <mutex>

#if defined(__clang__)
#define DORMANT_THREAD_SAFETY(attribute) __attribute__((attribute))
#else
#define DORMANT_THREAD_SAFETY(attribute)
#endif

#define DORMANT_CAPABILITY DORMANT_THREAD_SAFETY(capability("mutex"))
#define DORMANT_SCOPED_CAPABILITY DORMANT_THREAD_SAFETY(scoped_lockable)
#define DORMANT_GUARDED_BY(mutex) DORMANT_THREAD_SAFETY(guarded_by(mutex))
#define DORMANT_REQUIRES(mutex) DORMANT_THREAD_SAFETY(requires_capability(mutex))
#define DORMANT_ACQUIRE(...) DORMANT_THREAD_SAFETY(acquire_capability(__VA_ARGS__))
#define DORMANT_RELEASE(...) DORMANT_THREAD_SAFETY(release_capability(__VA_ARGS__))

namespace dormant::system {

class DORMANT_CAPABILITY Mutex {
 public:
  void lock() DORMANT_ACQUIRE() { mutex_.lock(); }
  void unlock() DORMANT_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class DORMANT_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) DORMANT_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() DORMANT_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace dormant::system
