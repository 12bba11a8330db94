#pragma once

#include <chrono>
#include <optional>
#include <thread>

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

// An all-gather under way, in one message or in one from each rank.
struct BridgeGathering {
  BridgeGroup group;
  std::vector<c10::intrusive_ptr<c10d::Work>> works;
  at::Tensor input;
};

namespace bridge {

// NCCL's wait() only orders streams. The host waits too, so that a lost peer is an error here and not in some later
// kernel. A hang is ended by c10d's own watchdog, which aborts the communicator after the group's timeout.
inline void finish_on_device(const c10::intrusive_ptr<c10d::Work>& work) {
  while (!work->isCompleted()) std::this_thread::sleep_for(std::chrono::microseconds(20));
  if (auto failure = work->exception()) std::rethrow_exception(failure);
}

inline void finish(const BridgeGroup& group, const c10::intrusive_ptr<c10d::Work>& work) {
  if (group.cuda) finish_on_device(work);
  work->wait();
}

} // namespace bridge
