// Copies to a CUDA device on a stream of their own, beside what the device computes. Only c10's device-independent classes:
// this compiles without CUDA's headers.

#include "failure.h"

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

struct BridgeUpload {
  at::Tensor tensor;
  c10::Event arrived;
};

extern "C" {

int bridge_upload_start(const at::Tensor* host, int device_index, BridgeUpload** out, char** message) {
  return bridge::guarded(message, [&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index));
    const c10::impl::VirtualGuardImpl streams(device.type());
    const c10::Stream side = streams.getStreamFromGlobalPool(device);
    // The copy is from page-locked memory, which libtorch's allocator keeps until it is over.
    const at::Tensor pinned = host->pin_memory();
    const c10::StreamGuard on_side(side);
    at::Tensor tensor = pinned.to(host->options().device(device), /*non_blocking=*/true, /*copy=*/true);
    c10::Event arrived(device.type());
    arrived.record(side);
    *out = new BridgeUpload{std::move(tensor), std::move(arrived)};
  });
}

// What the current stream is asked for from now on comes behind the copy; the host does not wait.
int bridge_upload_finish(const BridgeUpload* upload, at::Tensor* to, char** message) {
  return bridge::guarded(message, [&] {
    const c10::Device device = upload->tensor.device();
    const c10::Stream current = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    upload->arrived.block(current);
    // The memory was asked for on the other stream, and is not to be given away while this one reads it.
    upload->tensor.record_stream(current);
    *to = upload->tensor;
  });
}

void bridge_upload_free(BridgeUpload* upload) {
  char* message = nullptr;
  bridge::guarded(&message, [&] { delete upload; });
  std::free(message);
}

} // extern "C"
