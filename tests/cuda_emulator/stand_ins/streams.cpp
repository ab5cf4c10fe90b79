// Streams, events, stream capture and graphs. Where a stream captures, work is recorded; else `run` in late.cpp has it.
#include <cstdio>
#include <memory>
#include "device.h"

std::recursive_mutex device_mutex;

namespace {
Stream legacy_stream, per_thread_stream;
int blocking_captures = 0;          // streams that capture and wait for the legacy stream
std::vector<Stream*> strict_captures;  // those not in relaxed mode
cudaError_t last_error = cudaSuccess;
std::vector<std::string> log_lines;
bool logging = false;
int streams_made = 0;

int launch_all(const Graph& graph) {
    for (const auto& node : graph.nodes)
        if (int error = node.second()) return error;
    return 0;
}

void end_of_capture(Stream* stream) {
    if (!stream->capturing) return;
    if (!(stream->flags & cudaStreamNonBlocking)) --blocking_captures;
    for (size_t i = 0; i < strict_captures.size(); ++i)
        if (strict_captures[i] == stream) strict_captures.erase(strict_captures.begin() + i--);
    stream->capturing = stream->broken = false;
}
}  // namespace

Stream* stream_of(void* handle) {
    if (!handle || handle == cudaStreamLegacy) return &legacy_stream;
    if (handle == cudaStreamPerThread) return &per_thread_stream;
    return (Stream*)handle;
}

void note(const std::string& line) {
    if (logging) log_lines.push_back(line);
}

int enqueue(void* handle, const std::string& name, const Work& work) {
    ONE_AT_A_TIME;
    if (int error = asked()) return error;
    Stream* stream = stream_of(handle);
    if (stream == &legacy_stream && blocking_captures) {
        note("REFUSED " + name);
        return cudaErrorStreamCaptureImplicit;
    }
    if (stream->broken) return cudaErrorStreamCaptureInvalidated;
    if (stream->capturing) {
        note("CAPTURE " + name);
        stream->graph->nodes.emplace_back(name, work);
        return 0;
    }
    note(name);
    return run(stream, work);
}

int refuse_in_capture(void* handle, const char* what) {
    ONE_AT_A_TIME;
    Stream* stream = stream_of(handle);
    int error = stream->capturing                                      ? cudaErrorStreamCaptureUnsupported
                : stream == &legacy_stream && blocking_captures ? cudaErrorStreamCaptureImplicit
                                                                       : 0;
    if (error) note(std::string("REFUSED ") + what);
    if (stream->capturing) stream->broken = true;
    return error;
}

int refuse_in_strict_capture(const char* what) {
    ONE_AT_A_TIME;
    if (strict_captures.empty()) return 0;
    note(std::string("REFUSED ") + what);
    for (Stream* stream : strict_captures) stream->broken = true;
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t remember(int error) {
    if (error) last_error = cudaError_t(error);
    return cudaError_t(error);
}

extern "C" {
// For Python: the log of what is asked of the device.
void emulated_log(int on) {
    logging = on != 0;
    if (logging) log_lines.clear();
}
size_t emulated_log_size() { return log_lines.size(); }
const char* emulated_log_line(size_t i) { return log_lines[i].c_str(); }

// For Python: the error of a library call that waits for the stream, 0 if it may run.
int emulated_waits(void* stream, const char* name) {
    int error = refuse_in_capture(stream, name);
    if (error) return error;
    note(name);
    return catch_up(stream_of(stream));
}

// What attach.py puts in the place of every function of the run-time that is not emulated.
cudaError_t emulated_nothing(const char* name) {
    fprintf(stderr, "cuda_emulator: %s is not emulated\n", name);
    return remember(cudaErrorNotSupported);
}

int emulated_enqueue(void* stream, const char* name, int (*work)(void*), void* data, void (*drop)(void*)) {
    std::shared_ptr<void> held(data, drop);
    return enqueue(stream, name, [=]() { return work(held.get()); });
}

cudaError_t emulated_cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t emulated_cudaPeekAtLastError() { return last_error; }

// Streams.
cudaError_t emulated_cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
    if (int error = asked()) return remember(error);
    ONE_AT_A_TIME;
    auto stream = new Stream;
    stream->number = ++streams_made;
    stream->flags = flags;
    stream->device = current_device;
    *out = (cudaStream_t)stream;
    return cudaSuccess;
}
cudaError_t emulated_cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int) {
    return emulated_cudaStreamCreateWithFlags(out, flags);
}
cudaError_t emulated_cudaStreamCreate(cudaStream_t* out) { return emulated_cudaStreamCreateWithFlags(out, 0); }
cudaError_t emulated_cudaStreamDestroy(cudaStream_t stream) {
    ONE_AT_A_TIME;
    end_of_capture((Stream*)stream);
    int error = catch_up((Stream*)stream);
    delete (Stream*)stream;
    return remember(error);
}
cudaError_t emulated_cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
    *flags = stream_of(stream)->flags;
    return cudaSuccess;
}
cudaError_t emulated_cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}
cudaError_t emulated_cudaStreamSynchronize(cudaStream_t stream) {
    note("SYNC stream");
    if (int error = asked()) return remember(error);
    return remember(refuse_in_capture(stream, "cudaStreamSynchronize") ?: catch_up(stream_of(stream)));
}
cudaError_t emulated_cudaStreamQuery(cudaStream_t handle) {
    ONE_AT_A_TIME;
    if (int error = refuse_in_capture(handle, "cudaStreamQuery")) return remember(error);
    return has_run(stream_of(handle)) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t emulated_cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    return remember(wait_for(stream_of(stream), ((Event*)event)->last));
}
cudaError_t emulated_cudaDeviceSynchronize() {
    note("SYNC device");
    if (int error = asked()) return remember(error);
    return remember(refuse_in_strict_capture("cudaDeviceSynchronize") ?: refuse_in_capture(nullptr, "cudaDeviceSynchronize")
                    ?: catch_up());
}

// Events.
cudaError_t emulated_cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = (cudaEvent_t) new Event;
    return cudaSuccess;
}
cudaError_t emulated_cudaEventCreate(cudaEvent_t* event) { return emulated_cudaEventCreateWithFlags(event, 0); }
cudaError_t emulated_cudaEventDestroy(cudaEvent_t event) {
    delete (Event*)event;
    return cudaSuccess;
}
cudaError_t emulated_cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (int error = asked()) return remember(error);
    ((Event*)event)->last = record(stream_of(stream));
    return cudaSuccess;
}
cudaError_t emulated_cudaEventSynchronize(cudaEvent_t event) {
    note("SYNC event");
    if (int error = asked()) return remember(error);
    return remember(catch_up(((Event*)event)->last));
}
cudaError_t emulated_cudaEventQuery(cudaEvent_t event) {
    if (int error = asked()) return remember(error);
    ONE_AT_A_TIME;
    const Moment& last = ((Event*)event)->last;
    return !last || *last ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t emulated_cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 0;
    return cudaSuccess;
}

// Capture and graphs.
cudaError_t emulated_cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    ONE_AT_A_TIME;
    Stream* stream = stream_of(handle);
    if (stream == &legacy_stream && blocking_captures) return remember(cudaErrorStreamCaptureImplicit);
    *status = stream->broken      ? cudaStreamCaptureStatusInvalidated
              : stream->capturing ? cudaStreamCaptureStatusActive
                                  : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t emulated_cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    ONE_AT_A_TIME;
    Stream* stream = stream_of(handle);
    if (stream == &legacy_stream) return remember(cudaErrorStreamCaptureUnsupported);
    if (stream->capturing) return remember(cudaErrorIllegalState);
    if (int error = asked()) return remember(error);
    stream->capturing = true;
    stream->mode = mode;
    stream->graph = new Graph;
    if (!(stream->flags & cudaStreamNonBlocking)) ++blocking_captures;
    if (mode != cudaStreamCaptureModeRelaxed) strict_captures.push_back(stream);
    note("BEGIN CAPTURE");
    return cudaSuccess;
}
cudaError_t emulated_cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
    ONE_AT_A_TIME;
    Stream* stream = stream_of(handle);
    *out = nullptr;
    if (!stream->capturing) return remember(cudaErrorIllegalState);
    int failed = asked();
    bool broken = stream->broken || failed;
    end_of_capture(stream);
    note("END CAPTURE");
    if (broken) delete stream->graph;
    else *out = (cudaGraph_t)stream->graph;
    stream->graph = nullptr;
    return remember(failed ?: broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t emulated_cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
    if (int error = asked()) return remember(error);
    *out = (cudaGraphExec_t) new Graph(*(Graph*)graph);
    return cudaSuccess;
}
cudaError_t emulated_cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
    auto graph = (Graph*)handle;
    return remember(enqueue(stream, "GRAPH " + std::to_string(graph->nodes.size()), [=]() { return launch_all(*graph); }));
}
cudaError_t emulated_cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return remember(asked()); }
cudaError_t emulated_cudaGraphDestroy(cudaGraph_t graph) {
    catch_up();
    delete (Graph*)graph;
    return cudaSuccess;
}
cudaError_t emulated_cudaGraphExecDestroy(cudaGraphExec_t graph) {
    catch_up();
    delete (Graph*)graph;
    return cudaSuccess;
}
cudaError_t emulated_cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned) {
    FILE* file = fopen(path, "w");
    if (!file) return remember(cudaErrorOperatingSystem);
    fprintf(file, "digraph {\n");
    int i = 0;
    for (const auto& node : ((Graph*)graph)->nodes) {
        fprintf(file, "n%d [label=\"%s\"]\n", i, node.first.c_str());
        if (i) fprintf(file, "n%d -> n%d\n", i - 1, i);
        ++i;
    }
    fprintf(file, "}\n");
    fclose(file);
    return cudaSuccess;
}
}
