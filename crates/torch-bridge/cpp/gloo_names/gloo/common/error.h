#pragma once

#include <stdexcept>

namespace gloo {

// What Gloo throws when a connection breaks or a wait passes its deadline. The C++ runtime matches exception types by
// name, so these catch what libtorch throws; the bases must be as in Gloo.
struct Exception : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct IoException : public Exception {
  using Exception::Exception;
};

} // namespace gloo
