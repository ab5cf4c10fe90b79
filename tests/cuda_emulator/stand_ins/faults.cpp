// Errors on demand: one thing that is asked of the device fails, or everything from then on.
#include "device.h"

namespace {
long count = 0, failing = 0;  // things asked since emulated_fail; the number of the one that fails, 0 for none
int error = 0;
bool lasting = false;  // whether everything after it fails, too
}  // namespace

int asked() {
    ONE_AT_A_TIME;
    ++count;
    bool fails = failing && (lasting ? count >= failing : count == failing);
    if (fails) note("FAILS " + std::to_string(error));
    return fails ? error : 0;
}

extern "C" {
// For Python. `number` is counted from 1.
void emulated_fail(long number, int with, int lasts) {
    ONE_AT_A_TIME;
    count = 0;
    failing = number;
    error = with;
    lasting = lasts;
}
long emulated_asked() { return count; }
}
