#pragma once

#include <chrono>
#include <memory>

#include <gloo/transport/pair.h>
#include <gloo/transport/unbound_buffer.h>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  std::unique_ptr<transport::Pair>& getPair(int rank);
};

} // namespace gloo
