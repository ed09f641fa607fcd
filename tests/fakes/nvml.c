/* A libnvidia-ml.so.1 with N_GPUS GPUs, numbered from FIRST on. The GPU at position SICK (from 1;
   0: none) does not answer. */
#include <stdio.h>
#ifndef N_GPUS
#define N_GPUS 2
#endif
#ifndef FIRST
#define FIRST 1
#endif
#ifndef SICK
#define SICK 0
#endif
#define GPU_IS_LOST 15
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = N_GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return index < N_GPUS ? 0 : 2;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    if ((unsigned long)device == SICK) return GPU_IS_LOST;
    snprintf(uuid, length, "GPU-%lu", (unsigned long)device + FIRST - 1);
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "Fake GPU");
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *info) {
    info->total = 8ULL << 30;
    info->free = info->used = 4ULL << 30;
    return 0;
}
