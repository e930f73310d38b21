#include "system/lease.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <exception>
#include <future>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "system/mutex.h"

namespace dormant::system {

#ifdef __linux__
namespace {

int open_again(int descriptor) {
  const auto path = "/proc/self/fd/" + std::to_string(descriptor);
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
}

}  // namespace

/// The leases of this process, and the thread that waits for writers.
class LeaseWatcher {
 public:
  static LeaseWatcher& instance() {
    // Never destroyed: tensors may outlive the static objects.
    static auto* const watcher = new LeaseWatcher;
    return *watcher;
  }

  bool add(Lease& lease) {
    const MutexLock lock(mutex_);
    if (!start() || !acquire(lease)) {
      return false;
    }
    leases_.insert(&lease);
    return true;
  }

  bool run_if_held(Lease& lease, const std::function<void()>& change) {
    const MutexLock lock(mutex_);
    if (lease.held_) {
      change();
    }
    return lease.held_;
  }

  void remove(Lease& lease) {
    const MutexLock lock(mutex_);
    leases_.erase(&lease);
    release(lease);
  }

 private:
  LeaseWatcher() { ::pthread_atfork(before_fork, in_parent, in_child); }

  // The parent goes on when the child has leases of its own, so that there is no moment in which a
  // writer is heard of by the parent alone.
  static void before_fork() DORMANT_THREAD_SAFETY(no_thread_safety_analysis) {
    auto& self = instance();
    self.mutex_.lock();
    if (self.leases_.empty() || ::pipe2(self.ends_.data(), O_CLOEXEC) != 0) {
      self.ends_ = {-1, -1};
    }
  }
  static void in_parent() DORMANT_THREAD_SAFETY(no_thread_safety_analysis) {
    auto& self = instance();
    if (self.ends_[0] >= 0) {
      ::close(self.ends_[1]);
      char byte = 0;
      while (::read(self.ends_[0], &byte, 1) < 0 && errno == EINTR) {
      }
      ::close(self.ends_[0]);
    }
    self.mutex_.unlock();
  }
  static void in_child() DORMANT_THREAD_SAFETY(no_thread_safety_analysis) {
    auto& self = instance();
    self.begin_child();
    if (self.ends_[0] >= 0) {
      ::close(self.ends_[0]);
      ::close(self.ends_[1]);
    }
    self.mutex_.unlock();
  }

  /// False where the system lets no thread begin.
  bool start() DORMANT_REQUIRES(mutex_) {
    if (thread_ != 0) {
      return true;
    }
    ::sigset_t all;
    ::sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread begins with these blocked
    try {
      std::promise<pid_t> begun;
      auto thread = begun.get_future();
      std::thread([this, &begun] {
        begun.set_value(::gettid());
        watch();
      }).detach();
      thread_ = thread.get();
    } catch (const std::exception&) {  // no thread, or no memory to ask for one
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return thread_ != 0;
  }

  [[noreturn]] void watch() {
    ::sigset_t wanted;
    ::sigemptyset(&wanted);
    ::sigaddset(&wanted, SIGIO);
    for (;;) {
      int signal = 0;
      ::sigwait(&wanted, &signal);
      // One signal may stand for several writers.
      const MutexLock lock(mutex_);
      for (auto* lease : leases_) {
        if (lease->held_ && ::fcntl(lease->descriptor_, F_GETLEASE) != F_RDLCK) {
          lease->before_write_();
          release(*lease);
        }
      }
    }
  }

  bool acquire(Lease& lease) DORMANT_REQUIRES(mutex_) {
    // The owner first: the lease would make the process the owner, which SIGIO ends.
    const ::f_owner_ex owner{F_OWNER_TID, thread_};
    lease.held_ = ::fcntl(lease.descriptor_, F_SETOWN_EX, &owner) == 0 &&
                  ::fcntl(lease.descriptor_, F_SETLEASE, F_RDLCK) == 0;
    return lease.held_;
  }

  static void release(Lease& lease) {
    if (std::exchange(lease.held_, false)) {
      ::fcntl(lease.descriptor_, F_SETLEASE, F_UNLCK);
    }
  }

  /// What fork copied are the open files of the parent, whose leases are the parent's.
  void begin_child() DORMANT_REQUIRES(mutex_) {
    thread_ = 0;
    const bool watched = !leases_.empty() && start();
    for (auto* lease : leases_) {
      const bool was_held = std::exchange(lease->held_, false);
      const int fresh = was_held ? open_again(lease->descriptor_) : -1;
      const bool renewed = fresh >= 0 && ::dup3(fresh, lease->descriptor_, O_CLOEXEC) >= 0;
      if (fresh >= 0) {
        ::close(fresh);
      }
      if (was_held && !(watched && renewed && acquire(*lease))) {
        lease->before_write_();  // nobody will tell
      }
    }
  }

  Mutex mutex_;
  std::set<Lease*> leases_ DORMANT_GUARDED_BY(mutex_);
  pid_t thread_ DORMANT_GUARDED_BY(mutex_) = 0;
  std::array<int, 2> ends_ DORMANT_GUARDED_BY(mutex_) = {-1, -1};  ///< of a pipe, during a fork
};

Lease::Lease(std::function<void()> before_write) : before_write_(std::move(before_write)) {}

std::unique_ptr<Lease> Lease::take(int descriptor, std::function<void()> before_write) {
  std::unique_ptr<Lease> lease(new Lease(std::move(before_write)));  // owns what is opened next
  lease->descriptor_ = open_again(descriptor);
  const bool taken = lease->descriptor_ >= 0 && LeaseWatcher::instance().add(*lease);
  return taken ? std::move(lease) : nullptr;
}

bool Lease::run_if_held(const std::function<void()>& change) {
  return LeaseWatcher::instance().run_if_held(*this, change);
}

Lease::~Lease() {
  if (descriptor_ >= 0) {
    LeaseWatcher::instance().remove(*this);
    ::close(descriptor_);
  }
}
#else
std::unique_ptr<Lease> Lease::take(int /*descriptor*/, std::function<void()> /*before_write*/) {
  return nullptr;
}

bool Lease::run_if_held(const std::function<void()>& /*change*/) { return false; }

Lease::~Lease() = default;
#endif

}  // namespace dormant::system
