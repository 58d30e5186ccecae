// what the parts of the emulator share
#pragma once

#include <string>

namespace simt {

// the thread of the block that runs now, −1 outside of kernels
int running_thread();
// whether an address is on the stack of the running thread
bool is_private(const void* at);
// a thread has written to shared memory in the ordinary way, which tensor cores don't see by themselves
void leave_unpublished(int thread);
// the launch stops soon, with a reason, the first of which counts
void fail(const std::string& reason);
// and the running thread at once
void give_up(const std::string& reason);

}  // namespace simt
