#pragma once

#include <exception>
#include <string>

namespace gloo {
namespace transport {

// A connection to one peer. Its first base is this one, so the two pointers are one.
class Pair;

namespace tcp {

class Pair {
 public:
  // Ends it with what waits for it, and tells why it has ended: by this, or before.
  std::exception_ptr signalExceptionExternal(const std::string& message);
};

} // namespace tcp
} // namespace transport
} // namespace gloo
