// from one stack to another
#pragma once

#if defined(__x86_64__)
extern "C" void simt_switch(void** from, void* to);
// saves what the calling convention wants saved, changes stacks, restores
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the emulator switches stacks on x86-64 only"
#endif
