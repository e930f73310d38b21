// The reads of one pass from sources where each takes its time, as over a network.
//
// One read after the other, a tile each, would wait for most of the time. So the pass says which
// bytes its pieces read, in the order in which they are worked on, and threads in the background
// read them in large requests, many at a time, into a bounded amount of memory: a block for each
// request. Each byte is asked for once: what lies together, or is wanted by several pieces, is one
// block, which is given back when everything that is wanted of it was read, or when the pieces that
// want it are done.
//
// Locks: its own two, neither of which is held while a source is read, or while whoever waits is
// asked whether to go on. Who holds a lock that a source's reading needs (Python's) must not wait
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "record/source.h"
#include "tile/program.h"

namespace dormant::tile {

/// Whether reads of it are worth reading ahead.
inline bool is_far(const record::Source& source) { return source.preferred_read_bytes() > 0; }

/// Bytes that one pass keeps of what it read ahead, where no budget says less.
constexpr size_t kReadAheadBytes = 128 << 20;

class ReadAhead {
 public:
  using Ranges = std::vector<Program::Range>;

  struct Options {
    size_t bytes = kReadAheadBytes;  ///< of memory, at most
    size_t pieces = 0;
    /// Appends what a piece reads of any source, in any order; any thread, one at a time. Of too
    /// much or too little only speed depends.
    std::function<void(size_t piece, Ranges& ranges)> reads_of;
    /// Whether to go on; called again and again by threads that wait for bytes. May throw.
    std::function<bool()> go_on;
  };

  explicit ReadAhead(Options options);
  /// Nobody reads any more. What is being read is given up: its memory goes when the read ends.
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// While it lives, the calling thread works on a piece: `read` takes from what was read ahead.
  class Scope {
   public:
    Scope(ReadAhead* ahead, size_t piece);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ReadAhead* const ahead_;
    const size_t piece_;
  };

  /// Copies bytes of a source to `out`: in a Scope of one of its pieces those that were read ahead,
  /// else by a read of its own. Whatever the source throws; c10::Error where `go_on` says no.
  static void read(const record::Source& source, uint64_t offset, size_t count, void* out);

 private:
  struct Block;
  struct State;
  struct Wanted {
    Program::Range range;
    size_t piece;
  };

  void begin();
  void finish(size_t piece);
  void take(size_t piece, const record::Source& source, uint64_t offset, size_t count, void* out);
  size_t direct_bytes(size_t piece, const record::Source& source, uint64_t offset, size_t count);
  void advance();
  bool look_ahead();
  bool start_block();
  void start_thread();
  static void work(const std::shared_ptr<State>& state);

  const Options options_;
  const std::shared_ptr<State> state_;
};

}  // namespace dormant::tile
