// The device's memory, which is the host's: allocation, copies, and which pointer belongs to whom.
#include <cstdlib>
#include <cstring>
#include <map>
#include "../engine/interface.h"
#include "device.h"

namespace {
struct Buffer {
    size_t size;
    int device;  // -1: pinned memory of the host
};
std::map<char*, Buffer> device_memory, pinned_memory;
std::map<int, size_t> used;  // by device
size_t limit = size_t(8) << 30;

const Buffer* found_in(const std::map<char*, Buffer>& buffers, const void* p) {
    auto next = buffers.upper_bound((char*)p);
    if (next == buffers.begin()) return nullptr;
    --next;
    return (char*)p < next->first + next->second.size ? &next->second : nullptr;
}
bool on_device(const void* p) { return found_in(device_memory, p); }
bool pinned(const void* p) { return found_in(pinned_memory, p); }

const char* direction(const void* to, const void* from) {
    ONE_AT_A_TIME;
    if (on_device(to)) return on_device(from) ? "D2D" : pinned(from) ? "H2D pinned" : "H2D pageable";
    if (on_device(from)) return pinned(to) ? "D2H pinned" : "D2H pageable";
    return "H2H";
}
}  // namespace

int device_of(const void* p) {
    ONE_AT_A_TIME;
    const Buffer* buffer = found_in(device_memory, p);
    return buffer ? buffer->device : -1;
}

extern "C" {
int emulated_device_of(const void* p) { return device_of(p); }

// For Python: how many bytes each device has.
void emulated_memory_limit(size_t bytes) { limit = bytes; }
size_t emulated_memory_total() { return limit; }

cudaError_t emulated_cudaMemGetInfo(size_t* free, size_t* total) {
    ONE_AT_A_TIME;
    size_t held = used[current_device];
    *free = limit > held ? limit - held : 0;
    *total = limit;
    return cudaSuccess;
}
cudaError_t emulated_cudaMalloc(void** p, size_t size) {
    ONE_AT_A_TIME;
    *p = nullptr;
    if (int error = asked() ?: refuse_in_strict_capture("cudaMalloc")) return remember(error);
    size_t rounded = size ? (size + 511) & ~size_t(511) : 512;
    if (used[current_device] + size > limit || posix_memalign(p, 512, rounded)) return remember(cudaErrorMemoryAllocation);
    memset(*p, 0xFF, rounded);  // NaN: nobody may count on zeros
    device_memory[(char*)*p] = {size, current_device};
    used[current_device] += size;
    emu_known(*p, size, 1);
    note("MALLOC " + std::to_string(size));
    return cudaSuccess;
}
cudaError_t emulated_cudaFree(void* p) {
    ONE_AT_A_TIME;
    auto buffer = device_memory.find((char*)p);
    if (buffer == device_memory.end()) return remember(p ? cudaErrorInvalidValue : cudaSuccess);
    if (int error = refuse_in_strict_capture("cudaFree") ?: catch_up()) return remember(error);
    used[buffer->second.device] -= buffer->second.size;
    emu_known(p, buffer->second.size, 0);
    device_memory.erase(buffer);
    free(p);
    note("FREE");
    return cudaSuccess;
}
cudaError_t emulated_cudaHostAlloc(void** p, size_t size, unsigned) {
    ONE_AT_A_TIME;
    if (int error = asked() ?: refuse_in_strict_capture("cudaHostAlloc")) return remember(error);
    if (posix_memalign(p, 4096, size ? size : 1)) return remember(cudaErrorMemoryAllocation);
    pinned_memory[(char*)*p] = {size, -1};
    return cudaSuccess;
}
cudaError_t emulated_cudaFreeHost(void* p) {
    ONE_AT_A_TIME;
    catch_up();
    pinned_memory.erase((char*)p);
    free(p);
    return cudaSuccess;
}

// A copy from or to pageable memory waits, so it cannot be captured.
cudaError_t emulated_cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
    std::string name = std::string("COPY ") + direction(to, from) + " " + std::to_string(size);
    bool waits = name.find("pageable") != std::string::npos;
    if (waits)
        if (int error = refuse_in_capture(stream, name.c_str())) return remember(error);
    int error = enqueue(stream, name, [=]() {
        memmove(to, from, size);
        return 0;
    });
    return remember(error ?: waits ? catch_up(stream_of(stream)) : 0);
}
cudaError_t emulated_cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    std::string name = std::string("COPY and wait ") + direction(to, from) + " " + std::to_string(size);
    if (int error = asked() ?: refuse_in_strict_capture(name.c_str()) ?: refuse_in_capture(nullptr, name.c_str()))
        return remember(error);
    note(name);
    return remember(run(stream_of(nullptr), [=]() {
        memmove(to, from, size);
        return 0;
    }));
}
cudaError_t emulated_cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t stream) {
    return remember(enqueue(stream, "MEMSET " + std::to_string(size), [=]() {
        memset(p, value, size);
        return 0;
    }));
}
cudaError_t emulated_cudaMemset(void* p, int value, size_t size) {
    return emulated_cudaMemsetAsync(p, value, size, nullptr);
}
cudaError_t emulated_cudaPointerGetAttributes(cudaPointerAttributes* out, const void* p) {
    ONE_AT_A_TIME;
    memset(out, 0, sizeof *out);
    out->type = on_device(p) ? cudaMemoryTypeDevice : pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    if (out->type == cudaMemoryTypeDevice) out->device = device_of(p);
    if (out->type != cudaMemoryTypeUnregistered) out->devicePointer = (void*)p;
    if (out->type == cudaMemoryTypeHost) out->hostPointer = (void*)p;
    return cudaSuccess;
}
}
