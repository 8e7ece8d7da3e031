#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

// Fetches a cache line that will be written. Without the instruction, a core that read it would have to ask the others
// for it at the first write.
inline void take_line(const void* address) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address)));
#else
    __builtin_prefetch(address, 1, 2);
#endif
}

// Page-aligned array that only grows; new memory is zero. Rows of large arrays are read in random order, so that huge
// pages back them.
template <class T> class Buffer {
  public:
    T* need(size_t count) {
        if (count > size_) {
            memory_.reset();
            const size_t page = count * sizeof(T) < 2 * HUGE_PAGE ? 4096 : HUGE_PAGE;
            const size_t bytes = (count * sizeof(T) + page - 1) / page * page;
            memory_.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
            size_ = memory_ ? count : 0;
            if (!memory_) throw std::bad_alloc();
            if (page == HUGE_PAGE) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
            std::memset(static_cast<void*>(memory_.get()), 0, bytes);
        }
        return memory_.get();
    }
    T* get() const { return memory_.get(); }

  private:
    static constexpr size_t HUGE_PAGE = 2 << 20;

    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t size_ = 0;
};
