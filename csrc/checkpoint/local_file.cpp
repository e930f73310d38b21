#include "checkpoint/local_file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/vfs.h>
#endif

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <system_error>
#include <utility>

#include "checkpoint/file_mapping.h"
#include "system/faults.h"
#include "text/printable.h"

namespace dormant::checkpoint {
namespace {

// The system reads no more at once (the manual of read(2)).
constexpr size_t kMostBytes = 0x7ffff000;

std::string absolute(const std::string& path) {
  std::error_code error;
  const auto result = std::filesystem::absolute(path, error);
  return error ? path : result.string();
}

}  // namespace

std::shared_ptr<const LocalFile> LocalFile::open(const std::string& path) {
  // The owner first: where there is no memory for it, nothing is open.
  const std::shared_ptr<LocalFile> file(new LocalFile(absolute(path)));
  // O_NONBLOCK: a named pipe would block until somebody writes to it. It means nothing to a file.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  file->descriptor_ = system::is_due(system::Fault::read) ? -1 : ::open(path.c_str(), kFlags);
  if (file->descriptor_ < 0) {
    throw std::system_error(errno, std::generic_category(),
                            "open_checkpoint: opening " + text::printable(path));
  }
  struct ::stat status{};
  if (::fstat(file->descriptor_, &status) != 0) {
    file->fail(errno, "reading the size of");
  }
  TORCH_CHECK_VALUE(S_ISREG(status.st_mode), "open_checkpoint: ", file->name(), " is ",
                    S_ISDIR(status.st_mode) ? "a folder" : "a device, pipe or socket",
                    ", expected a file");
  file->identity_ = identity_of(status);
  file->set_size(file->identity_.size);
  file->is_local_ = is_local(file->descriptor_);
  return file;
}

LocalFile::LocalFile(std::string path) : File(std::move(path)) {}

LocalFile::~LocalFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

LocalFile::Identity LocalFile::identity_of(const struct ::stat& status) noexcept {
#ifdef __APPLE__
  const auto modified = status.st_mtimespec;
#else
  const auto modified = status.st_mtim;
#endif
  constexpr int64_t kNanoseconds = 1'000'000'000;
  return {static_cast<uint64_t>(status.st_size),
          static_cast<int64_t>(modified.tv_sec) * kNanoseconds + modified.tv_nsec};
}

void LocalFile::fail(int error, const std::string& what) const {
  throw std::system_error(error, std::generic_category(), "dormant: " + what + " " + name());
}

void LocalFile::check_same(const Identity& now) const {
  constexpr const char* kNext =
      "Cause: a program wrote to the file in place instead of replacing it. Next: open the "
      "checkpoint again.";
  TORCH_CHECK_VALUE(now.size == identity_.size, "dormant: reading ", name(), ": the file has ",
                    now.size, " bytes, expected ", identity_.size, " as when it was opened. ",
                    kNext);
  TORCH_CHECK_VALUE(now.modified == identity_.modified, "dormant: reading ", name(),
                    ": the file was modified at ", now.modified, " ns, expected ",
                    identity_.modified, " ns as when it was opened. ", kNext);
}

void LocalFile::check() const {
  struct ::stat status{};
  if (::fstat(descriptor_, &status) != 0) {
    fail(errno, "reading the size of");
  }
  check_same(identity_of(status));
}

void LocalFile::read(uint64_t offset, size_t count, void* out) const {
  check_range(offset, count);
  auto* bytes = static_cast<std::byte*>(out);
  for (size_t done = 0; done < count;) {
    const auto place = static_cast<off_t>(offset + done);
    const auto most = std::min(count - done, kMostBytes);
    const auto got = system::is_due(system::Fault::read)
                         ? ssize_t{-1}
                         : ::pread(descriptor_, bytes + done, most, place);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      fail(errno, "reading " + std::to_string(count - done) + " bytes at offset " +
                      std::to_string(place) + " of");
    }
    TORCH_CHECK_VALUE(got > 0, "dormant: reading ", name(), ": the file ends at byte ", place,
                      ", expected ", count, " bytes at offset ", offset,
                      ". Cause: the file was truncated after it was opened, when it had ",
                      identity_.size, " bytes. Next: open the checkpoint again.");
    done += static_cast<size_t>(got);
  }
}

c10::DataPtr LocalFile::map(uint64_t offset, size_t count, record::Guard guard) const {
  check_range(offset, count);
  if (count == 0 || (guard == record::Guard::required && (copied_ || !is_local_))) {
    return {};
  }
  const system::MutexLock lock(mutex_);
  auto mapping = mapping_.lock();
  if (!mapping || !mapping->claim(offset, offset + count, guard)) {
    mapping = FileMapping::make(descriptor_, identity_.size);
    if (mapping && !mapping->claim(offset, offset + count, guard)) {
      copied_ = true;  // there is no lease: not asked for again for each tensor
      mapping = nullptr;
    }
    if (!mapping) {
      return {};
    }
    mapping_ = mapping;
  }
  check();  // again: whoever wrote to it before the mapping had its lease was not heard of
  auto* data = mapping->memory() + offset;
  using Holder = std::shared_ptr<FileMapping>;
  auto holder = std::make_unique<Holder>(std::move(mapping));
  return {data, holder.release(), [](void* context) { delete static_cast<Holder*>(context); },
          c10::DeviceType::CPU};
}

bool LocalFile::is_local(int descriptor) {
#ifdef __linux__
  // Where the bytes lie behind a network or another process, a page fault may take seconds, fail
  // with SIGBUS, or miss what another machine wrote. (linux/magic.h; cluster filesystems state
  // theirs in their own sources.)
  constexpr std::array<uint32_t, 12> kRemote = {
      0x6969,      // NFS
      0xff534d42,  // CIFS
      0xfe534d42,  // SMB2
      0x517b,      // SMB
      0x65735546,  // FUSE
      0x01021997,  // 9p
      0x0bd00bd0,  // Lustre
      0x47504653,  // GPFS
      0x00c36400,  // Ceph
      0x5346414f,  // AFS
      0x6b414653,  // kAFS
      0x73757245,  // Coda
  };
  struct ::statfs status{};
  if (::fstatfs(descriptor, &status) != 0) {
    return false;
  }
  return std::find(kRemote.begin(), kRemote.end(), static_cast<uint32_t>(status.f_type)) ==
         kRemote.end();
#else
  static_cast<void>(descriptor);
  return true;
#endif
}

void LocalFile::will_read(uint64_t offset, size_t count) const {
#ifdef POSIX_FADV_WILLNEED
  static_cast<void>(::posix_fadvise(descriptor_, static_cast<off_t>(offset),
                                    static_cast<off_t>(count), POSIX_FADV_WILLNEED));
#else
  static_cast<void>(offset);
  static_cast<void>(count);
#endif
}

}  // namespace dormant::checkpoint
