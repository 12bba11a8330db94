#pragma once
// No C++ exception crosses into Rust: each entry point runs inside `guarded`.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>

#include <c10/util/Exception.h>
#include <gloo/common/error.h>
#include <torch/csrc/distributed/c10d/exception.h>

namespace bridge {

// The same numbers as `from_code` in src/error.rs.
enum Code : int {
  kDone = 0,
  kTorch = 1,
  kOutOfMemory = 2,
  kTimedOut = 3,
  kPeerGone = 4,
  kStore = 5,
  kBackend = 6,
  kUnknown = 7,
};

// c10d and Gloo give one exception type to several causes, so the message decides between them.
inline Code by_message(std::string_view text, Code otherwise) {
  for (const char* sign : {"imed out", "imeout"}) {
    if (text.find(sign) != std::string_view::npos) return kTimedOut;
  }
  for (const char* sign : {"onnection closed by peer", "onnection reset by peer", "roken pipe", "onnection refused"}) {
    if (text.find(sign) != std::string_view::npos) return kPeerGone;
  }
  return otherwise;
}

inline Code report(char** message, std::string_view text, Code code) noexcept {
  *message = static_cast<char*>(std::malloc(text.size() + 1));
  if (*message != nullptr) {
    std::memcpy(*message, text.data(), text.size());
    (*message)[text.size()] = '\0';
  }
  return code;
}

// Runs `work`; on an exception writes its text (the caller frees it) and returns what kind it was.
template <typename Work>
int guarded(char** message, Work&& work) noexcept {
  *message = nullptr;
  try {
    work();
    return kDone;
  } catch (const c10::OutOfMemoryError& e) {
    return report(message, e.what_without_backtrace(), kOutOfMemory);
  } catch (const c10d::TimeoutError& e) {
    return report(message, e.what_without_backtrace(), kTimedOut);
  } catch (const c10::DistNetworkError& e) {
    return report(message, e.what_without_backtrace(), by_message(e.what_without_backtrace(), kPeerGone));
  } catch (const c10::DistStoreError& e) {
    return report(message, e.what_without_backtrace(), by_message(e.what_without_backtrace(), kStore));
  } catch (const c10::DistBackendError& e) {
    return report(message, e.what_without_backtrace(), by_message(e.what_without_backtrace(), kBackend));
  } catch (const gloo::IoException& e) {
    return report(message, e.what(), by_message(e.what(), kPeerGone));
  } catch (const c10::Error& e) {
    return report(message, e.what_without_backtrace(), by_message(e.what_without_backtrace(), kTorch));
  } catch (const std::bad_alloc& e) {
    return report(message, e.what(), kOutOfMemory);
  } catch (const std::exception& e) {
    return report(message, e.what(), by_message(e.what(), kTorch));
  } catch (...) {
    return report(message, "an exception that is no std::exception", kUnknown);
  }
}

} // namespace bridge
