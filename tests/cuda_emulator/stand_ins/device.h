// The emulated device as the stand-ins share it: streams, captured graphs, and a log of what was asked of it.
#pragma once
#include <cuda_runtime_api.h>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

typedef std::function<int()> Work;  // returns an error's number, 0 for none

struct Graph {
    std::vector<std::pair<std::string, Work>> nodes;
};

struct Stream {
    int number = 0;  // in the order in which streams were made, from 1; 0 for those that are always there
    unsigned flags = 0;
    int device = 0;
    bool capturing = false, broken = false;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    Graph* graph = nullptr;
};

typedef std::shared_ptr<bool> Moment;  // a place among the work of a stream, and whether all before it has run
struct Event {
    Moment last;  // where it was recorded
};

// One thread of the host at a time asks something of the device.
extern std::recursive_mutex device_mutex;
#define ONE_AT_A_TIME std::lock_guard<std::recursive_mutex> one_at_a_time(device_mutex)

extern thread_local int current_device;  // cudaSetDevice holds for the thread
int device_count();                      // XNN_EMULATOR_DEVICES, 1 by default
int device_of(const void* p);            // where memory lies, -1 if it is none of a device
int asked();                             // counts one more thing asked of the device; the error that it shall have, or 0

Stream* stream_of(void* handle);
void note(const std::string& line);                                     // in the log, if it is on
int enqueue(void* stream, const std::string& name, const Work& work);   // runs work now, or records it in a capture
int refuse_in_capture(void* stream, const char* what);                  // the error of what would wait for the stream
int refuse_in_strict_capture(const char* what);                         // the error of what may not run beside a capture
cudaError_t remember(int error);                                        // for cudaGetLastError

// late.cpp. The functions run what is waited for, and return the first error of it.
int run(Stream* stream, const Work& work);  // at once, or late
bool has_run(Stream* stream);               // all of its work
int catch_up(Stream* stream);
int catch_up(Moment moment);
int catch_up();                             // with the work of all streams
Moment record(Stream* stream);
int wait_for(Stream* stream, Moment moment);  // the work that the stream is given from now on

// For the stand-ins of libraries, which are other shared objects.
extern "C" int emulated_device_of(const void* p);
extern "C" int emulated_device();
extern "C" int emulated_enqueue(void* stream, const char* name, int (*work)(void*), void* data, void (*drop)(void*));
