// CUDA's driver: contexts, modules, launches. A module's image is "EMULATED:" and the path of a compiled kernel library.
#include <dlfcn.h>
#include <cstdio>
#include <cstring>
#include <memory>
#include "../engine/interface.h"
#include "device.h"

typedef int CUresult;

namespace {
constexpr CUresult not_supported = 801, invalid_value = 1, invalid_image = 200, not_found = 500, launch_failed = 719,
                   invalid_handle = 400, illegal_address = 700, out_of_memory = 2, invalid_cluster_size = 912;
constexpr int attribute_max_threads = 0, attribute_dynamic_shared = 8, attribute_large_clusters = 14;
constexpr int most_shared = 227 * 1024, portable_cluster = 8;  // bytes of a block, blocks of a cluster: as an H100
constexpr unsigned most_blocks_of_cluster = 16;
const char image_prefix[] = "EMULATED:";

struct Function {
    const EmuKernel* kernel;
    std::string name;
    int device;  // where its module was loaded
    size_t shared_limit = 49152;  // until cuFuncSetAttribute raises it
    unsigned cluster_limit = portable_cluster;  // until cuFuncSetAttribute allows larger ones
};

struct Shape {
    unsigned grid[3], block[3];
};

// Whether a kernel may be launched in a stream now: a stream belongs to a device, that of address 0 to each.
bool fits(void* stream) {
    return !stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread ||
           ((Stream*)stream)->device == current_device;
}

// 1 + the number of another device if an argument begins with a pointer into that one's memory; else 0. CuPy's arrays
// begin with it. What comes later may be memory that CuPy never wrote, such as the index in its CIndexer.
int foreign_memory(const std::vector<char>& argument, int device) {
    void* p;
    if (argument.size() < sizeof p) return 0;
    memcpy(&p, argument.data(), sizeof p);
    int owner = device_of(p);
    return owner >= 0 && owner != device ? 1 + owner : 0;
}

CUresult launch(void* handle, const Shape& shape, size_t shared, void* stream, void** values, int cooperative) {
    auto function = (Function*)handle;
    const EmuKernel* kernel = function->kernel;
    if (shared > function->shared_limit || shape.block[2] > 64 || shape.grid[1] > 65535 || shape.grid[2] > 65535)
        return invalid_value;
    if (kernel->cluster > function->cluster_limit) return invalid_cluster_size;
    if (function->device != current_device || !fits(stream)) return invalid_handle;
    // The arguments are copied now: the caller may reuse their memory, and a graph is launched later.
    auto copies = std::make_shared<std::vector<std::vector<char>>>();
    for (unsigned i = 0; i < kernel->count; ++i)
        copies->emplace_back((char*)values[i], (char*)values[i] + kernel->sizes[i]);
    int device = current_device;
    return enqueue(stream, "KERNEL " + function->name, [=]() -> int {
        std::vector<void*> pointers;
        for (auto& bytes : *copies) {
            pointers.push_back(bytes.data());
            if (int other = foreign_memory(bytes, device)) {
                note("FAULT " + function->name + ": memory of device " + std::to_string(other - 1));
                return illegal_address;
            }
        }
        if (!emu_launch(kernel, pointers.data(), shape.grid, shape.block, shared, cooperative)) return 0;
        note("FAULT " + function->name + ": " + emu_error());
        fprintf(stderr, "cuda_emulator: %s: %s\n", function->name.c_str(), emu_error());
        return launch_failed;
    });
}
}  // namespace

extern "C" {
CUresult cuInit(unsigned) { return 0; }
CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = error == launch_failed                         ? "CUDA_ERROR_LAUNCH_FAILED"
            : error == cudaErrorStreamCaptureUnsupported ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
            : error == cudaErrorStreamCaptureInvalidated ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
            : error == invalid_value                       ? "CUDA_ERROR_INVALID_VALUE"
            : error == invalid_handle                      ? "CUDA_ERROR_INVALID_HANDLE"
            : error == illegal_address                     ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : error == out_of_memory                       ? "CUDA_ERROR_OUT_OF_MEMORY"
            : error == invalid_cluster_size                ? "CUDA_ERROR_INVALID_CLUSTER_SIZE"
            : error == cudaErrorDevicesUnavailable         ? "CUDA_ERROR_DEVICE_UNAVAILABLE"
            : error == cudaErrorECCUncorrectable           ? "CUDA_ERROR_ECC_UNCORRECTABLE"
                                                           : "CUDA_ERROR_UNKNOWN";
    return 0;
}
CUresult cuGetErrorString(CUresult, const char** text) {
    *text = "an error of the emulated driver";
    return 0;
}

// Contexts: each device has one, which is 1 + the device's number.
CUresult cuCtxGetCurrent(void** context) {
    *context = (void*)(1 + size_t(current_device));
    return 0;
}
CUresult cuCtxSetCurrent(void* context) {
    if (context) current_device = int((size_t)context - 1);
    return 0;
}
CUresult cuCtxCreate_v2(void** context, unsigned, int) { return cuCtxGetCurrent(context); }
CUresult cuCtxDestroy_v2(void*) { return 0; }
CUresult cuCtxGetDevice(int* device) {
    *device = current_device;
    return 0;
}
CUresult cuDevicePrimaryCtxRelease_v2(int) { return 0; }
CUresult cuStreamGetCtx(void*, void** context) { return cuCtxGetCurrent(context); }

// Modules. The functions that link machine code must exist for CuPy to be imported.
CUresult cuLinkCreate_v2() { return not_supported; }
CUresult cuLinkAddData_v2() { return not_supported; }
CUresult cuLinkAddFile_v2() { return not_supported; }
CUresult cuLinkComplete() { return not_supported; }
CUresult cuLinkDestroy() { return not_supported; }
CUresult cuModuleLoad(void**, const char*) { return not_supported; }
CUresult cuModuleLoadData(void** module, const void* image) {
    if (strncmp((const char*)image, image_prefix, strlen(image_prefix))) return invalid_image;
    *module = dlopen((const char*)image + strlen(image_prefix), RTLD_NOW | RTLD_LOCAL);
    if (!*module) fprintf(stderr, "cuda_emulator: %s\n", dlerror());
    return *module ? 0 : invalid_image;
}
CUresult cuModuleUnload(void*) { return 0; }  // a captured graph may still hold its kernels
CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
    auto kernel = (const EmuKernel*)dlsym(module, (std::string("emu_entry_") + name).c_str());
    if (!kernel) return not_found;
    *function = new Function{kernel, name, current_device};
    return 0;
}
CUresult cuModuleGetGlobal_v2(void**, size_t*, void*, const char*) { return not_supported; }

// Functions.
CUresult cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void* stream, void** values, void**) {
    return launch(f, {{gx, gy, gz}, {bx, by, bz}}, shared, stream, values, 0);
}
CUresult cuLaunchCooperativeKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                   unsigned shared, void* stream, void** values) {
    return launch(f, {{gx, gy, gz}, {bx, by, bz}}, shared, stream, values, 1);
}
CUresult cuFuncGetAttribute(int* value, int attribute, void* function) {
    *value = attribute == attribute_max_threads      ? 1024
             : attribute == attribute_dynamic_shared ? int(((Function*)function)->shared_limit)
                                                     : 0;
    return 0;
}
CUresult cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == attribute_dynamic_shared) {
        if (value > most_shared) return invalid_value;
        ((Function*)function)->shared_limit = value;
    }
    if (attribute == attribute_large_clusters)
        ((Function*)function)->cluster_limit = value ? most_blocks_of_cluster : portable_cluster;
    return 0;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, void*, int, size_t) {
    *count = 1;
    return 0;
}
CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void*, void*, size_t, int) {
    *grid = 132;
    *block = 1024;
    return 0;
}
}
