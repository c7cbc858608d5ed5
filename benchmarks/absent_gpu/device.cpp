// The few symbols of CUDA's runtime and driver that PyTorch's compiler calls when it generates code and runs none of it.
#include <cstdint>
extern "C" {
#ifdef DRIVER
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0; *active = 1; return 0; }
int cuInit(unsigned) { return 100; }
int cuDriverGetVersion(int* version) { *version = 13020; return 0; }
int cuGetErrorString(int, const char** text) { *text = "no device"; return 0; }
#else
struct Stream { int8_t type; int8_t index; int64_t id; };
Stream _ZN3c104cuda20getCurrentCUDAStreamEa(int8_t) { return Stream{1, 0, 0}; }
Stream _ZN3c104cuda20getDefaultCUDAStreamEa(int8_t) { return Stream{1, 0, 0}; }
int _ZN3c104cuda9GetDeviceEPa(int8_t* device) { *device = 0; return 0; }
int _ZN3c104cuda14MaybeSetDeviceEa(int8_t) { return 0; }
int _ZN3c104cuda9SetDeviceEab(int8_t, bool) { return 0; }
int _ZN3c104cuda9SetDeviceEa(int8_t) { return 0; }
int8_t _ZN3c104cuda14current_deviceEv() { return 0; }
int8_t _ZN3c104cuda14ExchangeDeviceEa(int8_t) { return 0; }
int8_t _ZN3c104cuda19MaybeExchangeDeviceEa(int8_t) { return 0; }
int8_t _ZN3c104cuda12device_countEv() { return 1; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return 0; }
#endif
}
