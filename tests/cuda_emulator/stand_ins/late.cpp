// Late work: in this mode nothing that is given to a stream runs before something waits for it.
//
// A GPU runs the work of several streams in any order that their events allow. Here it is one of two extremes: work
// runs only when the host waits, and then that of the oldest stream first, or that of the newest.
#include <deque>
#include <map>
#include "device.h"

namespace {
struct Item {
    Work work;
    Moment awaited, reached;  // may be null
};
struct Queue {
    std::deque<Item> items;
    bool blocking;  // waits for the legacy stream, and that one for it
};
enum { at_once, oldest_first, newest_first } mode = at_once;
std::map<int, Queue> queues;  // by the number of the stream

int run_until(const std::function<bool()>& done) {
    int error = 0;
    while (!done()) {
        Queue* next = nullptr;
        for (auto& numbered : queues) {
            Queue& queue = numbered.second;
            if (queue.items.empty() || (queue.items.front().awaited && !*queue.items.front().awaited)) continue;
            next = &queue;
            if (mode == oldest_first) break;
        }
        if (!next) return cudaErrorNotReady;
        Item item = std::move(next->items.front());
        next->items.pop_front();
        if (item.work && !error) error = item.work();
        if (item.reached) *item.reached = true;
    }
    return error;
}

std::deque<Item>& items_of(Stream* stream) {
    Queue& queue = queues[stream->number];
    queue.blocking = !(stream->flags & cudaStreamNonBlocking);
    return queue.items;
}
}  // namespace

int run(Stream* stream, const Work& work) {
    if (mode == at_once) return work();
    if (stream->number) {
        items_of(stream).push_back({work});
        return 0;
    }
    int error = run_until([] {
        for (auto& numbered : queues)
            if (numbered.second.blocking && !numbered.second.items.empty()) return false;
        return true;
    });
    return error ?: work();
}

bool has_run(Stream* stream) { return mode == at_once || !stream->number || items_of(stream).empty(); }

int catch_up(Stream* stream) {
    ONE_AT_A_TIME;
    return run_until([=] { return has_run(stream); });
}

int catch_up() {
    ONE_AT_A_TIME;
    return run_until([] {
        for (auto& numbered : queues)
            if (!numbered.second.items.empty()) return false;
        return true;
    });
}

Moment record(Stream* stream) {
    ONE_AT_A_TIME;
    auto moment = std::make_shared<bool>(has_run(stream));
    if (!*moment) items_of(stream).push_back({{}, {}, moment});
    return moment;
}

int wait_for(Stream* stream, Moment moment) {
    ONE_AT_A_TIME;
    if (!moment || *moment) return 0;
    if (!stream->number) return catch_up(moment);
    items_of(stream).push_back({{}, moment});
    return 0;
}

int catch_up(Moment moment) {
    ONE_AT_A_TIME;
    return !moment ? 0 : run_until([=] { return *moment; });
}

// For Python: 0: work runs at once; 1: late, that of the oldest stream first; 2: late, that of the newest first.
extern "C" int emulated_late(int how) {
    ONE_AT_A_TIME;
    int error = catch_up();
    mode = decltype(mode)(how);
    return error;
}
