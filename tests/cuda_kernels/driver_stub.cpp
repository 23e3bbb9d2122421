// As much of the CUDA driver as the launcher calls: it says on standard output what it was asked, and launches nothing.

#include <cstdint>
#include <cstdio>
#include <cstring>

extern "C" {
int cuInit(unsigned) { return 0; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
    return device ? 101 : 0;           // CUDA_ERROR_INVALID_DEVICE
}

int cuModuleLoadData(void** module, const void* image) {
    std::printf("load %.3s\n", static_cast<const char*>(image) + 1);
    *module = reinterpret_cast<void*>(0x10);
    return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    std::printf("function %s of %p\n", name, module);
    *function = reinterpret_cast<void*>(0x20);
    return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void* stream, void** arguments, void** extra) {
    std::printf("launch %p grid %u %u %u block %u %u %u shared %u stream %p arguments %p %d %d extra %d\n", function, x, y, z,
                block_x, block_y, block_z, shared, stream, *static_cast<void**>(arguments[0]),
                *static_cast<int*>(arguments[1]), *static_cast<int*>(arguments[2]), extra != nullptr);
    std::fflush(stdout);
    return 0;
}

int cuGetProcAddress_v2(const char* name, void** address, int, std::uint64_t, int* status) {
    const struct {
        const char* name;
        void* address;
    } known[] = {
        {"cuInit", reinterpret_cast<void*>(cuInit)},
        {"cuDeviceGetAttribute", reinterpret_cast<void*>(cuDeviceGetAttribute)},
        {"cuModuleLoadData", reinterpret_cast<void*>(cuModuleLoadData)},
        {"cuModuleGetFunction", reinterpret_cast<void*>(cuModuleGetFunction)},
        {"cuLaunchKernel", reinterpret_cast<void*>(cuLaunchKernel)},
        {"cuGetProcAddress", reinterpret_cast<void*>(cuGetProcAddress_v2)},
    };
    *address = nullptr;
    if (status) *status = 0;
    for (const auto& one : known)
        if (!std::strcmp(name, one.name)) *address = one.address;
    return 0;
}

int cuGetProcAddress(const char* name, void** address, int version, std::uint64_t flags) {
    return cuGetProcAddress_v2(name, address, version, flags, nullptr);
}
}
