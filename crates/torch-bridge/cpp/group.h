#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// Opaque to Rust.
struct BridgeStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct BridgeGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  // Set for NCCL, whose work runs on this device's streams.
  std::optional<at::Device> cuda;
};
